-- The views: their columns, and what they show.
\ir lib/setup.psql
SELECT plan(38);

-- Columns that the contract names, in its order; others may follow or stand between.
CREATE FUNCTION contract(view text, columns text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(a.attname::text, ' ' ORDER BY a.attnum) FROM pg_attribute a
  WHERE a.attrelid = ('orchestrator.' || $1)::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY (string_to_array($2, ' '));
$$;
SELECT is(contract(view, columns), columns, 'the columns of ' || view)
FROM (VALUES
  ('task_status', 'task_id parent_id root_id name definition version queue owner state progress message stage attempt max_attempts priority key run_at created_at started_at '
                  'finished_at updated_at duration input output error metadata worker_pid rows wal_bytes cpu_time'),
  ('queue_status', 'queue paused pending scheduled running oldest'),
  ('worker_status', 'pid kind role task_id state since progress'),
  ('definition_status', 'definition version owner'),
  ('trace', 'task_id at event attempt detail'),
  ('task', 'id state')
) c(view, columns);
SELECT is((SELECT array_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) FROM pg_attribute a
           WHERE a.attrelid = 'orchestrator.task_status'::regclass AND a.attname IN ('task_id', 'state', 'progress', 'duration', 'input', 'rows', 'cpu_time', 'updated_at')),
  array['task_id bigint', 'state orchestrator.task_state', 'progress double precision', 'updated_at timestamp with time zone', 'duration interval', 'input jsonb', 'rows bigint', 'cpu_time interval'], 'their types');
SELECT is((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = 'orchestrator.task_status'::regclass AND a.attnum BETWEEN 1 AND 30),
  string_to_array('task_id parent_id root_id name definition version queue owner state progress message stage attempt max_attempts priority key run_at created_at started_at '
                  'finished_at updated_at duration input output error metadata worker_pid rows wal_bytes cpu_time', ' '), 'task_status begins with them');
SELECT is((SELECT array_agg(relname::text ORDER BY relname) FROM pg_class WHERE relnamespace = 'orchestrator'::regnamespace AND relkind = 'v' AND 'security_invoker=true' = ANY (reloptions)),
  '{alert_status,batch_status,definition_stats,definition_status,queue_decisions,queue_stats,queue_status,quota_status,retention_status,schedule_status,stats_by_period,step_status,task_status,trace,usage_status,worker_status,workflow_status}', 'every view runs with the rights of its reader');

SELECT orchestrator.define_queue('q', description => 'words', metadata => '{"m": 1}');
SELECT orchestrator.define('job', 'SELECT 1', 'sql', 'q', priority => 2, max_attempts => 4, retry_delay => '1 h', description => 'd');
SELECT orchestrator.define('job', 'SELECT 2', 'sql', 'q', priority => 2, max_attempts => 4, retry_delay => '1 h', description => 'd');
CREATE FUNCTION status(id bigint) RETURNS orchestrator.task_status LANGUAGE sql AS $$SELECT s.* FROM orchestrator.task_status s WHERE s.task_id = $1$$;

-- task_status
SELECT orchestrator.enqueue('job', '{"i": 1}', 'n', key => 'k', metadata => '{"m": 2}', traceparent => 'tp') AS task \gset
SELECT is(jsonb_strip_nulls(to_jsonb(s) - '{created_at,updated_at,task_id,root_id,owner}'::text[]),
  '{"name": "n", "definition": "job", "version": 2, "queue": "q", "state": "pending", "progress": 0, "jobs_ahead": 0, "attempt": 0, "max_attempts": 4, "priority": 2, "key": "k",
    "input": {"i": 1}, "metadata": {"m": 2}, "epoch": 0, "traceparent": "tp", "compensation": "none"}', 'a pending task')
FROM status(:task) s;
SELECT is(s.task_id = :task AND s.root_id = :task AND s.parent_id IS NULL AND s.owner = current_user AND s.updated_at = s.created_at, true, 'it is its own root') FROM status(:task) s;
SELECT claim(1, 'q');
SELECT is(s.state || ' ' || s.attempt || ' ' || s.worker_pid || ' ' || s.progress, 'running 1 4711 0', 'claimed') FROM status(:task) s;
SELECT is(s.duration >= '0' AND s.duration < '1 minute' AND s.updated_at = s.started_at, true, 'a running task has a duration so far') FROM status(:task) s;
SELECT later(30);
SELECT is((status(:task)).duration BETWEEN '30 s' AND '2 minutes', true, 'which grows');
SELECT orchestrator._settle_completed(:task, 1, '{"o": 1}', NULL, '{"rows": 3, "wal_bytes": 400, "cpu_time": 0.25, "buffers": 5}');
SELECT is(s.state || ' ' || s.progress || ' ' || s.output::text || ' ' || s.rows || ' ' || s.wal_bytes || ' ' || s.cpu_time || ' ' || (s.resources ->> 'buffers'), 'completed 1 {"o": 1} 3 400 00:00:00.25 5', 'completed') FROM status(:task) s;
SELECT is(s.duration = s.finished_at - s.started_at AND s.updated_at = s.finished_at, true, 'and its duration') FROM status(:task) s;
SELECT orchestrator.enqueue('job') AS task \gset
SELECT (status(:task)).updated_at AS before \gset
SELECT later(1), orchestrator.pause(:task);
SELECT is((status(:task)).updated_at > :'before' AND (status(:task)).updated_at <= orchestrator._now(), true, 'pause() is a change');
SELECT (status(:task)).updated_at AS before \gset
SELECT later(1), orchestrator.resume(:task);
SELECT is((status(:task)).updated_at > :'before', true, 'so is resume()');
SELECT claim(1, 'q');
SELECT (status(:task)).updated_at AS before \gset
SELECT later(1), orchestrator.pause(:task);
SELECT is((status(:task)).updated_at > :'before', true, 'also while it runs');
SELECT orchestrator.resume(:task);
SELECT (status(:task)).updated_at AS before \gset
SELECT later(1), settle_failed(:task);
SELECT is((status(:task)).updated_at > :'before', true, 'so is the end of an attempt');
SELECT is(s.state || ' ' || s.attempt || ' ' || (s.error ->> 'sqlstate') || coalesce(s.worker_pid, 0) || coalesce(s.duration::text, '-'), 'scheduled 1 220120-', 'between attempts: an error, no worker, no duration') FROM status(:task) s;
SELECT orchestrator.pause(:task);
SELECT is(s.state || ' ' || s.held_state, 'paused scheduled', 'paused') FROM status(:task) s;
SELECT orchestrator.cancel(:task);
SELECT is(s.state || ' ' || s.progress || (s.error ->> 'sqlstate'), 'cancelled 0OR001', 'cancelled') FROM status(:task) s;
SELECT orchestrator.run('SELECT 3') AS task \gset
SELECT is(s.definition || ' ' || s.command || ' ' || s.queue, 'orchestrator.run.sql SELECT 3 default', 'a one-off command') FROM status(:task) s;
SELECT orchestrator.cancel(:task);
SELECT is((status(:task)).duration, NULL, 'one that was never started has no duration');
SELECT is((SELECT count(*) FROM orchestrator.task_status), (SELECT count(*) FROM orchestrator.task), 'each task stands there once');
-- A task of a definition or queue that is gone is still shown.
UPDATE orchestrator.task_finished SET definition = -1, queue = -1, owner = -1 WHERE id = :task;
SELECT is(s.state || coalesce(s.definition, '-') || coalesce(s.queue, '-') || coalesce(s.owner, '-'), 'cancelled---', 'whatever else is missing') FROM status(:task) s;

-- queue_status and definition_status
SELECT orchestrator.enqueue('job') FROM generate_series(1, 6);
SELECT orchestrator.enqueue('job', delay => '2 h') AS s2, orchestrator.enqueue('job', delay => '1 h') AS s1 \gset
SELECT claim(1, 'q');
SELECT orchestrator.pause(max(id)) FROM orchestrator.task WHERE state = 'pending';
UPDATE orchestrator.task_live SET state = 'waiting', sort_key = NULL WHERE id = (SELECT max(id) FROM orchestrator.task_live WHERE state = 'pending');
SELECT is(to_jsonb(s) - '{owner,oldest,oldest_age,next_run_at,created_at,effective_max_running,decided_at,decision}'::text[],
  '{"parked": 0, "busy": 0, "started": 0, "max_running": null, "rate_limit": null, "rate_period": null, "queue": "q", "paused": false, "pending": 3, "scheduled": 2, "running": 1, "waiting": 1, "held": 1, "paused_at": null, "description": "words", "metadata": {"m": 1}}', 'the counts of a queue')
FROM orchestrator.queue_status s WHERE queue = 'q';
SELECT is(s.oldest, (SELECT min(created_at) FROM orchestrator.task WHERE state = 'pending'), 'the oldest that is ready') FROM orchestrator.queue_status s WHERE queue = 'q';
SELECT is(s.next_run_at, (task(:s1)).run_at, 'the next that will be') FROM orchestrator.queue_status s WHERE queue = 'q';
SELECT later(600);
SELECT is(s.oldest_age BETWEEN '10 minutes' AND '11 minutes', true, 'and for how long it has waited') FROM orchestrator.queue_status s WHERE queue = 'q';
SELECT orchestrator.pause_queue('q');
SELECT is(s.paused AND s.paused_at IS NOT NULL, true, 'a paused queue') FROM orchestrator.queue_status s WHERE queue = 'q';
SELECT is(array[s.pending, s.scheduled, s.running]::text || coalesce(s.oldest::text, '-') || s.owner, '{0,0,0}-', 'an empty queue, everybody''s') FROM orchestrator.queue_status s WHERE queue = 'default';
SELECT results_eq($$SELECT version, is_current, kind, handler, queue, pending, scheduled, running, waiting, held, priority, max_attempts FROM orchestrator.definition_status WHERE definition = 'job' ORDER BY version$$,
  $$VALUES (1, false, 'sql', 'SELECT 1', 'q', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 2, 4), (2, true, 'sql', 'SELECT 2', 'q', 3, 2, 1, 1, 1, 2, 4)$$, 'definitions by version, and their tasks');

-- The live overlay
SELECT is((SELECT count(*) FROM orchestrator.worker_status WHERE kind = 'executor'), 0::bigint, 'no executor runs here');
SELECT is((SELECT count(*) FROM orchestrator.task_status WHERE message IS NOT NULL OR stage IS NOT NULL), 0::bigint, 'so no task reports progress');
SELECT is(to_jsonb(c), '{"task_id": null, "parent_id": null, "definition": null, "attempt": null, "max_attempts": null, "key": null, "metadata": null, "deadline": null}', 'and this is no step') FROM orchestrator.current_task() c;

SELECT matches(error_of('SELECT orchestrator.progress(0.5)'), '^55000: progress\(\) can be called only inside a step \[To test a handler by hand', 'nor can there be progress');

SELECT * FROM finish();
ROLLBACK;
