-- _settle_completed(), _settle_failed(): every way an attempt can end.
\ir lib/setup.psql
SELECT plan(117);

CREATE FUNCTION define(name text, more text DEFAULT '') RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE format('SELECT orchestrator.define(%L, ''SELECT 1'', ''sql'' %s)', $1, $2); END $$;
-- A task of a definition, claimed.
CREATE FUNCTION running(definition text, options text DEFAULT '') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint;
BEGIN
  EXECUTE format('SELECT orchestrator.enqueue(%L %s)', $1, $2) INTO v_id;
  PERFORM claim(1000);
  RETURN v_id;
END $$;
-- Make it due, and claim it again.
CREATE FUNCTION again(wait_seconds int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM later($1); PERFORM orchestrator._promote_due(1000); PERFORM claim(1000); END $$;
-- How an attempt ended for good: the reason in the trace.
CREATE FUNCTION final(id bigint) RETURNS text LANGUAGE sql AS $$SELECT state_of($1) || coalesce(' ' || (detail_of($1, 'failed') ->> 'final'), '')$$;

-- Completed
SELECT define('job', ', retry_jitter => 0, retry_delay => ''10 s''');
SELECT running('job') AS task \gset
SELECT is(orchestrator._settle_completed(:task, 1, '{"x": 1}', NULL, NULL), true, 'a step succeeded');
SELECT is(jsonb_strip_nulls(to_jsonb(t) - '{id,created_at,changed_at,started_at,finished_at,definition,owner}'::text[]),
          '{"state": "completed", "live": false, "attempt": 1, "epoch": 1, "worker": 4711, "queue": 1, "priority": 0, "max_attempts": 3, "input": {}, "output": {"x": 1}}', 'its finished row')
FROM task(:task) t;
SELECT is(t.finished_at BETWEEN t.started_at AND orchestrator._now(), true, 'finished now') FROM task(:task) t;
SELECT is((SELECT count(*) FROM orchestrator.task_live WHERE id = :task), 0::bigint, 'it is not among the living');
SELECT is(story(:task), 'created 0, started 1, completed 1', 'its story');
SELECT is((SELECT count(*) FROM orchestrator.trace_log WHERE task_id = :task), 0::bigint, 'of which nothing is written');
SELECT is(orchestrator._settle_completed(:task, 1, '2', NULL, NULL), false, 'it is completed once');
SELECT is((task(:task)).output, '{"x": 1}', 'and keeps its output');
SELECT running('job') AS task \gset
SELECT orchestrator._settle_completed(:task, 1, NULL, '2020-01-01', '{"rows": 3}');
SELECT is(t.started_at || t.resources::text || coalesce(t.output::text, '-'), '2020-01-01 00:00:00+00{"rows": 3}-', 'with the time of its step and what it used') FROM task(:task) t;

-- An error, and the retry
SELECT running('job') AS task \gset
SELECT is(orchestrator._settle_failed(:task, 1, 'error', '{"sqlstate": "22012", "message": "division by zero", "hint": "h"}', NULL, '{"rows": 1}'), 'scheduled', 'an error: the task is scheduled again');
SELECT is(jsonb_strip_nulls(to_jsonb(t) - '{id,created_at,changed_at,started_at,run_at,definition,owner}'::text[]),
          '{"state": "scheduled", "live": true, "attempt": 1, "epoch": 2, "queue": 1, "priority": -1, "max_attempts": 3, "input": {}, "resources": {"rows": 1},
            "error": {"sqlstate": "22012", "message": "division by zero", "hint": "h"}}', 'its row: no worker, the error, the next epoch')
FROM task(:task) t;
SELECT is((task(:task)).run_at - time_of(:task, 'retrying'), '10 s'::interval, 'after retry_delay');
SELECT is(story(:task), 'created 0, started 1, retrying 1', 'its story');
SELECT is(detail_of(:task, 'retrying') - 'duration_ms', jsonb_build_object('sqlstate', '22012', 'message', 'division by zero', 'hint', 'h', 'outcome', 'error', 'run_at', (task(:task)).run_at), 'with the error and when it goes on');
SELECT cmp_ok((detail_of(:task, 'retrying') ->> 'duration_ms')::numeric, '>=', 0::numeric, 'and how long it took');
SELECT is((SELECT at FROM orchestrator.trace WHERE task_id = :task AND event = 'started'), (task(:task)).started_at, 'started when it started');
SELECT again(11);
SELECT is(array[attempt, epoch], '{2,3}', 'the second attempt') FROM task(:task);
SELECT settle_failed(:task);
SELECT is((task(:task)).run_at - time_of(:task, 'retrying'), '20 s'::interval, 'the delay doubles');
SELECT again(21);
SELECT is(settle_completed(:task, '1'), true, 'the third succeeds');
SELECT is(t.attempt || t.output::text || coalesce(t.error::text, '-'), '31-', 'a completed task has no error') FROM task(:task) t;
SELECT is(story(:task), 'created 0, started 1, retrying 1, started 2, retrying 2, started 3, completed 3', 'each attempt is in its story');
SELECT running('job') AS task \gset
SELECT orchestrator._settle_failed(:task, 1, 'error', '{"sqlstate": "22012"}', '2020-01-01', NULL);
SELECT is(t.started_at, '2020-01-01', 'an error with the time of its step') FROM task(:task) t;

-- Attempts run out
SELECT running('job') AS task \gset
SELECT settle_failed(:task), again(11);
SELECT settle_failed(:task), again(21);
SELECT is(settle_failed(:task), 'failed', 'the last attempt');
SELECT is(final(:task), 'failed max_attempts', 'says why it was the last');
SELECT is(jsonb_strip_nulls(to_jsonb(t) - '{id,created_at,changed_at,started_at,finished_at,run_at,definition,owner}'::text[]),
          '{"state": "failed", "live": false, "attempt": 3, "epoch": 5, "worker": 4711, "queue": 1, "priority": -2, "max_attempts": 3, "input": {}, "error": {"sqlstate": "22012", "message": "no"}}', 'its finished row')
FROM task(:task) t;
SELECT is(story(:task), 'created 0, started 1, retrying 1, started 2, retrying 2, started 3, failed 3', 'its story');
SELECT define('once', ', max_attempts => 1');
SELECT running('once') AS task \gset
SELECT is(settle_failed(:task), 'failed', 'one attempt is one attempt');

-- How long to wait
SELECT define('linear', ', backoff => ''linear'', retry_delay => ''3 s'', max_retry_delay => ''10 s'', retry_jitter => 0');
SELECT define('fixed', ', backoff => ''fixed'', retry_delay => ''3 s'', retry_jitter => 0');
SELECT define('exponential', ', retry_delay => ''3 s'', max_retry_delay => ''40 s'', retry_jitter => 0');
SELECT define('jitter', ', backoff => ''fixed'', retry_delay => ''100 s'', max_retry_delay => ''105 s'', retry_jitter => 0.1');
SELECT define('wild', ', backoff => ''fixed'', retry_delay => ''100 s'', retry_jitter => 1');
SELECT define('long', ', retry_delay => ''100 years'', retry_jitter => 0');
CREATE FUNCTION delays(definition text, attempts int[]) RETURNS float8[] LANGUAGE sql AS $$
  SELECT array_agg(extract(epoch FROM orchestrator._retry_delay(d, a))::float8 ORDER BY o)
  FROM orchestrator.definition d, unnest($2) WITH ORDINALITY u(a, o) WHERE d.name = $1;
$$;
SELECT is(delays('fixed', '{1,2,3,100}'), '{3,3,3,3}', 'fixed');
SELECT is(delays('linear', '{1,2,3,4,100}'), '{3,6,9,10,10}', 'linear, to max_retry_delay');
SELECT is(delays('exponential', '{1,2,3,4,5,100}'), '{3,6,12,24,40,40}', 'exponential, to max_retry_delay');
SELECT is(delays('exponential', '{10000}'), '{40}', 'however many attempts');
SELECT is(error_of($$SELECT delays('long', '{1,10000}')$$), 'no error', 'however long');
CREATE TABLE jitter AS SELECT delays('jitter', array_fill(1, array[2000])) AS mild, delays('wild', array_fill(1, array[2000])) AS wild;
SELECT cmp_ok((SELECT min(x) FROM jitter, unnest(mild) x), '>=', 90::float8, 'jitter takes off a tenth at most');
SELECT cmp_ok((SELECT min(x) FROM jitter, unnest(mild) x), '<', 91::float8, 'and nearly so');
SELECT is((SELECT max(x) FROM jitter, unnest(mild) x), 105::float8, 'it does not pass max_retry_delay');
SELECT cmp_ok((SELECT min(x) FROM jitter, unnest(wild) x), '>=', 0::float8, 'with all of it a delay is not negative');
SELECT cmp_ok((SELECT max(x) FROM jitter, unnest(wild) x), '<=', 200::float8, 'nor more than double');
SELECT cmp_ok((SELECT max(x) - min(x) FROM jitter, unnest(wild) x), '>', 180::float8, 'and anything between');

SELECT define('atonce', ', retry_delay => ''0''');
SELECT running('atonce') AS task \gset
SELECT is(settle_failed(:task), 'pending', 'without delay it is pending');
SELECT is(abs(t.sort_key - orchestrator._sort_key(orchestrator._now(), 0)) < 60000000 AND t.run_at IS NULL, true, 'since now') FROM task(:task) t;
SELECT is(detail_of(:task, 'retrying') ? 'run_at', false, 'which needs no time in the trace');
SELECT claim(1);
SELECT is((task(:task)).attempt, 2, 'and it is claimed at once');

-- What is never retried
SELECT define('never', ', never_retry => ''{23505,40,OR}'', retry_delay => ''0''');
CREATE TABLE codes AS SELECT c, s, running('never') AS id
FROM (VALUES ('23505', 'failed'), ('23503', 'pending'), ('40001', 'failed'), ('40P01', 'failed'), ('04000', 'pending'), ('22023', 'pending')) v(c, s);
SELECT is(settle_failed(id, 'error', jsonb_build_object('sqlstate', c))::text, s, format('never_retry {23505,40}: %s is %s', c, s)) FROM codes ORDER BY id;
SELECT is(final(id), 'failed never_retry', 'and says so') FROM codes WHERE c = '40001';
SELECT running('never') AS task \gset
SELECT is(settle_failed(:task, 'timeout', NULL), 'pending', 'never_retry is about errors, not time-outs');
SELECT claim(100);
SELECT is(settle_failed(:task, 'lost', NULL), 'pending', 'nor the loss of a worker');

-- Budgets and deadlines
SELECT define('budget', ', retry_delay => ''10 s'', retry_jitter => 0, retry_budget => ''25 s'', max_attempts => 100, backoff => ''fixed''');
SELECT running('budget') AS task \gset
SELECT is(settle_failed(:task), 'scheduled', 'within the budget of time');
SELECT again(16);
SELECT is(settle_failed(:task), 'failed', 'the next attempt would begin after it');
SELECT is(final(:task), 'failed retry_budget', 'which is the reason');
SELECT later(3600);
SELECT is(orchestrator.retry(:task, 5), 'pending', 'with more attempts, given by hand,');
SELECT claim(1);
SELECT is(settle_failed(:task), 'scheduled', 'the budget begins anew');
SELECT again(16);
SELECT is(settle_failed(:task), 'failed', 'and ends, too');
SELECT running('job', ', deadline => orchestrator._now() + interval ''60 s''') AS inside \gset
SELECT running('job', ', deadline => orchestrator._now() + interval ''9 s''') AS outside \gset
SELECT is(settle_failed(:inside), 'scheduled', 'before the deadline');
SELECT is((task(:inside)).expire_at, (task(:inside)).deadline, 'which still counts');
SELECT is(settle_failed(:outside), 'failed', 'the next attempt would begin after the deadline');
SELECT is(final(:outside), 'failed deadline', 'which is the reason');
SELECT define('queued', ', queue_timeout => ''1 min'', retry_delay => ''10 s'', retry_jitter => 0');
SELECT running('queued') AS task \gset
SELECT settle_failed(:task);
SELECT is(t.expire_at - t.run_at, '1 min'::interval, 'the time in the queue begins anew') FROM task(:task) t;

-- Time-outs, lost workers, and errors that say nothing
SELECT define('t_' || p, format(', timeout => ''5 s'', timeout_policy => %L, retry_delay => ''1 s''', p)) FROM unnest('{retry,fail,fail_workflow,alert}'::text[]) p;
CREATE TABLE late AS SELECT p, s, running('t_' || p) AS id FROM (VALUES ('retry', 'scheduled'), ('fail', 'failed timeout_policy'), ('fail_workflow', 'failed timeout_policy'), ('alert', 'scheduled')) v(p, s);
SELECT settle_failed(id, 'timeout', NULL) FROM late;
SELECT is(final(id), s, format('timeout_policy %s', p)) FROM late;
SELECT is((task(id)).error, '{"sqlstate": "OR004", "message": "the step ran longer than 00:00:05"}', 'the error of a time-out') FROM late WHERE p = 'fail';
SELECT running('t_fail') AS task \gset
SELECT is(settle_failed(:task), 'scheduled', 'timeout_policy is not about errors');
SELECT running('job') AS task \gset
SELECT settle_failed(:task, 'lost', NULL);
SELECT is((task(:task)).error, '{"sqlstate": "OR003", "message": "the worker process died while it ran the step"}', 'the error of a lost worker');
SELECT is(detail_of(:task, 'retrying') ->> 'outcome', 'lost', 'is told apart in the trace');
SELECT running('job') AS task \gset
SELECT settle_failed(:task, 'lost', '{"sqlstate": "57P01", "message": "m"}');
SELECT is((task(:task)).error, '{"sqlstate": "57P01", "message": "m"}', 'an error that is given is kept');
SELECT running('job') AS task \gset
SELECT settle_failed(:task, 'error', NULL);
SELECT is((task(:task)).error, '{"sqlstate": "XX000", "message": "unknown error"}', 'one that is not is unknown');

-- Priority
SELECT define('step', ', retry_priority_step => 7, priority => 3, retry_delay => ''0''');
SELECT running('step') AS task \gset
SELECT settle_failed(:task);
SELECT is((task(:task)).priority, -4, 'retry_priority_step is taken off');
SELECT is(abs((task(:task)).sort_key - orchestrator._sort_key(orchestrator._now(), -4)) < 60000000, true, 'and counts');
SELECT claim(1);
SELECT settle_failed(:task);
SELECT is((task(:task)).priority, -11, 'at each retry');
SELECT define('deep', ', retry_priority_step => 1000000, priority => -999999, retry_delay => ''0''');
SELECT running('deep') AS task \gset
SELECT settle_failed(:task);
SELECT is((task(:task)).priority, -1000000, 'down to the lowest there is');

-- Given back
SELECT orchestrator.enqueue('job') AS task \gset
SELECT orchestrator.enqueue('job') AS next \gset
SELECT to_jsonb(task(:task)) AS before \gset
SELECT claim(1);
SELECT is(settle_failed(:task, 'released', NULL), 'pending', 'released: ready again');
SELECT is(to_jsonb(task(:task)) - '{epoch,changed_at}'::text[], :'before'::jsonb - '{epoch,changed_at}'::text[], 'as if it had not been claimed');
SELECT is((task(:task)).epoch, 2, 'but for the epoch');
SELECT is(story(:task), 'created 0, released 1', 'its story: it was not started');
SELECT is(claim(1), array[:task]::bigint[], 'it keeps its place');
SELECT orchestrator._settle_failed(:task, 3, 'released', NULL, orchestrator._now(), NULL);
SELECT is(story(:task), 'created 0, released 1, started 1, released 1', 'started and released');
SELECT claim(10), settle_completed(:next);
SELECT is(settle_completed(:task), true, 'and completed in the end');
SELECT is(story(:task), 'created 0, released 1, started 1, released 1, started 1, completed 1', 'the attempt was not spent');

-- Stale reports
SELECT running('job') AS task \gset
SELECT written() AS before \gset
SELECT is(orchestrator._settle_completed(:task, e, '1', NULL, NULL), false, format('completed with epoch %s instead of 1', e)) FROM unnest('{0,2,NULL}'::int[]) e;
SELECT is(orchestrator._settle_failed(:task, e, o, NULL, NULL, NULL), NULL, format('%s with epoch %s instead of 1', o, e)) FROM unnest('{0,2}'::int[]) e, unnest('{error,timeout,lost,released}'::text[]) o;
SELECT is(orchestrator._settle_completed(987654321, 1, '1', NULL, NULL), false, 'an unknown task is stale');
SELECT is(orchestrator._settle_failed(987654321, 1, 'error', NULL, NULL, NULL), NULL, 'and fails nobody');
SELECT is(written(), :'before', 'a stale report writes nothing');
SELECT settle_failed(:task, 'released', NULL), claim(1);
SELECT is(orchestrator._settle_completed(:task, 1, '1', NULL, NULL), false, 'the holder before is stale');
SELECT is(orchestrator._settle_completed(:task, 3, '1', NULL, NULL), true, 'the one now is not');

-- Marked to be paused
SELECT running('job') AS a \gset
SELECT running('job') AS b \gset
SELECT running('job') AS c \gset
SELECT running('once') AS d \gset
SELECT running('queued', ', deadline => orchestrator._now() + interval ''1 h''') AS e \gset
SELECT orchestrator.pause(i) FROM unnest(array[:a, :b, :c, :d, :e]::bigint[]) i;
SELECT is(settle_failed(:a), 'paused', 'marked, a task is paused instead of retried');
SELECT is(state_of(:a), 'paused (scheduled)', 'to be scheduled later');
SELECT is((task(:a)).run_at > orchestrator._now() AND (task(:a)).sort_key IS NULL AND (task(:a)).worker IS NULL, true, 'at its time');
SELECT is(story(:a), 'created 0, started 1, pausing 1, retrying 1, paused 1', 'its story');
SELECT is(settle_completed(:b), true, 'marked, a task can complete');
SELECT is(state_of(:b) || ': ' || story(:b), 'completed: created 0, started 1, pausing 1, completed 1', 'and is held no more; the trace says that it was asked for');
SELECT is(settle_failed(:c, 'released', NULL), 'paused', 'marked and given back');
SELECT is(state_of(:c) || (task(:c)).attempt, 'paused (pending)0', 'it is paused without having spent an attempt');
SELECT is(settle_failed(:d), 'failed', 'marked, a task can fail for good');
SELECT is(state_of(:d) || ': ' || story(:d), 'failed: created 0, started 1, pausing 1, failed 1', 'and is held no more');
SELECT settle_failed(:e);
SELECT is((task(:e)).expire_at, (task(:e)).deadline, 'paused, its time in the queue stands still');

-- The finished partitions
SELECT setval('orchestrator.task_id_seq', 5000000);
SELECT running('job') AS task \gset
SELECT is(to_regclass('orchestrator.task_finished_5'), NULL, 'no partition was made for this id');
SELECT is(settle_completed(:task), true, 'it is made when it is needed');
SELECT is((SELECT tableoid::regclass::text FROM orchestrator.task WHERE id = :task), 'orchestrator.task_finished_5', 'and has the row');
SELECT is((SELECT array_agg(relrowsecurity AND relforcerowsecurity) FROM pg_class WHERE relname IN ('task_finished_5', 'trace_log_5')), '{true,true}', 'with row-level security');
SELECT running('job') AS task \gset
SELECT settle_failed(:task);
SELECT is((SELECT tableoid::regclass::text FROM orchestrator.trace_log WHERE task_id = :task LIMIT 1), 'orchestrator.trace_log_5', 'the trace has one, too');
SELECT setval('orchestrator.task_id_seq', 7000000);
SELECT running('job') AS task \gset
SELECT is(settle_failed(:task), 'scheduled', 'an error is the first to need its range');

SELECT * FROM finish();
ROLLBACK;
