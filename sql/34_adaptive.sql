-- Adaptive queues: the decisions about their limits. The rule is in
-- src/adapt.c, who measures and decides in src/tune.c.

CREATE TABLE orchestrator.queue_decision (
  queue    int         NOT NULL,
  number   bigint      NOT NULL,   -- from 1; of a queue the largest is in force
  at       timestamptz NOT NULL,
  before   int,                    -- null: it is the first
  running  int         NOT NULL,
  reason   text        NOT NULL,
  measured jsonb       NOT NULL,
  PRIMARY KEY (queue, number)
);
COMMENT ON TABLE orchestrator.queue_decision IS 'What the limits of adaptive queues were changed to, and why: the last 1000 changes of each';

-- Write down a decision; the supervisor acts on it after the commit.
CREATE FUNCTION orchestrator._decide(queue int, before int, running int, reason text, measured jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_kept   constant bigint := 1000;
  v_number bigint := (SELECT d.number + 1 FROM orchestrator.queue_decision d WHERE d.queue = $1 ORDER BY d.number DESC LIMIT 1);
BEGIN
  INSERT INTO orchestrator.queue_decision (queue, number, at, before, running, reason, measured)
    VALUES ($1, coalesce(v_number, 1), orchestrator._now(), $2, $3, $4, $5);
  DELETE FROM orchestrator.queue_decision d WHERE d.queue = $1 AND d.number <= v_number - v_kept;
END
$$;

-- What the database may be short of: bytes that the last connected standby is
-- behind, sessions here that wait for a lock, those that are active, and
-- connections that are free for everybody.
CREATE FUNCTION orchestrator._load(OUT lag bigint, OUT lock_waits int, OUT active int, OUT free int) RETURNS record
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_here constant oid := (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
BEGIN
  SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), w.replay_lsn)), 0) INTO lag
    FROM pg_stat_get_wal_senders() w WHERE w.state IN ('streaming', 'catchup');
  SELECT count(*) FILTER (WHERE a.wait_event_type = 'Lock' AND a.datid = v_here),
         count(*) FILTER (WHERE a.state = 'active' AND a.datid = v_here),
         current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0)
           - count(*) FILTER (WHERE a.backend_type = 'client backend')
    INTO lock_waits, active, free
    FROM pg_stat_get_activity(NULL) a;
END
$$;

-- One look of the rule with what was measured since the last one: steps, the
-- seconds that executors were occupied by them and how these scatter (standard
-- deviation over mean).
CREATE FUNCTION orchestrator._adapt(INOUT state bytea, min_running int, max_running int, at float8, steps float8,
    failed float8, timed_out float8, busy float8, spread float8, waiting boolean, pressure text,
    OUT running int, OUT reason text) RETURNS record
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_adapt';
COMMENT ON FUNCTION orchestrator._adapt(bytea, int, int, float8, float8, float8, float8, float8, float8, boolean, text) IS
  'The rule of adaptive queues, for tests that simulate a queue';
