-- cancel(), pause(), resume(), retry() of one task.
\ir lib/setup.psql
SELECT plan(117);

CREATE ROLE control_app LOGIN;
CREATE ROLE control_other LOGIN;
CREATE ROLE control_viewer LOGIN;
CREATE ROLE control_boss LOGIN;
SELECT orchestrator.grant_usage('control_app'), orchestrator.grant_usage('control_other'), orchestrator.grant_usage('control_viewer', 'viewer'),
       orchestrator.grant_usage('control_boss', 'admin');
SELECT orchestrator.define('job', 'SELECT 1', 'sql', retry_delay => '10 s', retry_jitter => 0), orchestrator.define('queued', 'SELECT 1', 'sql', queue_timeout => '1 min');
CREATE FUNCTION running(definition text DEFAULT 'job') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint := orchestrator.enqueue($1);
BEGIN PERFORM claim(1000); RETURN v_id; END $$;
SELECT current_user AS me \gset

-- Cancel
SELECT orchestrator.enqueue('job') AS task \gset
SELECT is(orchestrator.cancel(:task, 'not needed'), 'cancelled', 'cancel() gives the new state');
SELECT is(jsonb_strip_nulls(to_jsonb(t) - '{id,created_at,finished_at,definition,owner}'::text[]),
          jsonb_build_object('state', 'cancelled', 'live', false, 'attempt', 0, 'epoch', 0, 'queue', 1, 'priority', 0, 'max_attempts', 3, 'input', '{}'::jsonb,
          'error', jsonb_build_object('sqlstate', 'OR001', 'message', format('cancelled by "%s"', :'me'), 'detail', 'not needed')), 'its finished row says who, and why')
FROM task(:task) t;
SELECT is((task(:task)).finished_at IS NOT NULL, true, 'and when');
SELECT is(story(:task), 'created 0, cancelled 0', 'its story');
SELECT is(detail_of(:task, 'cancelled'), jsonb_build_object('by', :'me', 'reason', 'not needed'), 'the trace has it, too');
SELECT written() AS before \gset
SELECT is(orchestrator.cancel(:task, 'again'), 'cancelled', 'cancelling again is no error');
SELECT is(written(), :'before', 'and changes nothing');
SELECT running() AS task \gset
SELECT is(orchestrator.cancel(:task), 'cancelled', 'a running task is cancelled');
SELECT is(story(:task), 'created 0, started 1, cancelled 1', 'its story');
SELECT is((task(:task)).epoch, 2, 'and its worker is out of date');
SELECT is(orchestrator._settle_completed(:task, 1, '1', NULL, NULL), false, 'its report is refused');
SELECT is(orchestrator._settle_failed(:task, 1, 'error', NULL, NULL, NULL), NULL, 'of either kind');
SELECT is(state_of(:task) || coalesce((task(:task)).output::text, '-'), 'cancelled-', 'so that it stays cancelled');
SELECT is((task(:task)).error ? 'detail', false, 'no reason is no reason');
SELECT orchestrator.enqueue('job') AS task \gset
SELECT orchestrator.cancel(:task, repeat('x', 5000));
SELECT is(length((task(:task)).error ->> 'detail'), 1000, 'a long reason is cut');
SELECT orchestrator.enqueue('job', deadline => orchestrator._now() + interval '1 h') AS task \gset
SELECT orchestrator.pause(:task), orchestrator.cancel(:task);
SELECT is(state_of(:task) || coalesce((task(:task)).expire_at::text, '-'), 'cancelled-', 'a paused task is cancelled, and held and expiring no more');

-- Pause and resume
SELECT orchestrator.enqueue('queued', deadline => orchestrator._now() + interval '1 h') AS task \gset
SELECT orchestrator.enqueue('job') AS next \gset
SELECT is(orchestrator.pause(:task), 'paused', 'pause() gives the new state');
SELECT is(state_of(:task), 'paused (pending)', 'and keeps the old one');
SELECT is(t.sort_key IS NULL AND t.expire_at = t.deadline, true, 'it is not ready, and only its deadline counts') FROM task(:task) t;
SELECT is(story(:task) || (detail_of(:task, 'paused') ->> 'by'), 'created 0, paused 0' || :'me', 'its story');
SELECT is(claim(10), array[:next]::bigint[], 'it is not claimed');
SELECT written() AS before \gset
SELECT is(orchestrator.pause(:task), 'paused', 'pausing again is no error');
SELECT is(orchestrator.pause(:task, true), 'paused', 'nor is forcing it');
SELECT is(written(), :'before', 'and changes nothing');
SELECT later(600);
SELECT is(orchestrator.resume(:task), 'pending', 'resume() gives the new state');
SELECT is(story(:task) || (detail_of(:task, 'resumed') ->> 'by'), 'created 0, paused 0, resumed 0' || :'me', 'its story');
SELECT is(state_of(:task) || (task(:task)).epoch, 'pending0', 'nothing is held any more');
SELECT is(abs((task(:task)).sort_key - orchestrator._sort_key(orchestrator._now(), 0)) < 60000000, true, 'it stands where one does that became ready now');
SELECT is((task(:task)).expire_at - time_of(:task, 'resumed'), '1 min'::interval, 'its time in the queue begins anew');
SELECT written() AS before \gset
SELECT is(orchestrator.resume(:task), 'pending', 'resuming what is not paused is no error');
SELECT is(written(), :'before', 'and changes nothing');
SELECT orchestrator.enqueue('job', delay => '1 hour') AS task \gset
SELECT orchestrator.pause(:task);
SELECT is(state_of(:task), 'paused (scheduled)', 'a scheduled task is paused');
SELECT is(orchestrator.resume(:task), 'scheduled', 'and scheduled again');
SELECT orchestrator.pause(:task), later(3601);
SELECT is(orchestrator._promote_due(10), 0, 'paused, it is not due');
SELECT is(orchestrator.resume(:task), 'pending', 'resumed after its time it is ready at once');
SELECT is((task(:task)).sort_key IS NOT NULL, true, 'with its place in the queue');
SELECT is(array[:task::bigint] <@ claim(100), true, 'and is claimed');
SELECT orchestrator.enqueue('queued', delay => '1 hour') AS task \gset
SELECT orchestrator.pause(:task), orchestrator.resume(:task);
SELECT is((task(:task)).expire_at - (task(:task)).run_at, '1 min'::interval, 'a scheduled one expires after its time, not after now');
SELECT orchestrator.enqueue('queued', deadline => orchestrator._now() + interval '1 h') AS task \gset
UPDATE orchestrator.task_live SET state = 'waiting', sort_key = NULL, expire_at = deadline WHERE id = :task;
SELECT orchestrator.pause(:task);
SELECT is(orchestrator.resume(:task), 'waiting', 'a waiting task waits again');
SELECT is(t.sort_key IS NULL AND t.expire_at = t.deadline, true, 'and is neither ready nor expiring before its deadline') FROM task(:task) t;

-- Pause of a running task
SELECT running() AS task \gset
SELECT is(orchestrator.pause(:task), 'running', 'a running task goes on');
SELECT is(state_of(:task), 'running (paused)', 'with a mark');
SELECT is(array[t.attempt, t.epoch, t.worker], '{1,1,4711}', 'nothing else is touched') FROM task(:task) t;
SELECT is(story(:task) || (detail_of(:task, 'pausing') ->> 'by'), 'created 0, started 1, pausing 1' || :'me', 'its story says who marked it');
SELECT is(orchestrator.pause(:task), 'running', 'marking again is no error');
SELECT is(orchestrator.resume(:task), 'running', 'the mark is taken off');
SELECT is(state_of(:task), 'running', 'altogether');
SELECT is(story(:task) || (detail_of(:task, 'resumed') ->> 'by'), 'created 0, started 1, pausing 1, resumed 1' || :'me', 'its story: marked once, and who took the mark off');
SELECT is(orchestrator.resume(:task), 'running', 'resuming what is not marked is no error');
SELECT is(story(:task), 'created 0, started 1, pausing 1, resumed 1', 'what has no effect has no story');
SELECT is(settle_failed(:task), 'scheduled', 'and it is retried as ever');
SELECT running() AS task \gset
SELECT is(orchestrator.pause(:task, true), 'paused', 'with force a running task is stopped');
SELECT is(state_of(:task), 'paused (pending)', 'to be claimed again later');
SELECT is(array[t.attempt, t.epoch]::text || coalesce(t.worker, 0) || coalesce(t.started_at::text, '-'), '{0,2}0-', 'the attempt is not counted; its worker is out of date') FROM task(:task) t;
SELECT is(story(:task), 'created 0, started 1, paused 1', 'its story');
SELECT is(orchestrator._settle_completed(:task, 1, '1', NULL, NULL), false, 'the report of the stopped step is refused');
SELECT orchestrator.resume(:task), claim(100);
SELECT is(array[t.attempt, t.epoch], '{1,3}', 'the attempt is made again') FROM task(:task) t;
SELECT settle_completed(:task);
SELECT is(story(:task), 'created 0, started 1, paused 1, resumed 0, started 1, completed 1', 'its story');
SELECT running() AS task \gset
SELECT orchestrator.pause(:task);
SELECT is(orchestrator.pause(:task, true), 'paused', 'a marked task can still be forced');
SELECT is(story(:task), 'created 0, started 1, pausing 1, paused 1', 'its story');
SELECT is(orchestrator.pause(:task, NULL), 'paused', 'a null is no force');
SELECT running() AS task \gset
SELECT is(orchestrator.pause(:task, NULL), 'running', 'indeed');

-- Retry
SELECT orchestrator.define('once', 'SELECT 1', 'sql', max_attempts => 1);
SELECT running('once') AS task \gset
SELECT settle_failed(:task);
SELECT is(orchestrator.retry(:task), 'pending', 'retry() gives the new state');
SELECT is(jsonb_strip_nulls(to_jsonb(t) - '{id,created_at,changed_at,started_at,sort_key,definition,owner,error}'::text[]),
          '{"state": "pending", "live": true, "attempt": 1, "epoch": 2, "queue": 1, "priority": 0, "max_attempts": 2, "input": {}}', 'one more attempt; the epoch goes on')
FROM task(:task) t;
SELECT is((SELECT count(*) FROM orchestrator.task WHERE id = :task), 1::bigint, 'it is among the living only');
SELECT is((task(:task)).error ->> 'sqlstate', '22012', 'the last error can still be seen');
SELECT is(abs((task(:task)).sort_key - orchestrator._sort_key(orchestrator._now(), 0)) < 60000000, true, 'it is ready since now');
SELECT claim(100);
SELECT settle_failed(:task);
SELECT is(state_of(:task), 'failed', 'the attempts run out again');
SELECT is(orchestrator.retry(:task, 5), 'pending', 'more of them');
SELECT is((task(:task)).max_attempts, 7, 'attempt + n');
SELECT claim(100);
SELECT is(settle_completed(:task, '1'), true, 'and it succeeds');
SELECT is(story(:task), 'created 0, started 1, failed 1, retrying 1, started 2, failed 2, retrying 2, started 3, completed 3', 'its story');
SELECT is(detail_of(:task, 'retrying'), jsonb_build_object('by', :'me'), 'tells who retried');
SELECT orchestrator.enqueue('queued', delay => '1 h', deadline => orchestrator._now() + interval '2 h') AS task \gset
SELECT orchestrator.cancel(:task);
SELECT is(orchestrator.retry(:task), 'scheduled', 'cancelled before its time it is scheduled again');
SELECT is((task(:task)).max_attempts, 1, 'with one attempt more than it had, not than it might have had');
SELECT is((task(:task)).sort_key IS NULL AND (task(:task)).expire_at = (task(:task)).run_at + interval '1 min', true, 'for the same time');
SELECT orchestrator.cancel(:task), later(7201);
SELECT is(orchestrator.retry(:task), 'pending', 'after its time it is ready');
SELECT is(t.deadline IS NULL AND t.run_at IS NULL, true, 'a deadline that passed no longer counts') FROM task(:task) t;
SELECT is(orchestrator._expire(100) * 0 + (state_of(:task) = 'pending')::int, 1, 'and does not end it at once');

-- Refused
SELECT running() AS completed \gset
SELECT settle_completed(:completed);
SELECT orchestrator.enqueue('once') AS cancelled \gset
SELECT orchestrator.cancel(:cancelled);
SELECT running('once') AS failed \gset
SELECT settle_failed(:failed);
SELECT orchestrator.enqueue('job') AS pending \gset
SELECT written() AS before \gset
SELECT is(error_of(format('SELECT orchestrator.%s(%s)', verb, id)), format('55000: cannot %s task %s: it is %s [%s]', verb, id, state, hint), format('%s() of a %s task', verb, state))
FROM (VALUES
  ('cancel', :completed, 'completed', 'A finished task stays as it is.'),
  ('cancel', :failed,    'failed',    'A finished task stays as it is.'),
  ('pause',  :completed, 'completed', 'Only a task that is not finished can be paused.'),
  ('pause',  :cancelled, 'cancelled', 'Only a task that is not finished can be paused.'),
  ('resume', :completed, 'completed', 'Only a paused task can be resumed.'),
  ('resume', :failed,    'failed',    'Use orchestrator.retry() to run it again.'),
  ('resume', :cancelled, 'cancelled', 'Use orchestrator.retry() to run it again.'),
  ('retry',  :completed, 'completed', 'Only a failed or cancelled task can be retried.'),
  ('retry',  :pending,   'pending',   'Only a failed or cancelled task can be retried.')
) refused(verb, id, state, hint);
SELECT is(error_of(format('SELECT orchestrator.retry(%s, %s)', :failed, n)), '22023: attempts must be between 1 and 10000', format('retry() with %s attempts', n))
FROM unnest('{0,-1,10001}'::int[]) n;
SELECT is(error_of(format('SELECT orchestrator.retry(%s, NULL)', :failed)), '22023: attempts must be between 1 and 10000', 'retry() with no number');
CREATE FUNCTION missing(id text) RETURNS text LANGUAGE sql AS $$
  SELECT format('42704: task %s does not exist [A task that was enqueued by a transaction under way cannot be seen before it commits.]', $1);
$$;
SELECT is(error_of(format('SELECT orchestrator.%s(987654321)', verb)), missing('987654321'), verb || '() of an unknown task') FROM unnest('{cancel,pause,resume,retry}'::text[]) verb;
SELECT is(error_of(format('SELECT orchestrator.%s(NULL)', verb)), missing('null'), verb || '() of null') FROM unnest('{cancel,pause,resume,retry}'::text[]) verb;

-- Whose tasks
SELECT is(written(), :'before', 'what was refused changes nothing');
SELECT value_of($$SELECT orchestrator.run('SELECT 1')$$, 'control_app') AS task \gset
SELECT written() AS before \gset
SELECT is(error_of(format('SELECT orchestrator.%s(%s)', verb, :task), 'control_other'), missing(:task::text), verb || '() of a stranger''s task: it does not exist')
FROM unnest('{cancel,pause,resume,retry}'::text[]) verb;
SELECT is(error_of(format('SELECT orchestrator.%s(%s)', verb, :task), 'control_viewer'), '42501: permission denied for function ' || verb, 'a viewer may not ' || verb)
FROM unnest('{cancel,pause,resume,retry}'::text[]) verb;
SELECT is(written(), :'before', 'nobody touched it');
SELECT is(value_of(format('SELECT orchestrator.pause(%s)', :task), 'control_app'), 'paused', 'its owner pauses it');
SELECT is(value_of(format('SELECT orchestrator.resume(%s)', :task), 'control_boss'), 'pending', 'an administrator resumes it');
SELECT is(value_of(format('SELECT orchestrator.cancel(%s)', :task), 'control_boss'), 'cancelled', 'and cancels it');
SELECT is((task(:task)).error ->> 'message', 'cancelled by "control_boss"', 'which is told');
SELECT is(value_of(format('SELECT orchestrator.retry(%s)', :task), 'control_app'), 'pending', 'its owner retries it');
SELECT is((task(:task)).owner, owner_id('control_app'), 'it is still its own');
GRANT control_app TO control_other;
SELECT is(value_of(format('SELECT orchestrator.cancel(%s)', :task), 'control_other'), 'cancelled', 'a member of the role may, too');

SELECT * FROM finish();
ROLLBACK;
