-- Depth: how many tasks may wait, of a queue and of a role, and who is told
-- when there are many (src/depth.c, src/admit.c).

CREATE FUNCTION orchestrator.set_quota(role text, max_queued int DEFAULT NULL, max_running int DEFAULT NULL,
    max_schedules int DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.set_quota(text, int, int, int) IS
  'Bounds the tasks of a role that wait and that run, and its schedules; what is not given is unbounded. ''public'': of each role that has no quota of its own';

-- Places for tasks that SQL enqueues from outside: raises when there are not
-- so many, tells the time to defer them to, or null. _admitted() when their
-- rows are written; keep is false when steps of theirs are what waits.
CREATE FUNCTION orchestrator._admit(owner int, queue int, n int) RETURNS timestamptz
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_admit';
CREATE FUNCTION orchestrator._admitted(keep boolean) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_admitted';

-- Tasks were scheduled that nobody may refuse. Of those that become ready
-- _ready() tells.
CREATE FUNCTION orchestrator._waits(owner int, queue int, n int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_waits';

-- How many tasks of a queue wait, counted up to a number, and since when the
-- oldest of them is ready; also those that are not committed yet.
CREATE FUNCTION orchestrator._backlog(queue int, max_rows bigint, OUT depth bigint, OUT oldest timestamptz)
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_backlog';

-- The supervisor is to look at the alerts of a queue when this is committed.
CREATE FUNCTION orchestrator._alert_soon(queue int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_alert_soon';

-- Without shared memory: one transaction at a time enqueues where there is a
-- limit.
CREATE FUNCTION orchestrator._lock_limits(owner int, queue int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF $2 = 0 THEN
    PERFORM FROM orchestrator.owner o WHERE o.id = $1 FOR NO KEY UPDATE;
  ELSE
    PERFORM FROM orchestrator.queue q WHERE q.id = $2 FOR NO KEY UPDATE;
  END IF;
END
$$;

CREATE FUNCTION orchestrator._set_quota(caller oid, role text, max_queued int, max_running int, max_schedules int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int;
  v_what  text;
  v_value int;
BEGIN
  PERFORM orchestrator._require_admin($1);
  PERFORM orchestrator._initialize();
  FOR v_what, v_value IN VALUES ('max_queued', $3), ('max_running', $4), ('max_schedules', $5) LOOP
    PERFORM orchestrator._require(v_value > 0, v_what || ' must be positive', 'Leave it out for any number.');
  END LOOP;
  v_owner := orchestrator._grantee($2);
  IF num_nonnulls($3, $4, $5) = 0 THEN
    DELETE FROM orchestrator.role_quota r WHERE r.owner = v_owner;
  ELSE
    INSERT INTO orchestrator.role_quota (owner, max_queued, max_running, max_schedules) VALUES (v_owner, $3, $4, $5)
      ON CONFLICT ON CONSTRAINT role_quota_pkey
      DO UPDATE SET max_queued = excluded.max_queued, max_running = excluded.max_running, max_schedules = excluded.max_schedules;
  END IF;
  PERFORM orchestrator._limits_changed();
  PERFORM orchestrator._invalidate();
END
$$;

-- The quota of an owner: its own, or everybody's; nulls: none.
CREATE FUNCTION orchestrator._quota(owner int) RETURNS orchestrator.role_quota
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  r orchestrator.role_quota;
BEGIN
  SELECT x.* INTO r FROM orchestrator.role_quota x WHERE x.owner IN ($1, 0) ORDER BY x.owner DESC LIMIT 1;
  RETURN r;
END
$$;

-- Whether an owner that has so many schedules may make another one. Whoever
-- counts them calls _lock_limits(owner, 0) before: one at a time.
CREATE FUNCTION orchestrator._check_quota_schedules(owner int, have int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_most int := (orchestrator._quota($1)).max_schedules;
BEGIN
  IF $2 >= v_most THEN
    RAISE EXCEPTION 'role "%" may not have more schedules', (SELECT o.name FROM orchestrator.owner o WHERE o.id = $1)
      USING ERRCODE = 'OR009', DETAIL = format('Its max_schedules is %s.', v_most),
            HINT = 'Drop one with orchestrator.unschedule(), or have an administrator raise max_schedules with orchestrator.set_quota().';
  END IF;
END
$$;

-- The supervisor looks at all of them in one go: a role may have so many.
CREATE FUNCTION orchestrator._check_alert_count(caller oid, owner int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (SELECT count(*) FROM orchestrator.queue q WHERE q.owner = $2 AND num_nonnulls(q.alert_depth, q.alert_age) > 0) > 100
     AND NOT orchestrator._is_admin($1) THEN
    RAISE EXCEPTION 'a role may not have more than 100 queues with alerts'
      USING ERRCODE = 'program_limit_exceeded', HINT = 'An administrator may define them for it.';
  END IF;
END
$$;

-- Alerts, as the supervisor looks at them: when there may be a change to tell
-- of, at most once a second. Returns when to look again in any case; null:
-- when something happens.
CREATE FUNCTION orchestrator._check_alerts() RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_now  timestamptz := orchestrator._now();
  v_next timestamptz;
  v_age  interval;
  q      orchestrator.queue;
  b      record;
BEGIN
  FOR q IN
    SELECT x.* FROM orchestrator.queue x
    WHERE x.alert_depth IS NOT NULL OR x.alert_age IS NOT NULL
       OR EXISTS (SELECT FROM orchestrator.alert a WHERE a.queue = x.id AND a.cleared_at IS NULL)
    ORDER BY x.id
  LOOP
    SELECT x.* INTO b FROM orchestrator._backlog(q.id, greatest(least(2 * q.alert_depth::bigint, q.alert_depth + 100000), 10000)) x;
    v_age := greatest(v_now - b.oldest, interval '0');
    PERFORM orchestrator._judge(q, 'depth', greatest(b.depth - orchestrator._alerts_waiting(q.id), 0), q.alert_depth, v_now);
    PERFORM orchestrator._judge(q, 'age', coalesce(extract(epoch FROM v_age)::float8, 0), extract(epoch FROM q.alert_age)::float8, v_now);
    v_next := least(v_next, CASE WHEN v_age < q.alert_age THEN b.oldest + q.alert_age END);
  END LOOP;
  -- one that is raised ends when tasks are started, of which we are told, or
  -- cancelled: the longer it has not changed, the more seldom
  RETURN least(v_next, (SELECT min(v_now + least(greatest(v_now - a.changed_at, interval '1 s'), interval '1 min'))
                        FROM orchestrator.alert a WHERE a.cleared_at IS NULL));
END
$$;

-- Raise an alert at its limit, clear it at four fifths of that: each once.
CREATE FUNCTION orchestrator._judge(q orchestrator.queue, kind text, value float8, threshold float8, at timestamptz) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  a orchestrator.alert;
BEGIN
  SELECT x.* INTO a FROM orchestrator.alert x WHERE x.queue = q.id AND x.kind = $2 AND x.cleared_at IS NULL;
  IF a.id IS NULL AND $3 >= $4 THEN
    INSERT INTO orchestrator.alert (queue, owner, kind, raised_at, threshold, value, peak, changed_at)
      VALUES (q.id, q.owner, $2, $5, $4, $3, $3, $5);
    DELETE FROM orchestrator.alert x
      WHERE x.id IN (SELECT y.id FROM orchestrator.alert y WHERE y.queue = q.id AND y.kind = $2 ORDER BY y.id DESC OFFSET 100);
    PERFORM orchestrator._tell_alert(q, $2, 'raised', $3, $4);
  ELSIF a.id IS NOT NULL AND ($4 IS NULL OR $3 <= 0.8 * $4) THEN
    UPDATE orchestrator.alert x SET cleared_at = $5, value = $3, changed_at = $5 WHERE x.id = a.id;
    PERFORM orchestrator._tell_alert(q, $2, 'cleared', $3, coalesce($4, a.threshold));
  ELSIF abs($3 - a.value) > 0.1 * a.value OR $4 <> a.threshold THEN
    UPDATE orchestrator.alert x SET value = $3, peak = greatest(x.peak, $3), threshold = $4, changed_at = $5 WHERE x.id = a.id;
  END IF;
END
$$;

-- Numbers only: anyone in the database may listen.
CREATE FUNCTION orchestrator._tell_alert(q orchestrator.queue, kind text, event text, value float8, threshold float8) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_notify('orchestrator_alert', format('{"queue":%s,"kind":"%s","event":"%s","value":%s,"limit":%s}',
                                                 q.id, $2, $3, round($4::numeric, 3), round($5::numeric, 3)));
  IF q.alert_endpoint IS NOT NULL THEN
    PERFORM orchestrator._post_alert(q, $2, $3, $4, $5);
  END IF;
END
$$;

CREATE VIEW orchestrator.alert_status WITH (security_invoker = true) AS
  SELECT DISTINCT ON (q.name, o.name, a.kind)
         q.name AS queue, o.name AS owner, a.kind, a.cleared_at IS NULL AS raised, a.raised_at, a.cleared_at,
         a.threshold, a.value, a.peak, a.changed_at, a.queue AS queue_id
  FROM orchestrator.alert a
  JOIN orchestrator.queue q ON q.id = a.queue
  LEFT JOIN orchestrator.owner o ON o.id = q.owner
  ORDER BY q.name, o.name, a.kind, a.id DESC;
COMMENT ON VIEW orchestrator.alert_status IS
  'The last alert of each queue and kind, raised or cleared. Values are tasks that wait (depth) or seconds (age); of the alerts before, table alert tells';
COMMENT ON COLUMN orchestrator.alert_status.value IS 'As of changed_at: noted when it changes by a tenth. No more than twice alert_depth, or 100,000 more, are counted';
