-- Views: what an operator looks at. They run with the rights of who reads
-- them, so the policies of the tables decide what is shown.

-- The audit trail: what was written, and what a task's row already says. The
-- rows of an attempt that runs or succeeded are not written, all others are.
CREATE VIEW orchestrator.trace WITH (security_invoker = true) AS
  SELECT w.task_id, w.at, w.event, w.attempt, w.detail, w.owner, w.epoch
  FROM orchestrator.trace_log w
  UNION ALL
  SELECT t.id, t.created_at, 'created', 0, NULL, t.owner, 0
  FROM orchestrator.task t
  UNION ALL
  SELECT t.id, t.started_at, 'started', t.attempt, NULL, t.owner, t.epoch
  FROM orchestrator.task t
  WHERE t.state IN ('running', 'completed')
  UNION ALL
  SELECT t.id, t.finished_at, 'completed', t.attempt,
         jsonb_build_object('duration_ms', round(extract(epoch FROM t.finished_at - t.started_at) * 1000, 3)), t.owner, t.epoch
  FROM orchestrator.task t
  WHERE t.state = 'completed'
  UNION ALL
  SELECT NULL, d.at, 'decision', NULL,
         d.measured || jsonb_build_object('queue', q.name, 'before', d.before, 'running', d.running, 'reason', d.reason), q.owner, NULL
  FROM orchestrator.queue_decision d
  JOIN orchestrator.queue q ON q.id = d.queue;
COMMENT ON VIEW orchestrator.trace IS
  'Audit trail: every transition of every task, and (without task_id) the decisions about adaptive queues. Filter by task_id, order by at';

-- When the first step of a live run started; null: none did. Its row says only
-- that it waits. Called by the views as whoever reads.
CREATE FUNCTION orchestrator._run_started(task bigint) RETURNS timestamptz
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_at timestamptz;
BEGIN
  -- in the order of the index, so that of many items few are looked at
  SELECT x.started_at INTO v_at FROM orchestrator.task x
    WHERE x.parent_id = $1 AND x.id > $1 AND NOT x.live AND x.started_at IS NOT NULL ORDER BY x.step, x.item LIMIT 1;
  IF v_at IS NULL THEN
    SELECT s.started_at INTO v_at FROM orchestrator._slots() s JOIN orchestrator.task x ON x.id = s.task_id AND x.live
      WHERE x.parent_id = $1 ORDER BY 1 LIMIT 1;
  END IF;
  IF v_at IS NULL THEN
    SELECT x.started_at INTO v_at FROM orchestrator.task x
      WHERE x.parent_id = $1 AND x.live AND x.started_at IS NOT NULL ORDER BY x.step, x.item LIMIT 1;
  END IF;
  IF v_at IS NULL THEN
    SELECT min(orchestrator._run_started(x.id)) INTO v_at FROM orchestrator.task x
      WHERE x.parent_id = $1 AND x.live AND x.remaining IS NOT NULL;
  END IF;
  RETURN v_at;
END
$$;

-- How far a run is, from 0 to 1: the weighted mean of its steps, the mean of
-- the items of a map or batch. What is final counts 1, unless the run ended
-- early. Only what runs right now has a part in between, so that of many items
-- only the numbers are read.
CREATE FUNCTION orchestrator._run_progress(task bigint) RETURNS float8
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  p       record;
  d       record;
  v_done  float8;
  v_total float8;
BEGIN
  SELECT x.id, x.live, x.definition, x.plan, x.step, x.parent_id, x.remaining, x.input INTO p FROM orchestrator.task x WHERE x.id = $1;
  SELECT x.kind, x.steps INTO d FROM orchestrator.definition x WHERE x.id = p.definition;
  IF d.kind IN ('map', 'batch') THEN
    v_total := CASE d.kind WHEN 'map' THEN jsonb_array_length(p.input -> 'items')
                           ELSE (SELECT count(*) FROM orchestrator.task x WHERE x.parent_id = $1 AND x.id > $1) END;
    SELECT v_total - p.remaining + coalesce(sum(s.progress), 0) INTO v_done
      FROM (SELECT y.task_id, y.progress FROM orchestrator._slots() y UNION ALL SELECT z.task_id, z.progress FROM orchestrator.lease z) s
      JOIN orchestrator.task x ON x.id = s.task_id AND x.live
      WHERE x.parent_id = $1;
    IF p.remaining > 0 AND (SELECT x.remaining FROM orchestrator.task x WHERE x.parent_id = $1 AND x.live LIMIT 1) IS NOT NULL THEN
      -- items that are workflows: the share of their steps that are final
      v_done := v_done + (SELECT coalesce(sum(1 - x.remaining::float8 / nullif(cardinality(w.step_names), 0)), 0)
                          FROM orchestrator.task x JOIN orchestrator.definition w ON w.id = x.definition
                          WHERE x.parent_id = $1 AND x.live AND x.remaining <= cardinality(w.step_names));
    END IF;
  ELSE
    SELECT sum(s.weight * CASE WHEN x.id IS NULL THEN 0
                               WHEN NOT x.live AND (p.live OR x.state IN ('completed', 'skipped')) THEN 1
                               WHEN x.remaining IS NOT NULL THEN orchestrator._run_progress(x.id)
                               ELSE coalesce(z.progress, r.progress, 0) END), sum(s.weight)
      INTO v_done, v_total
      FROM (SELECT e.place AS step, coalesce((e.spec ->> 'weight')::float8, 1) AS weight
            FROM jsonb_array_elements(d.steps) WITH ORDINALITY e(spec, place)
            UNION ALL
            SELECT a.step, coalesce((a.spec ->> 'weight')::float8, 1) FROM orchestrator.added_step a WHERE a.task_id = $1) s
      LEFT JOIN (SELECT y.id, y.live, y.state, y.remaining, y.step FROM orchestrator.task y
                 WHERE y.parent_id = $1 AND y.id > $1 AND y.step > 0 AND y.item IS NULL) x ON x.step = s.step
      LEFT JOIN orchestrator._slots() z ON z.task_id = x.id AND x.live
      LEFT JOIN orchestrator.lease r ON r.task_id = x.id AND x.live;
  END IF;
  RETURN coalesce(least(greatest(v_done / nullif(v_total, 0), 0), 1), 0);
END
$$;

-- About how many ready tasks of its owner stand before a place in a queue, and
-- when what is there may start (src/position.c); queue below 0: of those for
-- remote workers. Cheap enough for a million rows.
CREATE FUNCTION orchestrator._jobs_ahead(owner int, queue int, sort_key bigint) RETURNS bigint
  LANGUAGE C STABLE STRICT AS 'MODULE_PATHNAME', 'orchestrator_jobs_ahead';
CREATE FUNCTION orchestrator._estimated_start(owner int, queue int, sort_key bigint) RETURNS timestamptz
  LANGUAGE C STABLE STRICT AS 'MODULE_PATHNAME', 'orchestrator_estimated_start';

-- Every task, with what its step reports right now. In the fast lane a row is
-- still pending while its step runs: the slot of its executor says so. Of a
-- task with steps (remaining) they tell.
CREATE VIEW orchestrator.task_status WITH (security_invoker = true) AS
  SELECT t.id AS task_id, t.parent_id, coalesce(t.root_id, t.id) AS root_id, t.name,
         d.name AS definition, d.version, q.name AS queue, o.name AS owner,
         CASE WHEN s.task_id IS NOT NULL THEN 'running'
              WHEN t.state = 'waiting' AND t.remaining IS NOT NULL AND coalesce(t.started_at, orchestrator._run_started(t.id)) IS NOT NULL THEN 'running'
              ELSE t.state END AS state,
         CASE WHEN t.state = 'completed' THEN 1
              WHEN t.remaining IS NOT NULL THEN orchestrator._run_progress(t.id)
              ELSE coalesce(s.progress, z.progress, 0) END AS progress,
         coalesce(s.message, z.message) AS message, coalesce(s.stage, z.stage) AS stage,
         coalesce(s.attempt, t.attempt) AS attempt, t.max_attempts, t.priority, t.key, t.run_at, t.created_at,
         coalesce(s.started_at, t.started_at, CASE WHEN t.remaining IS NOT NULL AND t.live THEN orchestrator._run_started(t.id) END) AS started_at,
         t.finished_at,
         greatest(t.created_at, t.started_at, t.finished_at, t.changed_at, CASE t.state WHEN 'pending' THEN t.run_at END, s.since, s.started_at, z.heartbeat_at) AS updated_at,
         coalesce(t.finished_at, CASE WHEN s.task_id IS NOT NULL OR t.state = 'running' OR t.remaining IS NOT NULL THEN orchestrator._now() END)
           - coalesce(s.started_at, t.started_at, CASE WHEN t.remaining IS NOT NULL AND t.live THEN orchestrator._run_started(t.id) END) AS duration,
         t.input, t.output, t.error, t.metadata,
         coalesce(s.pid, t.worker) AS worker_pid,
         (t.resources ->> 'rows')::bigint AS rows,
         (t.resources ->> 'wal_bytes')::bigint AS wal_bytes,
         make_interval(secs => (t.resources ->> 'cpu_time')::float8) AS cpu_time,
         t.resources, t.deadline, t.expire_at, t.held_state, t.epoch, t.command, t.traceparent,
         coalesce(t.compensation, 'none') AS compensation, t.step, t.item, t.iteration,
         CASE WHEN t.state = 'pending' AND coalesce(t.parked_on, 0) <= 0 AND s.task_id IS NULL THEN orchestrator._jobs_ahead(t.owner, coalesce(t.parked_on::int, t.queue), t.sort_key) END AS jobs_ahead,
         CASE WHEN t.state = 'pending' AND coalesce(t.parked_on, 0) <= 0 AND s.task_id IS NULL THEN orchestrator._estimated_start(t.owner, coalesce(t.parked_on::int, t.queue), t.sort_key) END AS estimated_start,
         z.worker AS remote_worker, z.ends_at AS lease_until,
         (t.resources ->> 'tokens_in')::bigint AS tokens_in, (t.resources ->> 'tokens_out')::bigint AS tokens_out, (t.resources ->> 'cost')::numeric AS cost
  FROM orchestrator.task t
  LEFT JOIN orchestrator.definition d ON d.id = t.definition
  LEFT JOIN orchestrator.queue q ON q.id = t.queue
  LEFT JOIN orchestrator.owner o ON o.id = t.owner
  LEFT JOIN orchestrator._slots() s ON s.task_id = t.id AND t.live AND t.state IN ('pending', 'running')
  LEFT JOIN orchestrator.lease z ON z.task_id = t.id AND t.live AND t.state = 'running';
COMMENT ON VIEW orchestrator.task_status IS
  'Every task that the reader may see, with the progress its step reports right now';

-- Every step of every run. Most have a row of their own in task; one without
-- waits for others, or was never reached when the run is final.
CREATE VIEW orchestrator.step_status WITH (security_invoker = true) AS
  SELECT t.id AS task_id, p.id AS run_id, coalesce(p.root_id, p.id) AS root_id, c.number, c.spec ->> 'name' AS step,
         CASE WHEN c.spec ? 'each' THEN 'map' WHEN c.spec ->> 'kind' IN ('wait', 'workflow', 'checkpoint') THEN c.spec ->> 'kind' ELSE d.kind END AS kind,
         CASE WHEN d.name NOT LIKE 'orchestrator.%' THEN d.name END AS definition, d.version, d.handler,
         CASE WHEN t.id IS NULL AND p.live THEN 'waiting'::orchestrator.task_state
              WHEN t.id IS NULL THEN 'skipped'
              WHEN s.task_id IS NOT NULL THEN 'running'
              WHEN t.state = 'waiting' AND t.remaining IS NOT NULL AND coalesce(t.started_at, orchestrator._run_started(t.id)) IS NOT NULL THEN 'running'
              ELSE t.state END AS state,
         ARRAY(SELECT coalesce(r.step_names[n.step::int], (SELECT a.spec ->> 'name' FROM orchestrator.added_step a WHERE a.task_id = p.id AND a.step = n.step::int))
               FROM jsonb_array_elements_text(c.spec -> 'needs') WITH ORDINALITY n(step, place) ORDER BY n.place) AS needs,
         coalesce(s.attempt, t.attempt, 0) AS attempt, t.max_attempts,
         CASE WHEN t.state IN ('completed', 'skipped') THEN 1
              WHEN t.remaining IS NOT NULL THEN orchestrator._run_progress(t.id)
              ELSE coalesce(s.progress, z.progress, 0) END AS progress,
         coalesce(s.message, z.message) AS message, coalesce(s.stage, z.stage) AS stage,
         coalesce((c.spec ->> 'weight')::float8, 1) AS weight,
         CASE WHEN c.spec ? 'each' AND t.id IS NOT NULL THEN coalesce(jsonb_array_length(t.input -> 'items'), 0) END AS items_total,
         CASE WHEN c.spec ? 'each' AND t.id IS NOT NULL THEN coalesce(jsonb_array_length(t.input -> 'items'), 0) - coalesce(t.remaining, 0) END AS items_done,
         t.created_at, coalesce(s.started_at, t.started_at, CASE WHEN t.remaining IS NOT NULL AND t.live THEN orchestrator._run_started(t.id) END) AS started_at,
         t.finished_at,
         coalesce(t.finished_at, CASE WHEN s.task_id IS NOT NULL OR t.state = 'running' OR t.remaining IS NOT NULL OR c.spec ->> 'kind' = 'wait' THEN orchestrator._now() END)
           - coalesce(s.started_at, t.started_at, CASE WHEN t.remaining IS NOT NULL AND t.live THEN orchestrator._run_started(t.id) END) AS duration,
         t.input, t.output, t.error,
         c.spec ->> 'wait_for' AS wait_for,
         CASE WHEN NOT t.live THEN NULL WHEN c.spec ->> 'kind' = 'wait' THEN t.expire_at ELSE t.run_at END AS wakes_at,
         t.iteration, coalesce(c.spec ->> 'on_failure', 'fail') AS on_failure, coalesce((c.spec ->> 'optional')::boolean, false) AS optional,
         c.added, c.spec ->> 'when' AS "when", c.spec ->> 'description' AS description,
         coalesce((c.spec ->> 'estimated_duration')::interval, d.estimated_duration) AS estimated_duration
  FROM orchestrator.task p
  LEFT JOIN orchestrator.definition r ON r.id = p.definition
  CROSS JOIN LATERAL (
    SELECT e.place::int AS number, e.spec, false AS added FROM jsonb_array_elements(r.steps) WITH ORDINALITY e(spec, place)
    UNION ALL
    SELECT a.step, a.spec, true FROM orchestrator.added_step a WHERE a.task_id = p.id
  ) c
  LEFT JOIN orchestrator.definition d ON d.id = (c.spec ->> 'definition')::int
  LEFT JOIN orchestrator.task t ON t.parent_id = p.id AND t.id > p.id AND t.step = c.number AND t.item IS NULL
  LEFT JOIN orchestrator._slots() s ON s.task_id = t.id AND t.live AND t.state IN ('pending', 'running')
  LEFT JOIN orchestrator.lease z ON z.task_id = t.id AND t.live AND t.state = 'running'
  WHERE p.remaining IS NOT NULL;
COMMENT ON VIEW orchestrator.step_status IS
  'Steps of every run that the reader may see, also those that have not begun. Filter by run_id, order by number';

-- The steps of a run as one value.
CREATE FUNCTION orchestrator._run_steps(task bigint) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
  SET intervalstyle = postgres AS $$
BEGIN
  RETURN (SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('index', s.number, 'name', s.step, 'description', s.description,
                   'status', s.state, 'task', s.task_id, 'progress', round(s.progress::numeric, 4), 'items', s.items_total, 'items_done', s.items_done,
                   'message', coalesce(s.message, s.error ->> 'message'))) ORDER BY s.number), '[]')
          FROM orchestrator.step_status s WHERE s.run_id = $1);
END
$$;

-- What last happened to a run and its steps, the newest first. Not to items.
CREATE FUNCTION orchestrator._run_traces(task bigint, n int) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_ids bigint[] := $1 || ARRAY(SELECT x.id FROM orchestrator.task x WHERE x.parent_id = $1 AND x.id > $1 AND x.item IS NULL AND x.step IS NOT NULL
                                ORDER BY coalesce(x.finished_at, x.started_at, x.created_at) DESC LIMIT $2 * 2);
BEGIN
  RETURN (SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('at', w.at, 'event', w.event, 'task', w.task_id, 'step', w.name,
                   'attempt', w.attempt, 'message', w.detail ->> 'message')) ORDER BY w.at DESC, w.task_id DESC), '[]')
          FROM (SELECT r.at, r.event, r.task_id, r.attempt, r.detail, (SELECT x.name FROM orchestrator.task x WHERE x.id = r.task_id AND x.id <> $1) AS name
                FROM orchestrator.trace r WHERE r.task_id = ANY (v_ids) ORDER BY r.at DESC, r.task_id DESC LIMIT $2) w);
END
$$;

CREATE VIEW orchestrator.workflow_status WITH (security_invoker = true) AS
  SELECT t.id AS task_id, t.parent_id, coalesce(t.root_id, t.id) AS root_id,
         coalesce(t.name, CASE WHEN d.name NOT LIKE 'orchestrator.%' THEN d.name END) AS name,
         CASE WHEN d.name NOT LIKE 'orchestrator.%' THEN d.name END AS definition, d.version, o.name AS owner, d.description,
         CASE WHEN s.task_id IS NOT NULL THEN 'running'
              WHEN t.state = 'waiting' AND coalesce(t.started_at, orchestrator._run_started(t.id)) IS NOT NULL THEN 'running'
              ELSE t.state END AS status,
         CASE WHEN t.state = 'completed' THEN 1 ELSE orchestrator._run_progress(t.id) END AS progress,
         CASE WHEN t.live THEN
           (SELECT min((e.step ->> 'index')::int) FROM jsonb_array_elements(r.steps) e(step)
            WHERE e.step ? 'task' AND e.step ->> 'status' NOT IN ('completed', 'failed', 'cancelled', 'skipped')) END AS current_step,
         coalesce(cardinality(d.step_names), 0) + (SELECT count(*)::int FROM orchestrator.added_step a WHERE a.task_id = t.id) AS total_steps,
         (SELECT count(*)::int FROM jsonb_array_elements(r.steps) e(step) WHERE e.step ->> 'status' = 'completed') AS completed_steps,
         r.steps,
         orchestrator._run_traces(t.id, 10) AS latest_traces,
         coalesce(d.estimated_duration,
                  (SELECT sum((e.spec ->> 'estimated_duration')::interval) FROM jsonb_array_elements(d.steps) e(spec))) AS estimated_duration,
         coalesce(t.compensation, 'none') AS compensation,
         t.created_at, coalesce(t.started_at, CASE WHEN t.live THEN orchestrator._run_started(t.id) END) AS started_at, t.finished_at,
         coalesce(t.finished_at, orchestrator._now()) - coalesce(t.started_at, CASE WHEN t.live THEN orchestrator._run_started(t.id) END) AS duration,
         t.input, t.output, t.error, t.metadata,
         (SELECT c.value FROM orchestrator.run_context c WHERE c.task_id = coalesce(t.root_id, t.id)) AS context
  FROM orchestrator.task t
  LEFT JOIN orchestrator.definition d ON d.id = t.definition
  LEFT JOIN orchestrator.owner o ON o.id = t.owner
  LEFT JOIN orchestrator._slots() s ON s.task_id = t.id AND t.live AND t.state IN ('pending', 'running')
  CROSS JOIN LATERAL (SELECT orchestrator._run_steps(t.id) AS steps OFFSET 0) r   -- once, if it is read at all
  WHERE t.remaining IS NOT NULL AND d.kind IS DISTINCT FROM 'map' AND d.kind IS DISTINCT FROM 'batch';
COMMENT ON VIEW orchestrator.workflow_status IS
  'Every run that the reader may see, at the top or a step of another: a workflow, or a task that added steps';

CREATE VIEW orchestrator.batch_status WITH (security_invoker = true) AS
  SELECT b.id AS batch_id, b.name, b.input ->> 'definition' AS definition, o.name AS owner,
         CASE WHEN b.state = 'waiting' AND c.started THEN 'running' ELSE b.state END AS state,
         coalesce(c.total, (b.output ->> 'total')::bigint) AS total,
         coalesce(c.pending, 0) AS pending, coalesce(c.running, 0) AS running,
         coalesce(c.completed, (b.output ->> 'completed')::bigint) AS completed,
         coalesce(c.failed, (b.output ->> 'failed')::bigint) AS failed,
         coalesce(c.cancelled, (b.output ->> 'cancelled')::bigint) AS cancelled,
         CASE WHEN b.state = 'completed' THEN 1 ELSE coalesce((c.completed + c.failed + c.cancelled + c.part)::float8 / nullif(c.total, 0), 0) END AS progress,
         b.created_at, b.finished_at
  FROM orchestrator.task b
  JOIN orchestrator.definition d ON d.id = b.definition AND d.kind = 'batch'
  LEFT JOIN orchestrator.owner o ON o.id = b.owner
  LEFT JOIN LATERAL (
    SELECT count(*) AS total,
           count(*) FILTER (WHERE x.live AND x.state <> 'running' AND s.task_id IS NULL) AS pending,
           count(*) FILTER (WHERE x.state = 'running' OR s.task_id IS NOT NULL) AS running,
           count(*) FILTER (WHERE x.state = 'completed') AS completed,
           count(*) FILTER (WHERE x.state = 'failed') AS failed,
           count(*) FILTER (WHERE x.state IN ('cancelled', 'skipped')) AS cancelled,
           coalesce(sum(s.progress), 0) AS part,
           bool_or(NOT x.live OR x.started_at IS NOT NULL OR s.task_id IS NOT NULL) AS started
    FROM orchestrator.task x
    LEFT JOIN orchestrator._slots() s ON s.task_id = x.id AND x.live
    WHERE x.parent_id = b.id AND x.id > b.id AND b.output IS NULL
    HAVING b.output IS NULL
  ) c ON true;
COMMENT ON VIEW orchestrator.batch_status IS
  'Batches that the reader may see, and their items by state. Items that wait between attempts, or for steps of their own, count as pending';

CREATE VIEW orchestrator.queue_status WITH (security_invoker = true) AS
  SELECT q.name AS queue, o.name AS owner, q.paused,
         coalesce(c.pending, 0) AS pending, coalesce(c.scheduled, 0) AS scheduled, coalesce(c.running, 0) AS running,
         c.oldest, orchestrator._now() - c.oldest AS oldest_age, c.next_run_at,
         coalesce(c.waiting, 0) AS waiting, coalesce(c.held, 0) AS held,
         q.paused_at, q.description, q.metadata, q.created_at,
         coalesce(c.parked, 0) AS parked, q.max_running, coalesce(p.running, 0) AS busy,
         q.rate_limit, q.rate_period, coalesce(p.started, 0) AS started,
         CASE WHEN q.adaptive THEN least(greatest(coalesce(d.running, ceil(sqrt(q.max_running))), q.min_running, 1), q.max_running)::int
              ELSE q.max_running END AS effective_max_running,
         CASE WHEN q.adaptive THEN d.at END AS decided_at, CASE WHEN q.adaptive THEN d.reason END AS decision
  FROM orchestrator.queue q
  LEFT JOIN orchestrator.owner o ON o.id = q.owner
  LEFT JOIN orchestrator._permits() p ON p.id = orchestrator._limit_id('queue', q.id, '')
  LEFT JOIN LATERAL (SELECT x.running, x.at, x.reason FROM orchestrator.queue_decision x WHERE x.queue = q.id ORDER BY x.number DESC LIMIT 1) d ON q.adaptive
  LEFT JOIN (
    SELECT t.queue,
           count(*) FILTER (WHERE t.state = 'pending' AND s.task_id IS NULL) AS pending,
           count(*) FILTER (WHERE t.state = 'scheduled') AS scheduled,
           count(*) FILTER (WHERE t.state = 'running' OR t.state = 'pending' AND s.task_id IS NOT NULL) AS running,
           count(*) FILTER (WHERE t.state = 'waiting') AS waiting,
           count(*) FILTER (WHERE t.state = 'paused') AS held,
           count(*) FILTER (WHERE t.state = 'pending' AND t.parked_on > 0) AS parked,
           min(t.created_at) FILTER (WHERE t.state = 'pending' AND s.task_id IS NULL) AS oldest,
           min(t.run_at) FILTER (WHERE t.state = 'scheduled') AS next_run_at
    FROM orchestrator.task t
    LEFT JOIN orchestrator._slots() s ON s.task_id = t.id
    WHERE t.live
    GROUP BY t.queue
  ) c ON c.queue = q.id;
COMMENT ON VIEW orchestrator.queue_status IS
  'Queues that the reader may use, and the unfinished tasks in them that it may see. held counts tasks that were paused one by one';

CREATE VIEW orchestrator.quota_status WITH (security_invoker = true) AS
  SELECT o.name AS role, r.owner = 0 AS everybodys, r.max_queued, coalesce(c.queued, 0) AS queued,
         r.max_running, coalesce(p.running, 0) AS running, r.max_schedules,
         (SELECT count(*) FROM orchestrator.schedule x WHERE x.owner = o.id) AS schedules
  FROM orchestrator.owner o
  JOIN orchestrator.role_quota r ON r.owner = CASE WHEN EXISTS (SELECT FROM orchestrator.role_quota x WHERE x.owner = o.id) THEN o.id ELSE 0 END
  LEFT JOIN (
    SELECT t.owner,
           count(*) FILTER (WHERE t.state = 'scheduled' OR t.state = 'pending' AND s.task_id IS NULL
                               OR t.state = 'paused' AND t.held_state IN ('pending', 'scheduled')) AS queued
    FROM orchestrator.task t
    LEFT JOIN orchestrator._slots() s ON s.task_id = t.id
    WHERE t.live
    GROUP BY t.owner
  ) c ON c.owner = o.id
  LEFT JOIN orchestrator._permits() p ON p.id = orchestrator._limit_id('role', o.id, '')
  WHERE o.id <> 0;
COMMENT ON VIEW orchestrator.quota_status IS 'Roles with a quota (set_quota), and what of it they use; null: any number';

CREATE VIEW orchestrator.queue_decisions WITH (security_invoker = true) AS
  SELECT q.name AS queue, o.name AS owner, d.number, d.at, d.before, d.running, d.reason, d.measured
  FROM orchestrator.queue_decision d
  JOIN orchestrator.queue q ON q.id = d.queue
  LEFT JOIN orchestrator.owner o ON o.id = q.owner;
COMMENT ON VIEW orchestrator.queue_decisions IS
  'The last changes of the limits of adaptive queues that the reader may use, and why they were made';

CREATE VIEW orchestrator.worker_status WITH (security_invoker = true) AS
  SELECT s.pid, s.kind, pg_get_userbyid(s.role) AS role, s.task_id, s.state, s.since, s.progress, s.message, s.stage,
         s.attempt, s.started_at, s.claimed, NULL::text AS worker, NULL::timestamptz AS lease_until
  FROM orchestrator._slots() s
  WHERE s.item = 0   -- of a call for many tasks, the first
  UNION ALL
  SELECT NULL, 'remote', o.name, z.task_id, 'busy', z.heartbeat_at, coalesce(z.progress, 0), z.message, z.stage,
         NULL, z.started_at, z.claimed, z.worker, z.ends_at
  FROM (SELECT l.task_id, l.worker, l.claimed_by, l.started_at, l.heartbeat_at, l.ends_at, l.progress, l.message, l.stage,
               (count(*) OVER w)::int AS claimed, row_number() OVER (w ORDER BY l.started_at, l.task_id) AS place
        FROM orchestrator.lease l WINDOW w AS (PARTITION BY l.worker, l.claimed_by)) z
  LEFT JOIN orchestrator.owner o ON o.id = z.claimed_by
  WHERE z.place = 1;   -- the task it has had longest
COMMENT ON VIEW orchestrator.worker_status IS
  'Workers of this database and what they do now: processes of the server, if the library is preloaded, and remote workers that have claimed a task';

CREATE VIEW orchestrator.definition_status WITH (security_invoker = true) AS
  SELECT d.name AS definition, d.version, o.name AS owner, d.is_current, d.kind, d.handler, q.name AS queue,
         coalesce(c.pending, 0) AS pending, coalesce(c.scheduled, 0) AS scheduled, coalesce(c.running, 0) AS running,
         coalesce(c.waiting, 0) AS waiting, coalesce(c.held, 0) AS held,
         d.priority, d.max_attempts, d.backoff, d.retry_delay, d.max_retry_delay, d.timeout, d.queue_timeout,
         d.timeout_policy, d.notify, d.description, d.estimated_duration, d.metadata, d.created_at,
         coalesce(c.parked, 0) AS parked, d.max_running, coalesce(p.running, 0) AS busy,
         d.rate_limit, d.rate_period, coalesce(p.started, 0) AS started,
         d.concurrency_key, d.key_max_running, d.key_rate_limit, d.key_rate_period
  FROM orchestrator.definition d
  LEFT JOIN orchestrator._permits() p ON p.id = orchestrator._limit_id('definition', d.owner, d.name)
  LEFT JOIN orchestrator.owner o ON o.id = d.owner
  LEFT JOIN orchestrator.queue q ON q.id = d.queue
  LEFT JOIN (
    SELECT t.definition,
           count(*) FILTER (WHERE t.state = 'pending' AND s.task_id IS NULL) AS pending,
           count(*) FILTER (WHERE t.state = 'scheduled') AS scheduled,
           count(*) FILTER (WHERE t.state = 'running' OR t.state = 'pending' AND s.task_id IS NOT NULL) AS running,
           count(*) FILTER (WHERE t.state = 'waiting') AS waiting,
           count(*) FILTER (WHERE t.state = 'paused') AS held,
           count(*) FILTER (WHERE t.state = 'pending' AND t.parked_on > 0) AS parked
    FROM orchestrator.task t
    LEFT JOIN orchestrator._slots() s ON s.task_id = t.id
    WHERE t.live
    GROUP BY t.definition
  ) c ON c.definition = d.id;
COMMENT ON VIEW orchestrator.definition_status IS
  'Definitions that the reader may use, by version, and the unfinished tasks of them that it may see';

COMMENT ON COLUMN orchestrator.trace.event IS 'created, started, completed, failed, retrying, cancelled, paused, pausing (asked of a task that runs), resumed, released (given back, not counted), notice, timeout; of queues (with no task_id) decision; of runs also skipped, repeating, summarizing, summarized, signalled, steps_added, checkpoint, reset, compensated, undo_failed, callback_failed';
COMMENT ON COLUMN orchestrator.trace.attempt IS 'The attempt it belongs to, or the last one before it; 0: none yet';
COMMENT ON COLUMN orchestrator.task_status.state IS 'As in task; running as soon as an executor runs its step, or the first of its steps started, whatever its row says';
COMMENT ON COLUMN orchestrator.task_status.progress IS 'From 0 to 1: what the step reported by progress(); 1 when completed. Of a task with steps their weighted mean, of a map or batch the mean of its items';
COMMENT ON COLUMN orchestrator.task_status.duration IS 'Of the last attempt: of a running task until now, of a finished one altogether';
COMMENT ON COLUMN orchestrator.task_status.updated_at IS 'The last of created_at, started_at and finished_at, and of what an executor does with it';
COMMENT ON COLUMN orchestrator.task_status.worker_pid IS 'Process that runs the task, or ran its last attempt';
COMMENT ON COLUMN orchestrator.task_status.cost IS 'What calls of models cost, by set_price(), in all attempts; of a task with steps, theirs as well. So tokens_in and tokens_out';
COMMENT ON COLUMN orchestrator.task_status.rows IS 'With orchestrator.track_resources, rows that the command of the last attempt returned or changed, or that its function changed; null of what failed, of procedures and utilities';
COMMENT ON COLUMN orchestrator.task_status.cpu_time IS 'Processor time of the last attempt, with orchestrator.track_resources';
COMMENT ON COLUMN orchestrator.task_status.expire_at IS 'When the task fails unless it was started: the first of its deadline and the end of queue_timeout';
COMMENT ON COLUMN orchestrator.task_status.held_state IS 'Of a paused task, the state that resume() returns it to; paused: a running task will be paused';
COMMENT ON COLUMN orchestrator.task_status.compensation IS 'Of a run that failed or was cancelled, how its undo handlers do: none, running, done, or failed (one of them did)';
COMMENT ON COLUMN orchestrator.task_status.step IS 'Of a step, its number in its run; negative: the undo of that step';
COMMENT ON COLUMN orchestrator.task_status.item IS 'Of an item of a map or batch, its place, from 0';
COMMENT ON COLUMN orchestrator.task_status.iteration IS 'Of a step that repeats, which round it is in; of a map, how many of its items have begun';
COMMENT ON COLUMN orchestrator.task_status.jobs_ahead IS 'Ready tasks of its owner that stand before it in its queue; about, beyond the first 2,000, and as of a second ago or a little more. queue_position() counts';
COMMENT ON COLUMN orchestrator.task_status.estimated_start IS 'If tasks of its owner start in its queue as fast as they did in the last five minutes; null when none did';
COMMENT ON COLUMN orchestrator.step_status.task_id IS 'Null: the step has no row yet, or never had one';
COMMENT ON COLUMN orchestrator.step_status.run_id IS 'The task whose step it is';
COMMENT ON COLUMN orchestrator.step_status.number IS 'From 1, in the order of the definition; steps that were added come after these';
COMMENT ON COLUMN orchestrator.step_status.kind IS 'map, wait, workflow, or what its definition runs';
COMMENT ON COLUMN orchestrator.step_status.definition IS 'What it runs, by name (of a map each item); null: its handler alone';
COMMENT ON COLUMN orchestrator.step_status.state IS 'Without a row: waiting while the run lives, then skipped';
COMMENT ON COLUMN orchestrator.step_status.wait_for IS 'Name of the signal that it waits for';
COMMENT ON COLUMN orchestrator.step_status.wakes_at IS 'When its sleep, or its wait for a signal, ends by itself; when the next attempt is due';
COMMENT ON COLUMN orchestrator.step_status.added IS 'By add_steps(), not by the definition';
COMMENT ON COLUMN orchestrator.workflow_status.current_step IS 'Number of the first step that has begun and is not final';
COMMENT ON COLUMN orchestrator.workflow_status.steps IS 'An array in the order of their numbers: index, name, status, task, progress and more';
COMMENT ON COLUMN orchestrator.workflow_status.latest_traces IS 'The last ten events of the run and its steps, the newest first';
COMMENT ON COLUMN orchestrator.workflow_status.estimated_duration IS 'Of its definition, or the sum of those of its steps';
COMMENT ON COLUMN orchestrator.workflow_status.compensation IS 'none, running, done or failed';
COMMENT ON COLUMN orchestrator.batch_status.progress IS 'Share of the items that are final, and what the running ones report';
COMMENT ON COLUMN orchestrator.queue_status.oldest IS 'When the oldest task that is ready was created';
COMMENT ON COLUMN orchestrator.queue_status.held IS 'Tasks that were paused one by one, not with their queue';
COMMENT ON COLUMN orchestrator.queue_status.parked IS 'Of the pending tasks, those that wait for a limit of their definition or key';
COMMENT ON COLUMN orchestrator.queue_status.busy IS 'Executors that run its steps now, where it has max_running: never more than that';
COMMENT ON COLUMN orchestrator.queue_status.started IS 'Steps started within rate_period, where it has rate_limit';
COMMENT ON COLUMN orchestrator.definition_status.busy IS 'Executors that run it now, where it has max_running; all versions together';
COMMENT ON COLUMN orchestrator.queue_status.effective_max_running IS 'What max_running is now: of an adaptive queue, as it was last decided';
COMMENT ON COLUMN orchestrator.queue_status.decided_at IS 'Of an adaptive queue, when that was; decision says why';
COMMENT ON COLUMN orchestrator.queue_decisions.running IS 'Executors that may run steps of the queue at once from then on';
COMMENT ON COLUMN orchestrator.queue_decisions.measured IS 'Since the decision before: steps, failed, timed_out, latency_ms, per_second; and of the database: replication_lag (bytes), lock_waits, active, free_connections';
COMMENT ON COLUMN orchestrator.task_status.remote_worker IS 'The remote worker that has claimed it, as it calls itself';
COMMENT ON COLUMN orchestrator.task_status.lease_until IS 'When it is taken back from the remote worker, unless that reports';
COMMENT ON COLUMN orchestrator.worker_status.worker IS 'Of a remote worker, what it calls itself';
COMMENT ON COLUMN orchestrator.worker_status.lease_until IS 'Of a remote worker, when its task is taken back unless it reports';
COMMENT ON COLUMN orchestrator.worker_status.state IS 'Of an executor: starting, idle, busy or dead; of other workers: running';
COMMENT ON COLUMN orchestrator.worker_status.since IS 'When it entered this state';
COMMENT ON COLUMN orchestrator.worker_status.claimed IS 'Tasks that it has claimed and not finished';

-- What models were used for, by whom.
CREATE VIEW orchestrator.usage_status WITH (security_invoker = true) AS
  SELECT o.name AS owner, u.definition, u.model, u.hour, u.calls, u.tokens_in, u.tokens_out, u.cost
  FROM orchestrator.model_usage u JOIN orchestrator.owner o ON o.id = u.owner;
COMMENT ON VIEW orchestrator.usage_status IS 'Calls of models, their tokens and their cost, by role, definition, model and hour';
