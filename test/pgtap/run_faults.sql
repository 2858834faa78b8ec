-- Runs in which something goes wrong outside of the steps: a path that fails, a
-- run that ends as it begins, a batch that is undone. Each stays by itself.
\ir lib/setup.psql
SELECT plan(41);

CREATE FUNCTION ok_step(input jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '1'::jsonb$$;
CREATE FUNCTION flow(name text, VARIADIC steps text[]) RETURNS void LANGUAGE sql AS $$
  SELECT orchestrator.define_workflow(jsonb_build_object('name', $1, 'steps', ARRAY(SELECT s::jsonb FROM unnest($2) s)));
$$;
CREATE FUNCTION step_state(run bigint, step text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(t.state || coalesce(' ' || (t.error ->> 'sqlstate'), ''), ', ' ORDER BY t.id) FROM orchestrator.task t WHERE t.parent_id = $1 AND t.name = $2;
$$;
-- Run what is ready until nothing is.
CREATE FUNCTION run_all() RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_ids bigint[]; v_id bigint;
BEGIN
  LOOP
    v_ids := claim(1000);
    EXIT WHEN v_ids = '{}';
    FOREACH v_id IN ARRAY v_ids LOOP
      PERFORM settle_completed(v_id, '{"d": "2020-01-01"}');
    END LOOP;
  END LOOP;
END $$;
\set zone '"$.input.d.datetime() < \\"2021-01-01T00:00:00+01:00\\".datetime()"'

-- A run whose first steps end at once
SELECT flow('none', '{"name": "a", "handler": "public.ok_step", "when": "$.input.no"}', '{"name": "b", "handler": "public.ok_step", "needs": ["a"]}');
SELECT flow('empty', '{"name": "a", "handler": "public.ok_step", "each": "$.input.items"}');
SELECT orchestrator.enqueue('none') AS t \gset
SELECT is(state_of(:t), 'completed', 'a run whose steps are all skipped is completed');
SELECT orchestrator.enqueue('empty') AS t \gset
SELECT is(state_of(:t), 'completed', 'one with an empty map, too');
SELECT is((task(:t)).output, '[]', 'with its output');
SELECT is((SELECT array_agg(DISTINCT state_of(i)) FROM unnest(orchestrator.enqueue_many('none', ARRAY['{}', '{}']::jsonb[])) i), '{completed}', 'of many, too');
SELECT orchestrator.enqueue('none', delay => '10 s') AS t \gset
SELECT later(11), orchestrator._promote_due(100);
SELECT is(state_of(:t), 'completed', 'one that was scheduled, too');

-- Paths that fail in other ways than those of data
SELECT flow('zone', '{"name": "a", "handler": "public.ok_step"}', '{"name": "b", "handler": "public.ok_step", "needs": ["a"], "when": ' || :'zone' || '}');
SELECT orchestrator.enqueue('zone', '{"d": "2020-01-01"}') AS t \gset
SELECT run_all();
SELECT is(step_state(:t, 'a'), 'completed', 'a condition that cannot be judged: the step before it is completed');
SELECT is(step_state(:t, 'b'), 'failed 0A000', 'its step fails');
SELECT is(state_of(:t), 'failed', 'and the run');
SELECT flow('zone_sleep', '{"name": "a", "sleep": "5 s"}', '{"name": "b", "handler": "public.ok_step", "needs": ["a"], "when": ' || :'zone' || '}');
SELECT flow('sleep', '{"name": "a", "sleep": "6 s"}');
SELECT orchestrator.enqueue('zone_sleep', '{"d": "2020-01-01"}') AS t, orchestrator.enqueue('sleep') AS u \gset
SELECT later(11);
SELECT lives_ok('SELECT orchestrator._expire(100)', 'after a sleep: the supervisor goes on');
SELECT is(step_state(:t, 'b'), 'failed 0A000', 'the step fails');
SELECT is(state_of(:u), 'completed', 'others do not wait for it');
SELECT flow('zone_wait', '{"name": "a", "wait_for": "go"}', '{"name": "b", "handler": "public.ok_step", "needs": ["a"], "when": ' || :'zone' || '}');
SELECT orchestrator.enqueue('zone_wait', '{"d": "2020-01-01"}') AS t \gset
SELECT lives_ok(format('SELECT orchestrator.signal(%s, ''go'')', :t), 'after a signal: who sent it gets no error');
SELECT is(step_state(:t, 'a') || ', ' || step_state(:t, 'b'), 'completed, failed 0A000', 'the step fails');
SELECT flow('repeat', '{"name": "a", "handler": "public.ok_step", "repeat_while": "strict $.nothing"}');
SELECT orchestrator.enqueue('repeat') AS t \gset
SELECT run_all();
SELECT is(step_state(:t, 'a'), 'failed 2203A', 'a repeat_while that fails: its step does');
SELECT is((SELECT attempt FROM orchestrator.task WHERE parent_id = :t), 1, 'for good');
SELECT is((SELECT count(*) FROM orchestrator.task_live WHERE root_id = :t OR id = :t), 0::bigint, 'nothing of it lives');

-- Long chains of steps that end as they begin
SELECT orchestrator.define_workflow(jsonb_build_object('name', c.name, 'steps', (
  SELECT jsonb_agg(c.step || jsonb_build_object('name', 's' || i, 'needs', CASE i WHEN 1 THEN '[]' ELSE jsonb_build_array('s' || i - 1) END) ORDER BY i)
  FROM generate_series(1, 150) i)))
FROM (VALUES ('failing', '{"handler": "public.ok_step", "on_failure": "continue", "when": "strict $.nothing"}'::jsonb), ('waits', '{"wait_for": "go"}')) c(name, step);
SELECT orchestrator.enqueue('failing') AS t \gset
SELECT is(state_of(:t), 'completed', 'all fail, and the run goes on');
SELECT orchestrator.enqueue('waits', delay => '5 s') AS t \gset
SELECT count(orchestrator.signal(:t, 'go', to_jsonb(i))) FROM generate_series(1, 150) i;
SELECT later(6), orchestrator._promote_due(100);
SELECT is(state_of(:t), 'completed', 'all find their signals');
SELECT is((task(:t)).output, '150', 'in their order');

-- Maps of runs that end as they begin
SELECT flow('odd', '{"name": "a", "handler": "public.ok_step", "when": "$.input.item.double() ? (@ > 5)"}', '{"name": "b", "wait_for": "go"}');
SELECT flow('odds', '{"name": "m", "definition": "odd", "each": "$.input.items"}');
SELECT orchestrator.enqueue('odds', '{"items": [7, "x", 8, 9]}') AS t \gset
SELECT is(state_of(:t) || ', ' || step_state(:t, 'm'), 'failed, failed 22036', 'an item fails as it begins: the map and the run do');
SELECT is((SELECT count(*) FROM orchestrator.task_live WHERE root_id = :t), 0::bigint, 'no further item begins');
SELECT is((SELECT string_agg(state::text, ' ' ORDER BY item) FROM orchestrator.task WHERE root_id = :t AND item IS NOT NULL), 'cancelled failed', 'those before it are cancelled');
SELECT flow('nones', '{"name": "m", "definition": "none", "each": "$.input.items", "max_parallel": 1}');
SELECT orchestrator.enqueue('nones', jsonb_build_object('items', jsonb_agg(i))) AS t FROM generate_series(1, 150) i \gset
SELECT is(state_of(:t), 'completed', 'many of which one at a time may run');
SELECT flow('some', '{"name": "a", "handler": "public.ok_step", "when": "$.input.item.run"}');
SELECT flow('somes', '{"name": "m", "definition": "some", "each": "$.input.items", "max_parallel": 2}');
SELECT orchestrator.enqueue('somes', (SELECT jsonb_build_object('items', jsonb_agg(CASE WHEN i % 5 IN (0, 1) THEN '{"run": true}' ELSE '{}'::jsonb END ORDER BY i)) FROM generate_series(0, 22) i)) AS t \gset
SELECT is((SELECT array_agg(item ORDER BY item) FROM orchestrator.task_live WHERE root_id = :t AND item IS NOT NULL), '{0,1}', 'those that end at once take no place');
SELECT count(settle_completed(i)) FROM unnest(claim(1)) i \gset
SELECT is((SELECT array_agg(item ORDER BY item) FROM orchestrator.task_live WHERE root_id = :t AND item IS NOT NULL), '{1,5}', 'the next that runs takes that of one that ended');
SELECT run_all();
SELECT is((SELECT state || ' ' || jsonb_array_length(output) FROM task(:t)), 'completed 23', 'all are joined');

-- What the supervisor cannot do is given up when it takes long, else tried again
SET LOCAL client_min_messages = error;
SELECT orchestrator.enqueue('sleep') AS t \gset
SELECT lives_ok(format('SELECT orchestrator._give_up(%s, clock_timestamp(), ''task %%s'', ''no'')', (SELECT min(id) FROM orchestrator.task WHERE parent_id = :t)), 'an error');
SELECT is(state_of(:t), 'waiting', 'the run goes on');
SELECT lives_ok(format('SELECT orchestrator._give_up(%s, clock_timestamp() - interval ''5 s'', ''task %%s'', ''no'')', (SELECT min(id) FROM orchestrator.task WHERE parent_id = :t)), 'an error after a long time');
SELECT is(state_of(:t) || ' ' || ((task(:t)).error ->> 'sqlstate') || ', ' || step_state(:t, 'a'), 'failed OR004, cancelled OR001', 'the run fails');
SET LOCAL client_min_messages = warning;

-- Items of batches
SELECT flow('bad', '{"name": "a", "handler": "public.ok_step", "when": "strict $.input.no"}');
SELECT orchestrator.enqueue_batch('bad', '{"{}", "{}"}') AS b \gset
SELECT is(state_of(:b), 'completed', 'a batch of runs that fail at once');
SELECT orchestrator.retry((SELECT min(id) FROM orchestrator.task WHERE parent_id = :b));
SELECT is(state_of(:b) || ' ' || (task(:b)).remaining, 'completed 0', 'retry of one that fails at once again');
SELECT flow('undo', '{"name": "a", "handler": "public.ok_step", "undo": "public.ok_step"}', '{"name": "b", "wait_for": "go", "needs": ["a"]}');
SELECT orchestrator.enqueue_batch('undo', '{"{}"}') AS b \gset
SELECT run_all(), orchestrator.cancel(:b);
SELECT min(id) AS i FROM orchestrator.task WHERE parent_id = :b \gset
SELECT is((task(:i)).compensation, 'running', 'a batch whose item is undone');
SELECT is(left(error_of(format('SELECT orchestrator.retry(%s)', :i)), 5), '55000', 'its items cannot be retried');
SELECT is(left(error_of(format('SELECT orchestrator.rerun_from(%s, ''b'')', :i)), 5), '55000', 'nor a part of them');
SELECT is(orchestrator.retry_many(definition => 'undo', states => '{cancelled}'), 0::bigint, 'nor many');
SELECT run_all();
SELECT is((task(:i)).compensation, 'done', 'it is undone');

-- Others
CREATE ROLE stranger LOGIN;
SELECT orchestrator.grant_usage('stranger');
SELECT orchestrator.enqueue('sleep') AS t \gset
SELECT is(error_of(format('SELECT orchestrator.approve(%s, ''a'')', :t), 'stranger') ~ '^42704: task \d+ does not exist', true, 'approve() does not tell who waits for what');
SELECT is(error_of(format('SELECT orchestrator.reject(%s, ''x'')', :t), 'stranger') ~ '^42704: task \d+ does not exist', true, 'nor reject() the names of steps');
SELECT is(left(error_of('SELECT orchestrator.enqueue_batch(''sleep'', ARRAY[to_jsonb(repeat(''x'', 1100000))])'), 5), '54000', 'inputs of a batch have the size that others may have');
SELECT is(left(error_of(format('SELECT orchestrator.on_completion(%s, ''sleep'', to_jsonb(repeat(''x'', 1100000)))', :t)), 5), '54000', 'and those of callbacks');

SELECT * FROM finish();
ROLLBACK;
