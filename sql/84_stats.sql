-- Statistics: how many tasks, how long they waited and ran, by minute and hour
-- (src/stats.c), and the position of a task in its queue (src/position.c).
--
-- Minutes are counted in shared memory, for each queue and each definition of
-- each owner of tasks, and written here by the supervisor when they are over.
-- After two days they are added up to hours, which are kept for 90 days: every
-- task stands in one row, whichever it is.

CREATE TABLE orchestrator.stats (
  at        timestamptz NOT NULL,   -- begin of the minute or hour
  hourly    boolean     NOT NULL,
  kind      text        NOT NULL CHECK (kind IN ('queue', 'definition')),
  id        int         NOT NULL,   -- of the queue or definition
  owner     int         NOT NULL,   -- of the tasks
  started   bigint      NOT NULL,   -- attempts that ended
  completed bigint      NOT NULL,
  failed    bigint      NOT NULL,   -- for good
  cancelled bigint      NOT NULL,
  retried   bigint      NOT NULL,   -- attempts after which there was to be another
  expired   bigint      NOT NULL,   -- of those that failed
  wait      bytea       NOT NULL,   -- sketches (src/sketch.c)
  run       bytea       NOT NULL
);
ALTER TABLE orchestrator.stats REPLICA IDENTITY FULL;
CREATE INDEX stats_at ON orchestrator.stats (hourly, at);
CREATE INDEX stats_of ON orchestrator.stats (kind, id, at);
COMMENT ON TABLE orchestrator.stats IS
  'What happened in a minute or hour to the tasks of an owner, by queue and by definition. Read the views queue_stats and definition_stats';

-- Told at commit, like the events. took: of a run, from its start to its end.
CREATE FUNCTION orchestrator._count(owner int, queue int, definition int, what text, took interval DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_count';
COMMENT ON FUNCTION orchestrator._count(int, int, int, text, interval) IS
  'Counts a task that was completed, failed, cancelled, retried or expired, when the transaction commits';

CREATE FUNCTION orchestrator._live_stats(OUT at timestamptz, OUT kind text, OUT id int, OUT owner int, OUT started bigint, OUT completed bigint,
    OUT failed bigint, OUT cancelled bigint, OUT retried bigint, OUT expired bigint, OUT wait bytea, OUT run bytea) RETURNS SETOF record
  LANGUAGE C VOLATILE ROWS 50 AS 'MODULE_PATHNAME', 'orchestrator_live_stats';
COMMENT ON FUNCTION orchestrator._live_stats() IS 'Minutes that are in memory and not in stats, of owners that the current user may see';

-- Each cell is given out once, to the transaction that writes it.
CREATE FUNCTION orchestrator._seal_stats(everything boolean, OUT at timestamptz, OUT kind text, OUT id int, OUT owner int, OUT started bigint,
    OUT completed bigint, OUT failed bigint, OUT cancelled bigint, OUT retried bigint, OUT expired bigint, OUT wait bytea, OUT run bytea) RETURNS SETOF record
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'orchestrator_seal_stats';

CREATE FUNCTION orchestrator._sketch_add(state internal, sketch bytea) RETURNS internal
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'orchestrator_sketch_add';
CREATE FUNCTION orchestrator._sketch_result(state internal) RETURNS bytea
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'orchestrator_sketch_result';
CREATE AGGREGATE orchestrator._sketch(sketch bytea) (SFUNC = orchestrator._sketch_add, STYPE = internal, SSPACE = 2048, FINALFUNC = orchestrator._sketch_result);
COMMENT ON AGGREGATE orchestrator._sketch(bytea) IS 'Adds sketches up';
CREATE FUNCTION orchestrator._percentile(sketch bytea, fraction float8) RETURNS interval
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'orchestrator_sketch_percentile';
COMMENT ON FUNCTION orchestrator._percentile(bytea, float8) IS 'The time below which that part of the values of a sketch is, within 5 %';

-- Write the minutes that are over, or everything; add up one hour whose minutes
-- are older than two days: after a long stop the supervisor takes one hour
-- each minute, in short transactions.
CREATE FUNCTION orchestrator._save_stats(everything boolean) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now  timestamptz := orchestrator._now();
  v_hour timestamptz;
BEGIN
  INSERT INTO orchestrator.stats (at, hourly, kind, id, owner, started, completed, failed, cancelled, retried, expired, wait, run)
    SELECT s.at, false, s.kind, s.id, s.owner, s.started, s.completed, s.failed, s.cancelled, s.retried, s.expired, s.wait, s.run
    FROM orchestrator._seal_stats($1) s;
  SELECT date_trunc('hour', s.at, 'UTC') INTO v_hour FROM orchestrator.stats s WHERE NOT s.hourly ORDER BY s.at LIMIT 1;
  IF v_hour + interval '1 hour' <= v_now - interval '2 days' THEN
    WITH minute AS (
      DELETE FROM orchestrator.stats s WHERE NOT s.hourly AND s.at < v_hour + interval '1 hour' RETURNING s.*
    )
    INSERT INTO orchestrator.stats (at, hourly, kind, id, owner, started, completed, failed, cancelled, retried, expired, wait, run)
      SELECT v_hour, true, m.kind, m.id, m.owner, sum(m.started), sum(m.completed), sum(m.failed), sum(m.cancelled), sum(m.retried), sum(m.expired),
             orchestrator._sketch(m.wait), orchestrator._sketch(m.run)
      FROM minute m GROUP BY m.kind, m.id, m.owner;
    DELETE FROM orchestrator.stats s WHERE s.hourly AND s.at < v_now - interval '90 days';
  END IF;
END
$$;

-- What both views show, of queues and definitions by their numbers.
CREATE VIEW orchestrator.stats_by_period WITH (security_invoker = true) AS
  SELECT g.kind, g.id, g.period, g.at, g.started, g.completed, g.failed, g.cancelled, g.retried, g.expired,
         g.completed / greatest(extract(epoch FROM least(g.at + CASE g.period WHEN 'hour' THEN interval '1 hour' ELSE interval '1 minute' END, orchestrator._now()) - g.at), 1)::float8 AS throughput,
         g.failed::float8 / nullif(g.completed + g.failed, 0) AS failure_rate, g.retried::float8 / nullif(g.started, 0) AS retry_rate,
         orchestrator._percentile(g.wait, 0.5) AS wait_p50, orchestrator._percentile(g.wait, 0.95) AS wait_p95, orchestrator._percentile(g.wait, 0.99) AS wait_p99,
         orchestrator._percentile(g.run, 0.5) AS run_p50, orchestrator._percentile(g.run, 0.95) AS run_p95, orchestrator._percentile(g.run, 0.99) AS run_p99
  FROM (SELECT s.kind, s.id, p.period, date_trunc(p.period, s.at, 'UTC') AS at, sum(s.started)::bigint AS started, sum(s.completed)::bigint AS completed,
               sum(s.failed)::bigint AS failed, sum(s.cancelled)::bigint AS cancelled, sum(s.retried)::bigint AS retried, sum(s.expired)::bigint AS expired,
               orchestrator._sketch(s.wait) AS wait, orchestrator._sketch(s.run) AS run
        FROM (SELECT t.kind, t.id, t.at, t.hourly, t.started, t.completed, t.failed, t.cancelled, t.retried, t.expired, t.wait, t.run
              FROM orchestrator.stats t
              UNION ALL
              SELECT l.kind, l.id, l.at, false, l.started, l.completed, l.failed, l.cancelled, l.retried, l.expired, l.wait, l.run
              FROM orchestrator._live_stats() l) s
        CROSS JOIN (VALUES ('minute'), ('hour')) p(period)
        WHERE p.period = 'hour' OR NOT s.hourly
        GROUP BY 1, 2, 3, 4) g;
COMMENT ON VIEW orchestrator.stats_by_period IS 'What queue_stats and definition_stats show, by number';

CREATE VIEW orchestrator.queue_stats WITH (security_invoker = true) AS
  SELECT q.name AS queue, o.name AS owner, s.period, s.at, s.started, s.completed, s.failed, s.cancelled, s.retried, s.expired,
         s.throughput, s.failure_rate, s.retry_rate, s.wait_p50, s.wait_p95, s.wait_p99, s.run_p50, s.run_p95, s.run_p99
  FROM orchestrator.stats_by_period s
  JOIN orchestrator.queue q ON q.id = s.id AND s.kind = 'queue'
  LEFT JOIN orchestrator.owner o ON o.id = q.owner;
COMMENT ON VIEW orchestrator.queue_stats IS
  'By minute and hour, what happened to the tasks that the reader may see in the queues that it may use. Filter by period and at';

CREATE VIEW orchestrator.definition_stats WITH (security_invoker = true) AS
  SELECT d.name AS definition, d.version, o.name AS owner, s.period, s.at, s.started, s.completed, s.failed, s.cancelled, s.retried, s.expired,
         s.throughput, s.failure_rate, s.retry_rate, s.wait_p50, s.wait_p95, s.wait_p99, s.run_p50, s.run_p95, s.run_p99
  FROM orchestrator.stats_by_period s
  JOIN orchestrator.definition d ON d.id = s.id AND s.kind = 'definition'
  LEFT JOIN orchestrator.owner o ON o.id = d.owner;
COMMENT ON VIEW orchestrator.definition_stats IS
  'By minute and hour, what happened to the tasks that the reader may see of the definitions that it may use. Filter by period and at';

COMMENT ON COLUMN orchestrator.queue_stats.period IS 'minute or hour; minutes are kept for two days, hours for 90';
COMMENT ON COLUMN orchestrator.queue_stats.at IS 'When it began. The one under way is shown as far as it came';
COMMENT ON COLUMN orchestrator.queue_stats.started IS 'Attempts that were started, and ended then';
COMMENT ON COLUMN orchestrator.queue_stats.retried IS 'Attempts that failed and are followed by another';
COMMENT ON COLUMN orchestrator.queue_stats.expired IS 'Tasks that failed because they were not started, or not finished, in time; also in failed';
COMMENT ON COLUMN orchestrator.queue_stats.throughput IS 'Tasks completed in a second';
COMMENT ON COLUMN orchestrator.queue_stats.failure_rate IS 'Tasks that failed, as a part of those that completed or failed';
COMMENT ON COLUMN orchestrator.queue_stats.retry_rate IS 'retried as a part of started';
COMMENT ON COLUMN orchestrator.queue_stats.wait_p50 IS 'From when an attempt was ready to its start; within 5 %';
COMMENT ON COLUMN orchestrator.queue_stats.run_p50 IS 'From the start of an attempt to its end; within 5 %';
COMMENT ON COLUMN orchestrator.definition_stats.run_p50 IS 'From the start of an attempt to its end, of a workflow from its start to its end; within 5 %';

-- Position.

CREATE FUNCTION orchestrator.queue_position(task bigint, OUT "position" bigint, OUT estimated_start timestamptz) RETURNS record
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'orchestrator_queue_position';
COMMENT ON FUNCTION orchestrator.queue_position(bigint) IS
  'How many ready tasks of its owner stand before a task in its queue, and when it may start; nulls when it is not ready, or nothing is known of the rate';
