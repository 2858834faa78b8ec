-- _recall(), _remember(), _suspend(), _wake_procedure(): durable procedures.
\ir lib/setup.psql
SELECT plan(64);

CREATE PROCEDURE proc(input jsonb) LANGUAGE plpgsql AS $$BEGIN NULL; END$$;
SELECT orchestrator.define('proc', 'public.proc', 'procedure');
CREATE FUNCTION running(options text DEFAULT '') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint;
BEGIN
  EXECUTE 'SELECT orchestrator.enqueue(''proc'' ' || $1 || ')' INTO v_id;
  PERFORM claim(1000);
  RETURN v_id;
END $$;
CREATE FUNCTION memo(task bigint, name text) RETURNS jsonb LANGUAGE sql AS $$SELECT m.result FROM orchestrator.step_memo m WHERE m.task_id = $1 AND m.name = $2$$;
CREATE FUNCTION send(task bigint, name text, payload jsonb) RETURNS void LANGUAGE sql AS $$
  INSERT INTO orchestrator.signal (task_id, owner, name, payload, sent_by, sent_at)
    SELECT t.id, t.owner, $2, $3, current_user, orchestrator._now() FROM orchestrator.task t WHERE t.id = $1;
$$;
-- Suspend for a signal, or until so many seconds from now.
CREATE FUNCTION suspend(task bigint, signal text, seconds int DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_epoch int := (task($1)).epoch;
  v_at    timestamptz := orchestrator._now() + make_interval(secs => $3);
BEGIN
  RETURN orchestrator._suspend($1, v_epoch, NULL, CASE WHEN $2 IS NULL THEN v_at END, $2, 'signal:' || $2 || ':1', CASE WHEN $2 IS NOT NULL THEN v_at END);
END $$;

-- What is remembered
SELECT running() AS t \gset
SELECT is(orchestrator._recall(:t, 1, 'a'), NULL, 'nothing is remembered');
SELECT lives_ok(format('SELECT orchestrator._remember(%s, 1, ''a'', ''{"x": 1}'')', :t), 'a result');
SELECT orchestrator._remember(:t, 1, 'b', NULL), orchestrator._remember(:t, 1, 'c', 'null');
SELECT is(orchestrator._recall(:t, 1, 'a'), '{"result": {"x": 1}}', 'is remembered');
SELECT is(orchestrator._recall(:t, 1, 'b'), '{}', 'so is none');
SELECT is(orchestrator._recall(:t, 1, 'c'), '{"result": null}', 'and a null of JSON');
SELECT is((SELECT m.owner FROM orchestrator.step_memo m WHERE m.task_id = :t AND m.name = 'a'), owner_id(), 'for its owner');
SELECT is(error_of(format('SELECT orchestrator._remember(%s, 1, ''a'', ''2'')', :t)), '23505: "a" was remembered meanwhile [A name may be used once in a procedure: step_once() inside of step_once() with the same name, perhaps.]', 'once');
SELECT is(memo(:t, 'a'), '{"x": 1}', 'the first stays');
SELECT is(left(error_of(format('SELECT orchestrator._recall(%s, 2, ''a'')', :t)), 5), '55000', 'another epoch does not read');
SELECT is(left(error_of(format('SELECT orchestrator._remember(%s, 0, ''d'', ''1'')', :t)), 5), '55000', 'nor write');
SELECT is(memo(:t, 'd'), NULL, 'anything');
SELECT orchestrator.pause(:t);
SELECT is(orchestrator._recall(:t, 1, 'c'), '{"result": null}', 'one that is marked to be paused goes on');
SELECT is(orchestrator.cancel(:t), 'cancelled', 'cancelled');
SELECT is(error_of(format('SELECT orchestrator._recall(%s, 1, ''a'')', :t)), format('55000: task %s was taken from this worker [It was cancelled, paused or given to another worker: see orchestrator.trace.]', :t), 'it reads no more');
SELECT is(left(error_of(format('SELECT orchestrator._remember(%s, 1, ''d'', ''1'')', :t)), 5), '55000', 'and writes no more');
SELECT orchestrator.retry(:t), claim();
SELECT is(orchestrator._recall(:t, (task(:t)).epoch, 'a'), '{"result": {"x": 1}}', 'a retried one remembers');

-- Sleep
SELECT running() AS t \gset
SELECT is(suspend(:t, NULL, 60), 'scheduled', 'until a time: scheduled');
SELECT is(array[attempt, epoch], '{0,2}', 'no attempt is spent') FROM task(:t);
SELECT is(worker, NULL, 'no worker holds it') FROM task(:t);
SELECT ok(started_at IS NOT NULL, 'when it started is kept') FROM task(:t);
SELECT is(story(:t), 'created 0, started 1, suspended 1', 'its story');
SELECT is((detail_of(:t, 'suspended') ->> 'until')::timestamptz, run_at, 'with the time') FROM task(:t);
SELECT is(orchestrator._next_due(), run_at, 'it will be due') FROM task(:t);
SELECT is(suspend(:t, NULL, 60), NULL, 'it does not run');
SELECT is(orchestrator._promote_due(10), 0, 'not before its time');
SELECT later(61);
SELECT is(orchestrator._promote_due(10), 1, 'then');
SELECT is(claim(), ARRAY[:t]::bigint[], 'it goes on');
SELECT is(array[attempt, epoch], '{1,3}', 'in the same attempt') FROM task(:t);
SELECT is(orchestrator._suspend(:t, 2, NULL, now(), NULL, NULL, NULL), NULL, 'a report of an older epoch is stale');
SELECT orchestrator.pause(:t);
SELECT is(suspend(:t, NULL, 60), 'paused', 'one that was marked is paused');
SELECT is(state_of(:t), 'paused (scheduled)', 'and scheduled after');
SELECT is(orchestrator.resume(:t), 'scheduled', 'resumed');
SELECT orchestrator.cancel(:t);

-- Wait for a signal
SELECT running() AS t \gset
SELECT is(suspend(:t, 'go'), 'waiting', 'for a signal: waiting');
SELECT is(memo(:t, 'waiting'), '{"signal": "go"}', 'for which');
SELECT is(array[attempt, epoch], '{0,2}', 'no attempt is spent') FROM task(:t);
SELECT is(expire_at, NULL, 'it waits for ever') FROM task(:t);
SELECT is(claim(), '{}', 'it is not claimed');
SELECT orchestrator._wake_procedure(:t);
SELECT is(state_of(:t), 'pending', 'woken');
SELECT is(memo(:t, 'waiting'), NULL, 'it waits no more');
SELECT is(claim(), ARRAY[:t]::bigint[], 'it goes on');
SELECT orchestrator._wake_procedure(:t);
SELECT is(state_of(:t), 'running', 'a running one is not woken');
SELECT send(:t, 'other', '0'), send(:t, 'go', '1'), send(:t, 'go', '2');
SELECT is(suspend(:t, 'go'), 'pending', 'one that was sent meanwhile is taken');
SELECT is(memo(:t, 'signal:go:1'), '1', 'and remembered');
SELECT is((SELECT count(*) FROM orchestrator.signal WHERE task_id = :t AND consumed_by IS NULL), 2::bigint, 'only that');
SELECT is(story(:t), 'created 0, started 1, suspended 1, started 1, suspended 1', 'its story');
SELECT is(claim(), ARRAY[:t]::bigint[], 'it can be claimed at once');

-- Its time is up
SELECT is(suspend(:t, 'later', 60), 'waiting', 'a wait with a timeout');
SELECT is((memo(:t, 'waiting') ->> 'timeout_at')::timestamptz, expire_at, 'until then') FROM task(:t);
SELECT is(orchestrator._next_due(), expire_at, 'it will be looked at') FROM task(:t);
SELECT is(orchestrator.pause(:t), 'paused', 'paused');
SELECT is(expire_at, NULL, 'it does not end meanwhile') FROM task(:t);
SELECT is(orchestrator.resume(:t), 'waiting', 'resumed');
SELECT is((memo(:t, 'waiting') ->> 'timeout_at')::timestamptz, expire_at, 'it ends when it would have') FROM task(:t);
SELECT is(orchestrator._expire(10), 0, 'not yet');
SELECT orchestrator.pause(:t), orchestrator._wake_procedure(:t);
SELECT is(state_of(:t), 'paused (pending)', 'one that is paused stays so when it is woken');
SELECT orchestrator.resume(:t), claim();
SELECT suspend(:t, 'later', 60), later(61);
SELECT is(orchestrator._expire(10), 1, 'its time is up');
SELECT is(state_of(:t), 'pending', 'it goes on');
SELECT is(expire_at, NULL, 'and does not expire') FROM task(:t);
SELECT orchestrator.cancel(:t);

-- The deadline is another matter
SELECT running(', deadline => orchestrator._now() + interval ''30 s''') AS t \gset
SELECT suspend(:t, 'go', 60);
SELECT is(expire_at, deadline, 'a deadline comes first') FROM task(:t);
SELECT later(61);
SELECT is(orchestrator._expire(10), 1, 'when it has passed');
SELECT is(state_of(:t), 'failed', 'the task fails');
SELECT is((task(:t)).error ->> 'sqlstate', 'OR002', 'as expired');

-- Outside of a step
SELECT is(left(error_of($$SELECT orchestrator.step_once('a', 'SELECT 1')$$), 5), '55000', 'step_once() outside of a step');
SELECT is(error_of($$SELECT orchestrator.add_steps('{}')$$), '55000: add_steps() can be called only inside a step [To add steps to a task from outside, pass it: orchestrator.add_steps(task, steps).]', 'add_steps() outside of a step');

SELECT * FROM finish();
ROLLBACK;
