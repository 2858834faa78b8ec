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
  WHERE t.state = 'completed';
COMMENT ON VIEW orchestrator.trace IS
  'Audit trail: every transition of every task. Filter by task_id, order by at';

-- Every task, with what its step reports right now. In the fast lane a row is
-- still pending while its step runs: the slot of its executor says so.
CREATE VIEW orchestrator.task_status WITH (security_invoker = true) AS
  SELECT t.id AS task_id, t.parent_id, coalesce(t.root_id, t.id) AS root_id, t.name,
         d.name AS definition, d.version, q.name AS queue, o.name AS owner,
         CASE WHEN s.task_id IS NOT NULL THEN 'running' ELSE t.state END AS state,
         CASE WHEN t.state = 'completed' THEN 1 ELSE coalesce(s.progress, 0) END AS progress,
         s.message, s.stage,
         coalesce(s.attempt, t.attempt) AS attempt, t.max_attempts, t.priority, t.key, t.run_at, t.created_at,
         coalesce(s.started_at, t.started_at) AS started_at, t.finished_at,
         greatest(t.created_at, t.started_at, t.finished_at, s.since) AS updated_at,
         coalesce(t.finished_at, CASE WHEN s.task_id IS NOT NULL OR t.state = 'running' THEN orchestrator._now() END)
           - coalesce(s.started_at, t.started_at) AS duration,
         t.input, t.output, t.error, t.metadata,
         coalesce(s.pid, t.worker) AS worker_pid,
         (t.resources ->> 'rows')::bigint AS rows,
         (t.resources ->> 'wal_bytes')::bigint AS wal_bytes,
         make_interval(secs => (t.resources ->> 'cpu_time')::float8) AS cpu_time,
         t.resources, t.deadline, t.expire_at, t.held_state, t.epoch, t.command, t.traceparent
  FROM orchestrator.task t
  LEFT JOIN orchestrator.definition d ON d.id = t.definition
  LEFT JOIN orchestrator.queue q ON q.id = t.queue
  LEFT JOIN orchestrator.owner o ON o.id = t.owner
  LEFT JOIN orchestrator._slots() s ON s.task_id = t.id AND t.live AND t.state IN ('pending', 'running');
COMMENT ON VIEW orchestrator.task_status IS
  'Every task that the reader may see, with the progress its step reports right now';

CREATE VIEW orchestrator.queue_status WITH (security_invoker = true) AS
  SELECT q.name AS queue, o.name AS owner, q.paused,
         coalesce(c.pending, 0) AS pending, coalesce(c.scheduled, 0) AS scheduled, coalesce(c.running, 0) AS running,
         c.oldest, orchestrator._now() - c.oldest AS oldest_age, c.next_run_at,
         coalesce(c.waiting, 0) AS waiting, coalesce(c.held, 0) AS held,
         q.paused_at, q.description, q.metadata, q.created_at
  FROM orchestrator.queue q
  LEFT JOIN orchestrator.owner o ON o.id = q.owner
  LEFT JOIN (
    SELECT t.queue,
           count(*) FILTER (WHERE t.state = 'pending' AND s.task_id IS NULL) AS pending,
           count(*) FILTER (WHERE t.state = 'scheduled') AS scheduled,
           count(*) FILTER (WHERE t.state = 'running' OR t.state = 'pending' AND s.task_id IS NOT NULL) AS running,
           count(*) FILTER (WHERE t.state = 'waiting') AS waiting,
           count(*) FILTER (WHERE t.state = 'paused') AS held,
           min(t.created_at) FILTER (WHERE t.state = 'pending' AND s.task_id IS NULL) AS oldest,
           min(t.run_at) FILTER (WHERE t.state = 'scheduled') AS next_run_at
    FROM orchestrator.task t
    LEFT JOIN orchestrator._slots() s ON s.task_id = t.id
    WHERE t.live
    GROUP BY t.queue
  ) c ON c.queue = q.id;
COMMENT ON VIEW orchestrator.queue_status IS
  'Queues that the reader may use, and the unfinished tasks in them that it may see. held counts tasks that were paused one by one';

CREATE VIEW orchestrator.worker_status WITH (security_invoker = true) AS
  SELECT s.pid, s.kind, pg_get_userbyid(s.role) AS role, s.task_id, s.state, s.since, s.progress, s.message, s.stage,
         s.attempt, s.started_at, s.claimed
  FROM orchestrator._slots() s;
COMMENT ON VIEW orchestrator.worker_status IS
  'Workers of this database and what they do now; empty unless the library is preloaded';

CREATE VIEW orchestrator.definition_status WITH (security_invoker = true) AS
  SELECT d.name AS definition, d.version, o.name AS owner, d.is_current, d.kind, d.handler, q.name AS queue,
         coalesce(c.pending, 0) AS pending, coalesce(c.scheduled, 0) AS scheduled, coalesce(c.running, 0) AS running,
         coalesce(c.waiting, 0) AS waiting, coalesce(c.held, 0) AS held,
         d.priority, d.max_attempts, d.backoff, d.retry_delay, d.max_retry_delay, d.timeout, d.queue_timeout,
         d.timeout_policy, d.notify, d.description, d.estimated_duration, d.metadata, d.created_at
  FROM orchestrator.definition d
  LEFT JOIN orchestrator.owner o ON o.id = d.owner
  LEFT JOIN orchestrator.queue q ON q.id = d.queue
  LEFT JOIN (
    SELECT t.definition,
           count(*) FILTER (WHERE t.state = 'pending' AND s.task_id IS NULL) AS pending,
           count(*) FILTER (WHERE t.state = 'scheduled') AS scheduled,
           count(*) FILTER (WHERE t.state = 'running' OR t.state = 'pending' AND s.task_id IS NOT NULL) AS running,
           count(*) FILTER (WHERE t.state = 'waiting') AS waiting,
           count(*) FILTER (WHERE t.state = 'paused') AS held
    FROM orchestrator.task t
    LEFT JOIN orchestrator._slots() s ON s.task_id = t.id
    WHERE t.live
    GROUP BY t.definition
  ) c ON c.definition = d.id;
COMMENT ON VIEW orchestrator.definition_status IS
  'Definitions that the reader may use, by version, and the unfinished tasks of them that it may see';

COMMENT ON COLUMN orchestrator.trace.event IS 'created, started, completed, failed, retrying, cancelled, paused, resumed, released (given back, not counted), notice, timeout';
COMMENT ON COLUMN orchestrator.trace.attempt IS 'The attempt it belongs to, or the last one before it; 0: none yet';
COMMENT ON COLUMN orchestrator.task_status.state IS 'As in task; running as soon as an executor runs its step, whatever its row says';
COMMENT ON COLUMN orchestrator.task_status.progress IS 'From 0 to 1: what the step reported by progress(); 1 when completed';
COMMENT ON COLUMN orchestrator.task_status.duration IS 'Of the last attempt: of a running task until now, of a finished one altogether';
COMMENT ON COLUMN orchestrator.task_status.updated_at IS 'The last of created_at, started_at and finished_at, and of what an executor does with it';
COMMENT ON COLUMN orchestrator.task_status.worker_pid IS 'Process that runs the task, or ran its last attempt';
COMMENT ON COLUMN orchestrator.task_status.cpu_time IS 'Processor time of the last attempt, with orchestrator.track_resources';
COMMENT ON COLUMN orchestrator.task_status.expire_at IS 'When the task fails unless it was started: the first of its deadline and the end of queue_timeout';
COMMENT ON COLUMN orchestrator.task_status.held_state IS 'Of a paused task, the state that resume() returns it to; paused: a running task will be paused';
COMMENT ON COLUMN orchestrator.queue_status.oldest IS 'When the oldest task that is ready was created';
COMMENT ON COLUMN orchestrator.queue_status.held IS 'Tasks that were paused one by one, not with their queue';
COMMENT ON COLUMN orchestrator.worker_status.state IS 'Of an executor: starting, idle, busy or dead; of other workers: running';
COMMENT ON COLUMN orchestrator.worker_status.since IS 'When it entered this state';
COMMENT ON COLUMN orchestrator.worker_status.claimed IS 'Tasks that it has claimed and not finished';
