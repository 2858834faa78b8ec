-- Runs of workflows, by the functions in SQL: inputs, maps, repeats, waits,
-- signals, control, compensation, versions.
\ir lib/setup.psql
SELECT plan(306);

-- A step of SQL that is tried once.
CREATE FUNCTION s(name text, needs text[] DEFAULT '{}', more jsonb DEFAULT '{}') RETURNS orchestrator.step_spec LANGUAGE sql AS $$
  SELECT orchestrator.step($1, 'SELECT 1', 'sql', needs => $2, max_attempts => 1) || $3;
$$;
CREATE FUNCTION wf(VARIADIC steps orchestrator.step_spec[]) RETURNS bigint LANGUAGE sql AS $$SELECT orchestrator.enqueue_workflow($1)$$;
CREATE FUNCTION wf_on(input jsonb, VARIADIC steps orchestrator.step_spec[]) RETURNS bigint LANGUAGE sql AS $$SELECT orchestrator.enqueue_workflow($2, $1)$$;
-- Rows of steps.
CREATE FUNCTION at(run bigint, name text, item int DEFAULT NULL) RETURNS bigint LANGUAGE sql AS $$
  SELECT max(t.id) FROM orchestrator.task t
  WHERE t.name = $2 AND t.item IS NOT DISTINCT FROM $3 AND t.parent_id = CASE WHEN $3 IS NULL THEN $1 ELSE at($1, $2) END;
$$;
CREATE FUNCTION run_one(id bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  IF (task($1)).state = 'pending' THEN PERFORM claim(100000); END IF;
  RETURN $1;
END $$;
CREATE FUNCTION done(run bigint, name text, output jsonb DEFAULT '1', item int DEFAULT NULL) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_id bigint := at($1, $2, $4);
BEGIN PERFORM run_one(v_id); RETURN settle_completed(v_id, $3); END $$;
CREATE FUNCTION asked(run bigint, name text, requests jsonb, output jsonb DEFAULT '1') RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_id bigint := coalesce(at($1, $2), $1);
BEGIN PERFORM run_one(v_id); RETURN orchestrator._settle_completed(v_id, (task(v_id)).epoch, $4, NULL, NULL, $3); END $$;
CREATE FUNCTION broken(run bigint, name text, item int DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE v_id bigint := at($1, $2, $3);
BEGIN PERFORM run_one(v_id); RETURN settle_failed(v_id); END $$;
-- The run and its steps: "waiting 2: a completed, b pending".
CREATE FUNCTION look(run bigint) RETURNS text LANGUAGE sql AS $$
  SELECT state_of($1) || coalesce(' ' || CASE WHEN (task($1)).live THEN (task($1)).remaining END, '')
    || coalesce(': ' || string_agg(t.name || ' ' || state_of(t.id), ', ' ORDER BY abs(t.step), t.step DESC, t.item), '')
  FROM orchestrator.task t WHERE t.parent_id = $1;
$$;
CREATE FUNCTION input_of(run bigint, name text, item int DEFAULT NULL) RETURNS jsonb LANGUAGE sql AS $$SELECT (task(at($1, $2, $3))).input$$;
CREATE FUNCTION output_of(run bigint, name text DEFAULT NULL) RETURNS jsonb LANGUAGE sql AS $$SELECT (task(coalesce(at($1, $2), $1))).output$$;
CREATE FUNCTION error_at(run bigint, name text DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
  SELECT (task(coalesce(at($1, $2), $1))).error ->> 'sqlstate' || ' ' || ((task(coalesce(at($1, $2), $1))).error ->> 'message')$$;
CREATE FUNCTION pass(seconds int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM later($1); PERFORM orchestrator._promote_due(1000); PERFORM orchestrator._expire(1000); END $$;

-- Inputs ----------------------------------------------------------------
SELECT wf_on('{"x": {"y": [1, 2, 3]}, "n": null}', s('a'), s('b', '{a}'), s('c', '{a,b}'), s('d', '{}',
  '{"input": {"first": "$.input.x.y[0]", "all": "$.input.x.y[*]", "some": "$.input.x.y[*] ? (@ > 1)", "none": "$.input.no.such", "nones": "$.input.no[*]",
              "dollar": "$$.input", "price": "5$", "deep": [{"a": "$.input.x"}, 7, true, null], "null": "$.input.n", "all of it": "$", "array": "$.input.x.y"}}')) AS run \gset
SELECT is(look(:run), 'waiting 4: a pending, d pending', 'steps that need nothing start, others have no row');
SELECT is(input_of(:run, 'a'), '{"input": {"x": {"y": [1, 2, 3]}, "n": null}, "steps": {}}', 'the input of a step by default');
SELECT is(input_of(:run, 'd') - 'all of it', '{"first": 1, "all": [1, 2, 3], "some": [2, 3], "none": null, "nones": [], "dollar": "$.input", "price": "5$",
  "deep": [{"a": {"y": [1, 2, 3]}}, 7, true, null], "null": null, "array": [1, 2, 3]}', 'by a template');
SELECT is(input_of(:run, 'd') -> 'all of it', '{"input": {"x": {"y": [1, 2, 3]}, "n": null}, "steps": {}}', '$ is all of the document');
SELECT done(:run, 'a', '{"k": 1}');
SELECT is(input_of(:run, 'b'), '{"input": {"x": {"y": [1, 2, 3]}, "n": null}, "steps": {"a": {"k": 1}}}', 'with the output of what it needs');
SELECT done(:run, 'b', NULL);
SELECT is(input_of(:run, 'c') -> 'steps', '{"a": {"k": 1}, "b": null}', 'one without output is null');
SELECT is((task(:run)).remaining, 2, 'remaining counts down');
SELECT done(:run, 'c', '"c"'), done(:run, 'd', '"d"');
SELECT is(output_of(:run), '{"c": "c", "d": "d"}', 'the output of several sinks is by name');
SELECT is(t.state || ' ' || t.live || t.remaining || (t.finished_at >= t.started_at), 'completed false0true', 'a completed run') FROM task(:run) t;
SELECT wf(s('a'), s('b', '{a}')) AS run \gset
SELECT done(:run, 'a'), done(:run, 'b', '{"x": 1}');
SELECT is(output_of(:run), '{"x": 1}', 'of a single sink that output alone');
SELECT wf(s('a'), s('b', '{a}', '{"when": "$.steps.a"}')) AS run \gset
SELECT done(:run, 'a', 'false');
SELECT is(look(:run) || coalesce(output_of(:run)::text, ' none'), 'completed: a completed, b skipped none', 'of a skipped single sink there is none');
SELECT wf(s('a', '{}', '{"on_failure": "continue"}'), s('b', '{a}', '{"input": {"e": "$.errors.a.sqlstate", "o": "$.steps.a"}}')) AS run \gset
SELECT broken(:run, 'a');
SELECT is(input_of(:run, 'b'), '{"e": "22012", "o": null}', 'errors has the error of what failed and went on');
SELECT wf(s('a'), s('b', '{a}', '{"input": "$.steps.a"}'), s('c', '{a}', '{"input": ["$.steps.a.n", 1]}'), s('d', '{a}', '{"input": 5}')) AS run \gset
SELECT done(:run, 'a', '{"n": 3}');
SELECT is(input_of(:run, 'b')::text || input_of(:run, 'c') || input_of(:run, 'd'), '{"n": 3}[3, 1]5', 'a template need not be an object');
SELECT wf(s('a'), s('b', '{a}', '{"input": {"x": "$.steps.a.double()"}}'), s('c', '{b}')) AS run \gset
SELECT done(:run, 'a', '"none"');
SELECT is(look(:run), 'failed: a completed, b failed', 'a template that fails: the step does');
SELECT is(error_at(:run, 'b') LIKE '22%', true, 'with the error of the path');
SELECT wf(s('a'), s('b', '{a}', '{"when": "strict $.steps.a.none.at.all", "on_failure": "continue"}'), s('c', '{b}')) AS run \gset
SELECT done(:run, 'a', '{}');
SELECT is(look(:run), 'waiting 1: a completed, b failed, c pending', 'so does a when that fails, by its on_failure');
SELECT is(value_of(format('SELECT string_agg(orchestrator._holds(p, %L)::text, '','' ORDER BY n) FROM unnest(%L::text[]) WITH ORDINALITY u(p, n)',
    '{"t": true, "f": false, "n": null, "z": 0, "e": "", "a": []}', '{$.t,$.f,$.n,$.z,$.e,$.a,$.no,$.z == 0,$.z > 0,$.e > 1,exists($.no)}')),
  'true,false,false,true,true,true,false,true,false,false,false', 'a condition is true by its boolean, else by whether it yields anything');
SET orchestrator.max_input_size = '100kB';
SELECT wf(s('a'), s('b', '{a}', '{"on_failure": "continue"}'), s('c', '{a}', '{"input": {"n": 1}}')) AS run \gset
SELECT done(:run, 'a', to_jsonb(repeat('x', 200000)));
SELECT is(look(:run), 'waiting 1: a completed, b failed, c pending', 'an input that is too large fails the step');
SELECT is(error_at(:run, 'b'), '54000 input is larger than 102400 bytes', 'and says so');
RESET orchestrator.max_input_size;

-- Sub-workflows
SELECT orchestrator.define_workflow('inner', ARRAY[s('i1'), s('i2', '{i1}')]);
SELECT orchestrator.define_workflow('middle', ARRAY[orchestrator.step('m1', definition => 'inner', input => '{"from": "$.input.n"}'), s('m2', '{m1}')]);
SELECT wf_on('{"n": 7}', orchestrator.step('o1', definition => 'middle', input => '"$.input"'), s('o2', '{o1}')) AS run \gset
SELECT at(:run, 'o1') AS o1, at(at(:run, 'o1'), 'm1') AS m1 \gset
SELECT is(array[look(:run), look(:o1), look(:m1)], '{"waiting 2: o1 waiting","waiting 2: m1 waiting","waiting 2: i1 pending"}', 'workflows nest');
SELECT is(input_of(:m1, 'i1'), '{"input": {"from": 7}, "steps": {}}', 'with the inputs of their templates');
SELECT is(t.root_id || ' ' || t.parent_id || ' ' || (t.plan = (task(:m1)).definition), format('%s %s true', :run, :m1), 'a step knows its root, its run and its plan') FROM task(at(:m1, 'i1')) t;
SELECT done(:m1, 'i1', '1'), done(:m1, 'i2', '{"in": 2}');
SELECT is(array[look(:run), look(:o1), look(:m1)], '{"waiting 2: o1 waiting","waiting 1: m1 completed, m2 pending","completed: i1 completed, i2 completed"}', 'they end from within');
SELECT is(input_of(:o1, 'm2'), '{"input": {"n": 7}, "steps": {"m1": {"in": 2}}}', 'with their outputs');
SELECT done(:o1, 'm2', '"m"'), done(:run, 'o2', '"o"');
SELECT is(look(:run) || output_of(:run), 'completed: o1 completed, o2 completed"o"', 'up to the top');
SELECT wf(orchestrator.step('o1', definition => 'middle'), s('o2', '{o1}')) AS run \gset
SELECT at(:run, 'o1') AS o1, at(at(:run, 'o1'), 'm1') AS m1 \gset
SELECT broken(:m1, 'i1');
SELECT is(array[look(:run), look(:o1), look(:m1)], '{"failed: o1 failed","failed: m1 failed","failed: i1 failed"}', 'they fail from within');
SELECT is(error_at(:run), '22012 step "o1" failed: step "m1" failed: step "i1" failed: no', 'and tell the way');
SELECT wf(orchestrator.step('o1', definition => 'middle', on_failure => 'continue'), s('o2', '{o1}')) AS run \gset
SELECT broken(at(at(:run, 'o1'), 'm1'), 'i1');
SELECT is(look(:run), 'waiting 1: o1 failed, o2 pending', 'up to where on_failure stops it');

-- Maps ------------------------------------------------------------------
SELECT wf_on('{"items": []}', s('m', '{}', '{"each": "$.input.items"}'), s('z', '{m}')) AS run \gset
SELECT is(look(:run) || output_of(:run, 'm'), 'waiting 1: m completed, z pending[]', 'a map over nothing is completed at once, with []');
SELECT is(input_of(:run, 'z') -> 'steps', '{"m": []}', 'as its dependants see');
SELECT wf(s('m', '{}', '{"each": "$.input.none"}')) AS run \gset
SELECT is(look(:run) || output_of(:run), 'completed: m completed[]', 'a path to nothing is nothing');
SELECT wf_on('{"items": null}', s('m', '{}', '{"each": "$.input.items"}')) AS run \gset
SELECT is(look(:run), 'completed: m completed', 'so is null');
SELECT wf_on('{"items": [null]}', s('m', '{}', '{"each": "$.input.items"}'), s('n', '{}', '{"each": "$.input.items[*]"}')) AS run \gset
SELECT is((task(at(:run, 'm'))).remaining || ' ' || (task(at(:run, 'n'))).remaining, '1 1', 'an element that is null is an element');
SELECT wf_on('{"items": [[1, 2]], "o": {"k": 5}}', s('m', '{}', '{"each": "$.input.items[*]"}'), s('n', '{}', '{"each": "$.input.o"}'), s('o', '{}', '{"each": "$.input.items[0][*] ? (@ > 1)"}')) AS run \gset
SELECT is(input_of(:run, 'm', 0) -> 'item', '[1, 2]', 'an element that is an array is one item');
SELECT is(input_of(:run, 'n', 0) -> 'item', '{"k": 5}', 'a path to one value is one item');
SELECT is(input_of(:run, 'o', 0) -> 'item', '2', 'a path may filter');
SELECT wf_on('{"items": ["a", "b", "c"], "k": 1}', s('m', '{}', '{"each": "$.input.items"}'), s('z', '{m}')) AS run \gset
SELECT is(look(:run), 'waiting 2: m waiting', 'a map');
SELECT is(look(at(:run, 'm')), 'waiting 3: m pending, m pending, m pending', 'and its items');
SELECT is(input_of(:run, 'm', 1), '{"input": {"k": 1}, "steps": {}, "item": "b", "index": 1}', 'the input of an item, which does without the array');
SELECT is(t.step || ' ' || t.item || (t.plan = (task(:run)).definition) || (t.root_id = :run), '1 2truetrue', 'an item knows its place') FROM task(at(:run, 'm', 2)) t;
SELECT done(:run, 'm', '"C"', 2), done(:run, 'm', NULL, 0);
SELECT done(:run, 'm', '"B"', 1);
SELECT is(output_of(:run, 'm'), '[null, "B", "C"]', 'its output is theirs, in their order');
SELECT is(look(:run), 'waiting 1: m completed, z pending', 'and its dependants go on');
SELECT wf_on('{"items": [{"a": 1}, {"a": 2}]}', s('m', '{}', '{"each": "$.input.items", "input": {"v": "$.item.a", "i": "$.index"}}'), s('n', '{}', '{"each": "$.input.items", "input": "$.item"}')) AS run \gset
SELECT is(input_of(:run, 'm', 1)::text || input_of(:run, 'n', 1), '{"i": 1, "v": 2}{"a": 2}', 'item and index in templates');
SELECT wf_on('{"items": [1, 2, 3, 4, 5]}', s('m', '{}', '{"each": "$.input.items", "max_parallel": 2}')) AS run \gset
SELECT at(:run, 'm') AS m \gset
CREATE FUNCTION live_items(map bigint) RETURNS int LANGUAGE sql AS $$SELECT count(*)::int FROM orchestrator.task_live WHERE parent_id = $1$$;
CREATE TABLE seen (n int);
DO $$
DECLARE v_map bigint := (SELECT max(id) FROM orchestrator.task_live WHERE name = 'm' AND item IS NULL AND remaining IS NOT NULL);
BEGIN
  LOOP
    INSERT INTO seen VALUES (live_items(v_map));
    EXIT WHEN live_items(v_map) = 0;
    PERFORM claim(100000);
    PERFORM settle_completed(t.id, to_jsonb(t.item)) FROM (SELECT * FROM orchestrator.task WHERE parent_id = v_map AND state = 'running' LIMIT 1) t;
  END LOOP;
END $$;
SELECT is(array_agg(n), '{2,2,2,2,1,0}', 'max_parallel: never more, and as soon as one ends the next') FROM seen;
SELECT is(look(:run) || output_of(:run), 'completed: m completed[0, 1, 2, 3, 4]', 'until all are');
-- an item that fails
SELECT wf_on('{"items": [1, 2, 3]}', s('m', '{}', '{"each": "$.input.items", "max_parallel": 2}'), s('o'), s('z', '{m}')) AS run \gset
SELECT done(:run, 'm', '1', 0), broken(:run, 'm', 1);
SELECT is(look(:run), 'failed: m failed, o cancelled', 'an item that fails fails the map and the run');
SELECT is(error_at(:run), '22012 step "m" failed: item 1 of step "m" failed: no', 'which say which') WHERE (task(:run)).error IS NOT NULL;
SELECT wf_on('{"items": [1, 2, 3]}', s('m', '{}', '{"each": "$.input.items", "on_failure": "continue"}'), s('z', '{m}')) AS run \gset
SELECT done(:run, 'm', '1', 0), broken(:run, 'm', 1), done(:run, 'm', '3', 2);
SELECT is(look(:run) || output_of(:run, 'm'), 'waiting 1: m completed, z pending[1, null, 3]', 'on_failure continue: null in its place');
SELECT wf_on('{"items": [1, 2, 3]}', s('m', '{}', '{"each": "$.input.items", "on_failure": "skip_dependants"}'), s('z', '{m}'), s('o')) AS run \gset
SELECT at(:run, 'm') AS m \gset
SELECT done(:run, 'm', '1', 0), broken(:run, 'm', 1);
SELECT is(look(:run) || '; ' || look(:m), 'waiting 1: m failed, z skipped, o running; failed: m completed, m failed, m cancelled', 'skip_dependants: the map fails, its other items are cancelled');
SELECT wf_on('{"items": [1, 2]}', s('m', '{}', '{"each": "$.input.items", "optional": true}'), s('z', '{m}')) AS run \gset
SELECT broken(:run, 'm', 1);
SELECT is(look(:run), 'completed: m failed, z skipped', 'optional: as skipped');
SELECT wf_on('{"items": [1, 2]}', s('m', '{}', '{"each": "$.input.items", "on_failure": "continue"}'), s('z', '{m}')) AS run \gset
SELECT orchestrator.cancel(at(:run, 'm', 0)), done(:run, 'm', '2', 1);
SELECT is(look(:run) || output_of(:run, 'm'), 'waiting 1: m completed, z pending[null, 2]', 'a cancelled item is as a failed one');
SELECT wf_on('{"items": [1, 2]}', s('m', '{}', '{"each": "$.input.items"}'), s('z', '{m}')) AS run \gset
SELECT orchestrator.cancel(at(:run, 'm'));
SELECT is(look(:run), 'failed: m cancelled', 'a cancelled map too');
SELECT wf_on('{"items": [1, "x", 3]}', s('m', '{}', '{"each": "$.input.items", "max_parallel": 1, "input": "$.item.double()", "on_failure": "continue"}'), s('z', '{m}')) AS run \gset
SELECT done(:run, 'm', '1', 0);
SELECT is(look(:run), 'waiting 1: m failed, z pending', 'a template that fails for a later item fails the map');
SELECT wf_on('{"items": [1, "x", 3]}', s('m', '{}', '{"each": "$.input.items", "input": "$.item.double()", "on_failure": "continue"}'), s('z', '{m}')) AS run \gset
SELECT is(look(:run), 'waiting 1: m failed, z pending', 'and for one of the first');
SELECT wf_on('{"items": [1, 2]}', orchestrator.step('m', definition => 'inner', each => '$.input.items', input => '{"n": "$.item"}', max_parallel => 1), s('z', '{m}')) AS run \gset
SELECT at(:run, 'm', 0) AS i0 \gset
SELECT is(look(:i0) || input_of(:i0, 'i1'), 'waiting 2: i1 pending{"input": {"n": 1}, "steps": {}}', 'items may be workflows');
SELECT is(live_items(at(:run, 'm')), 1, 'max_parallel at a time');
SELECT done(:i0, 'i1'), done(:i0, 'i2', '"first"'), done(at(:run, 'm', 1), 'i1');
SELECT done(at(:run, 'm', 1), 'i2', '"second"');
SELECT is(input_of(:run, 'z') -> 'steps', '{"m": ["first", "second"]}', 'joined as any');
-- many
CREATE TABLE clock AS SELECT clock_timestamp() AS at;
SELECT wf_on((SELECT jsonb_build_object('items', jsonb_agg(i)) FROM generate_series(1, 10000) i), s('m', '{}', '{"each": "$.input.items"}'), s('z', '{m}')) AS run \gset
SELECT is(live_items(at(:run, 'm')), 10000, 'a map of 10,000 items');
SELECT cmp_ok(clock_timestamp() - at, '<', interval '5 s', 'is made at once') FROM clock;
SELECT is(count(DISTINCT sort_key), 10000::bigint, 'in order') FROM orchestrator.task_live WHERE parent_id = (SELECT at(:run, 'm'));
SELECT orchestrator.cancel(:run);
SELECT is(look(:run), 'cancelled: m cancelled', 'and cancelled');

-- Repeats ---------------------------------------------------------------
SELECT wf(s('r', '{}', '{"repeat_while": "$.output.more == true", "max_repeats": 3, "input": {"last": "$.output", "round": "$.iteration"}}'), s('z', '{r}')) AS run \gset
SELECT is(input_of(:run, 'r'), '{"last": null, "round": null}', 'a step that repeats: its first round');
SELECT at(:run, 'r') AS r \gset
SELECT done(:run, 'r', '{"more": true, "n": 1}');
SELECT is(look(:run) || input_of(:run, 'r'), 'waiting 2: r pending{"last": {"n": 1, "more": true}, "round": 1}', 'the next has the last output at hand');
SELECT is((task(:r)).iteration || ' ' || (task(:r)).attempt || ' ' || ((task(:r)).epoch > 1), '2 0 true', 'it is the same task, of a higher epoch');
SELECT done(:run, 'r', '{"more": false}');
SELECT is(look(:run) || input_of(:run, 'z'), 'waiting 1: r completed, z pending{"input": {}, "steps": {"r": {"more": false}}}', 'until repeat_while does not hold');
SELECT wf(s('r', '{}', '{"repeat_while": "$.output.more == true", "max_repeats": 3, "on_failure": "continue"}'), s('z', '{r}')) AS run \gset
SELECT done(:run, 'r', '{"more": true}'), done(:run, 'r', '{"more": true}');
SELECT is(look(:run), 'waiting 2: r pending', 'a third round');
SELECT done(:run, 'r', '{"more": true}');
SELECT is(look(:run), 'waiting 1: r failed, z pending', 'and no fourth');
SELECT is(error_at(:run, 'r'), 'OR007 step "r" repeated 3 times, its max_repeats', 'which says why');
SELECT is(input_of(:run, 'z') #> '{steps,r}', 'null', 'its output is that of a failed one');
SELECT is(detail_of(at(:run, 'r'), 'repeating'), '{"iteration": 2, "output": {"more": true}}', 'each round is in the trace');
SELECT wf(s('r', '{}', '{"repeat_while": "$.output.more"}')) AS run \gset
SELECT done(:run, 'r', '{"more": true}'), broken(:run, 'r');
SELECT is(look(:run), 'failed: r failed', 'a round may fail');
SELECT wf(s('r', '{}', '{"repeat_while": "$.output.more.double()", "on_failure": "continue"}'), s('z', '{r}')) AS run \gset
SELECT done(:run, 'r', '{"more": "x"}');
SELECT is(look(:run), 'waiting 1: r failed, z pending', 'a condition that fails: the step does');
SELECT orchestrator.define_workflow('again', ARRAY[s('a'), s('b', '{a}')]);
SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('r', definition => 'again', repeat_while => '$.iteration < 2'), s('z', '{r}')]) AS run \gset
SELECT done(at(:run, 'r'), 'a'), done(at(:run, 'r'), 'b');
SELECT is(look(:run), 'waiting 2: r scheduled', 'a workflow repeats');
SELECT later(1), orchestrator._promote_due(10);
SELECT is(look(at(:run, 'r')), 'waiting 2: a pending', 'from its first step on');
SELECT done(at(:run, 'r'), 'a'), done(at(:run, 'r'), 'b');
SELECT is(look(:run), 'waiting 1: r completed, z pending', 'until it is enough');

-- Sleeps and waits ------------------------------------------------------
SELECT wf(orchestrator.step('n', sleep => '1 min'), s('z', '{n}')) AS run \gset
SELECT is(look(:run), 'waiting 2: n waiting', 'a sleep');
SELECT pass(59);
SELECT is(look(:run), 'waiting 2: n waiting', 'is not over before its time');
SELECT pass(2);
SELECT is(look(:run), 'waiting 1: n completed, z pending', 'but then');
SELECT wf(orchestrator.step('n', sleep => '0'), s('z', '{n}')) AS run \gset
SELECT pass(0);
SELECT is(look(:run), 'waiting 1: n completed, z pending', 'a sleep of nothing');
SELECT wf(orchestrator.step('w', wait_for => 'go'), s('z', '{w}')) AS run \gset
SELECT pass(1000000);
SELECT is(look(:run), 'waiting 2: w waiting', 'a wait without a timeout has none');
SELECT orchestrator.signal(:run, 'other'), orchestrator.signal(:run, 'go', '{"x": 1}');
SELECT is(look(:run) || output_of(:run, 'w'), 'waiting 1: w completed, z pending{"x": 1}', 'a signal ends it, and is its output');
SELECT is(string_agg(name || ' ' || coalesce(consumed_by::text, '-') || (sent_by = current_user), ', ' ORDER BY id), format('other -true, go %strue', at(:run, 'w')), 'each is kept, with who sent it') FROM orchestrator.signal WHERE task_id = :run;
SELECT wf(s('a'), orchestrator.step('w', wait_for => 'go', needs => '{a}'), orchestrator.step('w2', wait_for => 'go', needs => '{w}'), s('z', '{w2}')) AS run \gset
SELECT orchestrator.signal(:run, 'go', '1'), orchestrator.signal(:run, 'go', '2');
SELECT is(look(:run), 'waiting 4: a pending', 'signals before the wait begins');
SELECT done(:run, 'a');
SELECT is(look(:run) || output_of(:run, 'w') || output_of(:run, 'w2'), 'waiting 1: a completed, w completed, w2 completed, z pending12', 'are kept, and consumed in their order, each once');
SELECT wf(orchestrator.step('w', wait_for => 'go'), orchestrator.step('w2', wait_for => 'go')) AS run \gset
SELECT orchestrator.signal(:run, 'go', '1');
SELECT is(look(:run), 'waiting 1: w completed, w2 waiting', 'of two that wait one gets it');
SELECT orchestrator.signal(at(:run, 'w2'), 'go', '2');
SELECT is(look(:run) || output_of(:run), 'completed: w completed, w2 completed{"w": 1, "w2": 2}', 'a signal to the step itself');
SELECT is(error_of(format('SELECT orchestrator.signal(%s, ''go'')', :run)), format('55000: cannot signal task %s: it is completed [It is finished.]', :run), 'none to a finished run');
SELECT is(error_of('SELECT orchestrator.signal(-1, ''go'')') LIKE '42704: task -1 does not exist%', true, 'nor to none');
SELECT is(error_of(format('SELECT orchestrator.signal(%s, '''')', wf(s('a')))) LIKE '22023: the name of a signal%', true, 'nor without a name');
SELECT orchestrator.define_workflow('gate', ARRAY[orchestrator.step('g', wait_for => 'go', timeout => '1 min')]);
SELECT wf(orchestrator.step('n', definition => 'gate'), orchestrator.step('n2', definition => 'gate')) AS run \gset
SELECT orchestrator.signal(at(:run, 'n2'), 'go', '"second"');
SELECT is(look(:run), 'waiting 1: n waiting, n2 completed', 'a signal to a sub-workflow reaches what is below it, and nothing else');
SELECT orchestrator.signal(:run, 'go', '"first"');
SELECT is(output_of(:run), '{"n": "first", "n2": "second"}', 'one to the root what is anywhere');
SELECT wf_on('{"i": [1, 2]}', orchestrator.step('m', definition => 'gate', each => '$.input.i')) AS run \gset
SELECT orchestrator.signal(at(:run, 'm', 1), 'go', '"b"'), orchestrator.signal(:run, 'go', '"a"');
SELECT is(output_of(:run), '["a", "b"]', 'and in items');
SELECT wf(orchestrator.step('w', wait_for => 'go', timeout => '1 min', on_timeout => 'b'), s('z', '{w}'), s('b')) AS run \gset
SELECT orchestrator.signal(:run, 'go', '{"timed_out": "perhaps"}');
SELECT is(look(:run), 'waiting 1: w completed, z pending, b skipped', 'a payload is not mistaken for a timeout');
SELECT wf(orchestrator.step('w', wait_for => 'go', timeout => '1 min'), s('z', '{w}')) AS run \gset
SELECT later(61);
SELECT orchestrator.signal(:run, 'go', '"late"');
SELECT pass(0);
SELECT is(look(:run) || output_of(:run, 'w'), 'waiting 1: w completed, z pending"late"', 'a signal after the time, but before the timeout was seen, counts');

-- Approvals
SELECT wf(s('a'), orchestrator.step('ok', wait_for => 'approval', needs => '{a}'), s('z', '{ok}')) AS run \gset
SELECT orchestrator.approve(:run, 'ok', '{"note": "early"}');
SELECT done(:run, 'a');
SELECT is(output_of(:run, 'ok') - 'at', jsonb_build_object('approved', true, 'by', current_user, 'payload', '{"note": "early"}'::jsonb), 'an approval before the wait begins is kept, with who and when');
SELECT is(error_of(format('SELECT orchestrator.approve(%s, ''ok'')', :run)), format('55000: step "ok" of task %s is finished', :run), 'no second one');
SELECT is(error_of(format('SELECT orchestrator.approve(%s, ''z'')', :run)), format('55000: step "z" of task %s does not wait for anybody [Only a step with wait_for can be approved or rejected.]', :run), 'nor for a step that does not wait');
SELECT is(error_of(format('SELECT orchestrator.reject(%s, ''none'')', :run)), format('42704: task %s has no step "none" [The view orchestrator.step_status names its steps.]', :run), 'nor for none');
SELECT done(:run, 'z');
SELECT is(error_of(format('SELECT orchestrator.approve(%s, ''ok'')', :run)) LIKE '55000: cannot signal task%', true, 'nor in a finished run');
SELECT wf(orchestrator.step('ok', wait_for => 'approval'), orchestrator.step('w', wait_for => 'ok'), s('z', '{ok,w}')) AS run \gset
SELECT orchestrator.signal(:run, 'ok', '"signal"');
SELECT is(look(:run), 'waiting 2: ok waiting, w completed', 'a signal of the name of a step is no approval');
SELECT orchestrator.reject(:run, 'ok', 'not good');
SELECT is(look(:run), 'failed: ok failed, w completed', 'rejected');
SELECT is((task(at(:run, 'ok'))).error, jsonb_build_object('sqlstate', 'OR006', 'message', format('rejected by "%s"', current_user), 'detail', 'not good'), 'with who and why');
SELECT wf(s('a'), orchestrator.step('ok', wait_for => 'approval', needs => '{a}')) AS run \gset
SELECT orchestrator.reject(:run, 'ok', 'early'), done(:run, 'a');
SELECT is(look(:run), 'failed: a completed, ok failed', 'also before the wait begins');
SELECT orchestrator.define_workflow('asks', ARRAY[orchestrator.step('ok', wait_for => 'approval')]);
SELECT wf(orchestrator.step('sub', definition => 'asks'), s('a'), orchestrator.step('ok', wait_for => 'approval', needs => '{a}')) AS run \gset
SELECT orchestrator.approve(:run, 'ok');
SELECT is(look(:run), 'waiting 3: sub waiting, a pending', 'an approval is not for a step of that name below');

-- Limits and steps that are added ---------------------------------------
SELECT orchestrator.define_workflow('small', ARRAY[s('a'), s('b', '{a}')], max_steps => 4);
SELECT orchestrator._enqueue_as(owner_id(), 'small', '{}') AS run \gset
SELECT orchestrator.add_steps(:run, ARRAY[s('c', '{a}'), s('d', '{b,c}')]);
SELECT is(look(:run), 'waiting 4: a pending', 'steps added from outside wait for their needs');
SELECT is(error_of(format('SELECT orchestrator.add_steps(%s, ARRAY[s(''e'')])', :run)) LIKE format('OR007: task %s would have 5 steps, more than max_steps, 4%%', :run), true, 'max_steps');
SELECT done(:run, 'a');
SELECT is(look(:run), 'waiting 3: a completed, b pending, c pending', 'and start with the others');
SELECT done(:run, 'b'), done(:run, 'c');
SELECT is(input_of(:run, 'd') -> 'steps', '{"b": 1, "c": 1}', 'they see each other');
SELECT done(:run, 'd', '"sink"');
SELECT is(look(:run) || output_of(:run), 'completed: a completed, b completed, c completed, d completed"sink"', 'the run''s output is of the sinks it has in the end');
SELECT is(error_of(format('SELECT orchestrator.add_steps(%s, ARRAY[s(''e'')])', :run)) LIKE '55000: cannot add steps to%', true, 'none to a finished run');
SELECT wf(s('a')) AS run \gset
SELECT orchestrator.add_steps(:run, ARRAY[s('x')], '1 min');
SELECT is(look(:run), 'waiting 2: a pending, x scheduled', 'with a delay');
SELECT done(:run, 'a'), pass(61);
SELECT is(look(:run), 'waiting 1: a completed, x pending', 'which ends');
SELECT orchestrator.add_steps(:run, ARRAY[orchestrator.step('sub', definition => 'inner'), s('m', '{}', '{"each": "$.input.none[*]"}'), orchestrator.step('m2', 'SELECT 1', 'sql', each => '$.steps'), orchestrator.step('n', sleep => '1 min')], '1 min');
SELECT is(look(:run), 'waiting 4: a completed, x pending, sub scheduled, m completed, m2 scheduled, n waiting', 'of anything');
SELECT pass(61);
SELECT is(look(:run) || '; ' || look(at(:run, 'sub')) || '; ' || look(at(:run, 'm2')), 'waiting 4: a completed, x pending, sub waiting, m completed, m2 waiting, n waiting; waiting 2: i1 pending; waiting 1: m2 pending', 'runs and maps begin');
SELECT pass(60);
SELECT is(state_of(at(:run, 'n')), 'completed', 'a sleep begins later');
SELECT is(error_of(format('SELECT orchestrator.add_steps(%s, ARRAY[s(''a'')])', :run)) LIKE '22023: %has two steps "a"%', true, 'not of a name that is taken');
SELECT is(error_of(format('SELECT orchestrator.add_steps(%s, ARRAY[s(''q'', ''{none}'')])', :run)) LIKE '22023: step "q", key "needs": there is no step "none"%', true, 'nor with a need that is not there');
SELECT is(error_of(format('SELECT orchestrator.add_steps(%s, ARRAY[s(''q'')])', at(:run, 'x'))) LIKE '55000: cannot add steps to task%It has none of its own%', true, 'nor to a step that is no run');
SELECT wf(s('a'), s('b', '{a}')) AS run \gset
SELECT asked(:run, 'a', jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps', to_jsonb(ARRAY[s('c'), s('d', '{a,c}')])),
  jsonb_build_object('verb', 'add_steps', 'steps', to_jsonb(ARRAY[s('e', '{d}')]), 'delay', '1 min'), '{"verb": "set_context", "value": {"k": 1}}'::jsonb, '{"verb": "checkpoint", "name": "here", "context": {"k": 2}}'::jsonb));
SELECT is(look(:run), 'waiting 4: a completed, b pending, c pending', 'steps that a step asks for are its siblings');
SELECT is(orchestrator.context(at(:run, 'b')), '{"k": 2}', 'with the context it sets');
SELECT is(name || context || steps, 'here{"k": 2}{"a": 1}', 'and a checkpoint, in which it is completed') FROM orchestrator.checkpoint WHERE task_id = :run;
SELECT done(:run, 'b'), done(:run, 'c');
SELECT done(:run, 'd');
SELECT is(look(:run), 'waiting 1: a completed, b completed, c completed, d completed, e scheduled', 'delays of their own');
SELECT wf(s('a')) AS run \gset
SELECT asked(:run, 'a', jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps', (SELECT jsonb_agg(s('x' || i)) FROM generate_series(1, 51) i))));
SELECT is(look(:run), 'failed: a failed', 'more than max_steps: the step fails');
SELECT is((task(at(:run, 'a'))).error ->> 'sqlstate', 'OR007', 'with OR007');
SELECT is(detail_of(at(:run, 'a'), 'failed') ->> 'message', format('task %s would have 52 steps, more than max_steps, 51', :run), 'and a trace');
SELECT is((SELECT count(*) FROM orchestrator.added_step WHERE task_id = :run), 0::bigint, 'none of them is made');
SELECT wf(s('a'), s('z', '{a}')) AS run \gset
SELECT asked(:run, 'a', jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps', (SELECT jsonb_agg(s('x' || i, '{a}')) FROM generate_series(1, 50) i))));
SELECT is((SELECT count(*) FROM orchestrator.task_live WHERE parent_id = :run), 51::bigint, 'fifty are allowed');
-- a plain task
SELECT orchestrator.define('plain', 'SELECT 1', 'sql', max_attempts => 1);
SELECT orchestrator.enqueue('plain') AS run \gset
SELECT claim(100000);
SELECT asked(:run, 'none', jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps', to_jsonb(ARRAY[s('a'), s('b', '{a}')]))), '"own"');
SELECT is(look(:run), 'waiting 2: a pending', 'a task that adds steps becomes a run of them');
SELECT is(input_of(:run, 'a'), '{"input": {}, "steps": {}}', 'with its input');
SELECT asked(:run, 'a', jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps', to_jsonb(ARRAY[s('c', '{b}')]))));
SELECT is(look(:run), 'waiting 2: a completed, b pending', 'a step of it adds to it');
SELECT done(:run, 'b');
SELECT done(:run, 'c');
SELECT is(look(:run) || output_of(:run), 'completed: a completed, b completed, c completed"own"', 'completed with its own output');
SELECT orchestrator.enqueue('plain') AS run \gset
SELECT claim(100000);
SELECT asked(:run, 'none', jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps', to_jsonb(ARRAY[s('a'), s('b', '{a}')]))), '"own"');
SELECT broken(:run, 'a');
SELECT is(look(:run) || ' ' || error_at(:run), 'failed: a failed 22012 step "a" failed: no', 'or failed by them');
SELECT orchestrator.retry(:run);
SELECT is(look(:run), 'waiting 2: a pending', 'retried: its steps');
SELECT orchestrator.enqueue('plain') AS run \gset
SELECT claim(100000), orchestrator.pause(:run);
SELECT asked(:run, 'none', jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps', to_jsonb(ARRAY[s('a')]))));
SELECT is(look(:run), 'paused (waiting) 1: a paused (pending)', 'paused while it ran: it is paused with its steps');
SELECT is(story(:run), 'created 0, started 1, pausing 1, steps_added 1, paused 1', 'as its trace says');
SELECT orchestrator.resume(:run);
SELECT is(look(:run), 'waiting 1: a pending', 'and resumed');
-- max_depth
SELECT orchestrator.define_workflow('shallow', ARRAY[orchestrator.step('o1', definition => 'middle', on_failure => 'continue'), s('z', '{o1}')], max_depth => 2);
SELECT orchestrator._enqueue_as(owner_id(), 'shallow', '{}') AS run \gset
SELECT is(look(:run) || '; ' || look(at(:run, 'o1')), 'waiting 1: o1 failed, z pending; failed: m1 failed', 'max_depth');
SELECT is(error_at(at(:run, 'o1'), 'm1'), 'OR007 run is deeper than max_depth, 2 levels', 'says so');
SELECT orchestrator.define_workflow('flat', ARRAY[s('a')], max_depth => 1);
SELECT orchestrator._enqueue_as(owner_id(), 'flat', '{}') AS run \gset
SELECT orchestrator.add_steps(:run, ARRAY[s('b')]);
SELECT is(look(:run), 'waiting 2: a pending, b pending', 'steps that are added are not deeper');

-- Context and checkpoints -----------------------------------------------
SELECT wf(s('a'), s('b', '{a}'), s('c', '{b}'), s('d', '{a}')) AS run \gset
SELECT is(orchestrator.context(:run), NULL, 'a run has no context');
SELECT orchestrator.set_context(:run, '{"n": 1}');
SELECT is(orchestrator.context(at(:run, 'a')), '{"n": 1}', 'until it is set; any task of it names it');
SELECT done(:run, 'a', '"A"'), orchestrator.checkpoint(:run, 'one', NULL);
SELECT done(:run, 'b', '"B"'), orchestrator.checkpoint(:run, 'two', '{"n": 2}');
SELECT is(string_agg(name || ' ' || context || (SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(steps) k), '; ' ORDER BY id), 'one {"n": 1}a; two {"n": 2}a,b', 'checkpoints') FROM orchestrator.checkpoint WHERE task_id = :run;
SELECT done(:run, 'c'), done(:run, 'd');
SELECT is(look(:run), 'completed: a completed, b completed, c completed, d completed', 'the run ends');
SELECT (task(at(:run, 'b'))).epoch AS epoch, (task(:run)).epoch AS run_epoch \gset
SELECT is(orchestrator.restore(:run, 'one'), 'waiting', 'restore() of a finished run');
SELECT is(look(:run), 'waiting 3: a completed, b pending, c waiting, d pending', 'what was not completed then runs again');
SELECT is(output_of(:run, 'a') || orchestrator.context(:run), '["A", {"n": 1}]', 'outputs and context are as they were');
SELECT is((task(at(:run, 'b'))).epoch > :epoch AND (task(:run)).epoch > :run_epoch, true, 'epochs rise');
SELECT is(error_of(format('SELECT orchestrator.restore(%s, ''none'')', :run)) LIKE '42704: task % has no checkpoint "none"%', true, 'not to one that there is not');
SELECT done(:run, 'b', '"B2"'), done(:run, 'd');
SELECT is(input_of(:run, 'c') -> 'steps', '{"b": "B2"}', 'and goes on');
SELECT orchestrator.restore(:run, 'two');
SELECT is(look(:run) || orchestrator.context(:run), 'waiting 2: a completed, b completed, c pending, d pending{"n": 2}', 'restore() of a run that lives');
SELECT orchestrator.define_workflow('checked', ARRAY[s('a'), s('b', '{a}'), s('c', '{b}'), s('d', '{c}'), s('e', '{d}')], checkpoint_interval => 2);
SELECT orchestrator._enqueue_as(owner_id(), 'checked', '{}') AS run \gset
SELECT done(:run, 'a'), done(:run, 'b');
SELECT done(:run, 'c'), done(:run, 'd');
SELECT done(:run, 'e');
SELECT is(array_agg(name || ' ' || (SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(steps) k) ORDER BY id), '{"after 2 steps a,b","after 4 steps a,b,c,d"}', 'checkpoint_interval') FROM orchestrator.checkpoint WHERE task_id = :run;

-- rerun_from, fork, retry -----------------------------------------------
SELECT wf_on('{"i": 1}', s('a'), s('b', '{a}'), s('c', '{b}'), s('d', '{a}'), s('e', '{c,d}')) AS run \gset
SELECT done(:run, x, to_jsonb(x)) FROM unnest('{a,b,c,d,e}'::text[]) x;
SELECT at(:run, 'b') AS b, (task(at(:run, 'b'))).epoch AS epoch, at(:run, 'd') AS d, (task(at(:run, 'd'))).epoch AS d_epoch \gset
SELECT is(orchestrator.rerun_from(:run, 'b'), 'waiting', 'rerun_from() of a finished run');
SELECT is(look(:run), 'waiting 3: a completed, b pending, c waiting, d completed, e waiting', 'the step and its dependants run again');
SELECT is((task(:b)).epoch > :epoch AND at(:run, 'b') = :b AND (task(:d)).epoch = :d_epoch, true, 'they are the same tasks, of higher epochs');
SELECT is(detail_of(:b, 'reset'), '{"state": "completed", "output": "b"}', 'their old outputs are in the trace');
SELECT done(:run, 'b', '"b2"'), done(:run, 'c', '"c2"');
SELECT is(input_of(:run, 'e') -> 'steps', '{"c": "c2", "d": "d"}', 'outputs of what went before are kept');
SELECT orchestrator.rerun_from(:run, 'c');
SELECT is(look(:run), 'waiting 2: a completed, b completed, c pending, d completed, e waiting', 'of a run that lives');
SELECT claim(100000), (task(at(:run, 'c'))).epoch AS epoch \gset
SELECT orchestrator.rerun_from(:run, 'c');
SELECT is(orchestrator._settle_completed(at(:run, 'c'), :epoch, '"old"', NULL, NULL), false, 'the report of one that ran is stale');
SELECT done(:run, 'c', '"c3"'), done(:run, 'e', '"end"');
SELECT is(look(:run) || output_of(:run), 'completed: a completed, b completed, c completed, d completed, e completed"end"', 'to its end');
SELECT is(error_of(format('SELECT orchestrator.rerun_from(%s, ''x'')', :run)) LIKE '42704: task % has no step "x"%', true, 'not from a step that there is not');
SELECT is(error_of(format('SELECT orchestrator.rerun_from(%s, ''x'')', at(:run, 'a'))) LIKE '55000: cannot rerun steps of task %: it is completed [It has no steps.]', true, 'nor of a task without steps');
SELECT is(error_of(format('SELECT orchestrator.%s', v)) LIKE '55000: cannot %', true, format('a final state is not left by %s', v)) FROM unnest(ARRAY[format('resume(%s)', :run), format('pause(%s)', :run), format('cancel(%s)', :run),
  format('retry(%s)', :run), format('skip_step(%s, ''a'')', :run), format('signal(%s, ''a'')', :run), format('add_steps(%s, ARRAY[s(''q'')])', :run), format('retry(%s)', :b)]) v;
-- with a step that failed the run elsewhere
SELECT wf(s('a'), s('b', '{a}'), s('c'), s('d', '{c}'), s('e', '{b,d}')) AS run \gset
SELECT done(:run, 'a'), done(:run, 'b'), broken(:run, 'c');
SELECT is(look(:run), 'failed: a completed, b completed, c failed', 'a failed run');
SELECT orchestrator.rerun_from(:run, 'b');
SELECT is(look(:run), 'waiting 4: a completed, b pending, c pending', 'what failed it runs again too');
SELECT done(:run, x, to_jsonb(x)) FROM unnest('{b,c,d,e}'::text[]) x;
SELECT is(look(:run), 'completed: a completed, b completed, c completed, d completed, e completed', 'and it is completed');
-- nested and maps
SELECT wf_on('{"items": [1, 2]}', orchestrator.step('sub', definition => 'inner'), s('m', '{sub}', '{"each": "$.input.items"}'), s('z', '{m}')) AS run \gset
SELECT done(at(:run, 'sub'), 'i1'), done(at(:run, 'sub'), 'i2'), done(:run, 'm', '1', 0), done(:run, 'm', '2', 1), done(:run, 'z');
SELECT at(:run, 'm') AS m \gset
SELECT orchestrator.rerun_from(:run, 'sub');
SELECT is(look(:run) || '; ' || look(at(:run, 'sub')) || '; ' || look(:m), 'waiting 3: sub waiting, m waiting, z waiting; waiting 2: i1 pending; waiting', 'rerun_from() a sub-workflow: it begins anew, and a map after it');
SELECT done(at(:run, 'sub'), 'i1'), done(at(:run, 'sub'), 'i2'), done(:run, 'm', '"x"', 0);
SELECT is(look(:run) || '; ' || look(:m), 'waiting 2: sub completed, m waiting, z waiting; waiting 1: m completed, m running', 'up to the join');
SELECT done(:run, 'm', '"y"', 1);
SELECT is(input_of(:run, 'z') -> 'steps', '{"m": ["x", "y"]}', 'of the new items');
-- rerun of a wait needs a new signal
SELECT wf(orchestrator.step('w', wait_for => 'go'), s('z', '{w}')) AS run \gset
SELECT orchestrator.signal(:run, 'go', '1'), done(:run, 'z'), orchestrator.rerun_from(:run, 'w');
SELECT is(look(:run), 'waiting 2: w waiting, z waiting', 'a wait that runs again wants a new signal');
SELECT orchestrator.signal(:run, 'go', '2');
SELECT is(look(:run) || output_of(:run, 'w'), 'waiting 1: w completed, z pending2', 'and takes it');

SELECT wf_on('{"i": 1}', s('a'), s('b', '{a}'), s('c', '{b}')) AS run \gset
SELECT orchestrator.set_context(:run, '"ctx"'), done(:run, 'a', '"A"'), done(:run, 'b', '"B"'), broken(:run, 'c');
SELECT to_jsonb(t) AS before, (SELECT jsonb_agg(to_jsonb(x) ORDER BY x.id) FROM orchestrator.task x WHERE x.parent_id = :run) AS steps FROM task(:run) t \gset
SELECT orchestrator.fork(:run, 'b') AS fork \gset
SELECT is(look(:fork), 'waiting 2: a completed, b pending', 'fork() has what was before, and goes on');
SELECT is(input_of(:fork, 'b') || to_jsonb(orchestrator.context(:fork)), '[{"input": {"i": 1}, "steps": {"a": "A"}}, "ctx"]', 'with outputs, input and context');
SELECT is(to_jsonb(t), :'before'::jsonb, 'the old run stays as it is') FROM task(:run) t;
SELECT is((SELECT jsonb_agg(to_jsonb(x) ORDER BY x.id) FROM orchestrator.task x WHERE x.parent_id = :run), :'steps'::jsonb, 'with its steps');
SELECT is((task(:fork)).metadata, jsonb_build_object('forked_from', :run), 'the new one says where it comes from');
SELECT done(:fork, 'b', '"B2"'), done(:fork, 'c', '"end"');
SELECT is(look(:fork) || output_of(:fork), 'completed: a completed, b completed, c completed"end"', 'to its end');
SELECT wf(s('a'), s('b', '{a}'), s('c')) AS run \gset
SELECT done(:run, 'a'), orchestrator.add_steps(:run, ARRAY[s('x', '{a}')]);
SELECT orchestrator.fork(:run, 'b') AS fork \gset
SELECT is(look(:fork), 'waiting 3: a completed, b pending, c pending, x pending', 'of a run that lives, with steps that were added');
SELECT is(look(:run), 'waiting 3: a completed, b pending, c running, x pending', 'which lives on');
SELECT wf(orchestrator.step('sub', definition => 'inner')) AS run \gset
SELECT is(error_of(format('SELECT orchestrator.fork(%s, ''i1'')', at(:run, 'sub'))) LIKE '55000: cannot fork task %Only a workflow at the top%', true, 'not of a sub-workflow');

SELECT wf(s('a'), s('b', '{a}'), s('c', '{}', '{"on_failure": "continue"}'), s('d'), s('e', '{b,c,d}')) AS run \gset
SELECT done(:run, 'a', '"A"'), broken(:run, 'c'), broken(:run, 'b');
SELECT is(look(:run), 'failed: a completed, b failed, c failed, d cancelled', 'a step fails the run');
SELECT (task(:run)).epoch AS epoch \gset
SELECT is(orchestrator.retry(:run), 'waiting', 'retry() of a run');
SELECT is(look(:run), 'waiting 3: a completed, b pending, c failed, d pending', 'failed and cancelled steps run again, completed ones stay, and what went on');
SELECT is((task(:run)).epoch > :epoch AND (task(:run)).error IS NULL, true, 'its epoch rises');
SELECT done(:run, 'b'), done(:run, 'd'), done(:run, 'e', '"end"');
SELECT is(look(:run) || output_of(:run), 'completed: a completed, b completed, c failed, d completed, e completed"end"', 'to its end');
SELECT wf(s('a'), s('b', '{a}')) AS run \gset
SELECT broken(:run, 'a'), orchestrator.retry(:run, 1), broken(:run, 'a');
SELECT is(look(:run), 'failed: a failed', 'it may fail again');
SELECT is(error_of(format('SELECT orchestrator.retry(%s)', at(:run, 'a'))), format('55000: cannot retry task %s: it is failed [It is a step: use orchestrator.retry(%s), or orchestrator.rerun_from(%2$s, step).]', at(:run, 'a'), :run), 'a step is retried with its run');
SELECT wf_on('{"items": [1, 2, 3]}', orchestrator.step('sub', definition => 'inner'), s('m', '{}', '{"each": "$.input.items", "max_parallel": 2}'), orchestrator.step('n', sleep => '1 hour')) AS run \gset
SELECT done(:run, 'm', '"one"', 0), done(at(:run, 'sub'), 'i1'), broken(:run, 'm', 1);
SELECT at(:run, 'm') AS m, at(:run, 'sub') AS sub \gset
SELECT is(look(:run) || '; ' || look(:m) || '; ' || look(:sub), 'failed: sub cancelled, m failed, n cancelled; failed: m completed, m failed, m cancelled; cancelled: i1 completed, i2 cancelled', 'all of it ends with it');
SELECT orchestrator.retry(:run);
SELECT is(look(:run) || '; ' || look(:m) || '; ' || look(:sub), 'waiting 3: sub waiting, m waiting, n waiting; waiting 2: m completed, m pending, m pending; waiting 1: i1 completed, i2 pending', 'and lives again');
SELECT done(:run, 'm', '"two"', 1), done(:run, 'm', '"three"', 2), done(at(:run, 'sub'), 'i2'), pass(3601);
SELECT is(look(:run) || output_of(:run, 'm'), 'completed: sub completed, m completed, n completed["one", "two", "three"]', 'to its end');
SELECT wf(s('a'), s('b', '{a}')) AS run \gset
SELECT orchestrator.cancel(:run), orchestrator.retry(:run);
SELECT is(look(:run), 'waiting 2: a pending', 'a cancelled run');
SELECT orchestrator.enqueue_workflow(ARRAY[s('a')], delay => '1 hour') AS run \gset
SELECT is(look(:run), 'scheduled 1', 'a run that begins later');
SELECT orchestrator.cancel(:run), orchestrator.retry(:run);
SELECT is(look(:run), 'scheduled 1', 'does so when it was cancelled and retried');
SELECT orchestrator.pause(:run), later(3601), orchestrator._promote_due(100);
SELECT is(look(:run), 'paused (scheduled) 1', 'not while it is paused');
SELECT orchestrator.resume(:run);
SELECT is(look(:run), 'scheduled 1', 'it is resumed');
SELECT orchestrator._promote_due(100);
SELECT is(look(:run), 'waiting 1: a pending', 'and begins');

-- skip_step
SELECT wf(s('a'), s('b', '{a}'), s('c', '{b}')) AS run \gset
SELECT orchestrator.skip_step(:run, 'b', '{"x": 1}', 'not today');
SELECT is(look(:run), 'waiting 2: a pending, b skipped, c pending', 'skip_step() of a step without a row: what needs it goes on');
SELECT is(detail_of(at(:run, 'b'), 'skipped'), jsonb_build_object('by', current_user, 'reason', 'not today'), 'with who and why in the trace');
SELECT claim(100000);
SELECT orchestrator.skip_step(:run, 'a');
SELECT is(look(:run), 'waiting 1: a skipped, b skipped, c running', 'of one that runs');
SELECT is(error_of(format('SELECT orchestrator.skip_step(%s, ''a'')', :run)), format('55000: cannot skip task %s: it is skipped [A finished step stays as it is.]', at(:run, 'a')), 'not of a finished one');
SELECT orchestrator.skip_step(:run, 'c', '"z"');
SELECT is(look(:run) || output_of(:run), 'completed: a skipped, b skipped, c skipped"z"', 'of the last: the run is completed');
SELECT wf_on('{"items": [1, 2]}', s('m', '{}', '{"each": "$.input.items"}'), orchestrator.step('sub', definition => 'inner'), s('z', '{m,sub}')) AS run \gset
SELECT at(:run, 'm') AS m, at(:run, 'sub') AS sub \gset
SELECT orchestrator.skip_step(:run, 'm', '[]'), orchestrator.skip_step(:run, 'sub');
SELECT is(look(:run) || '; ' || look(:m) || '; ' || look(:sub), 'waiting 1: m skipped, sub skipped, z pending; skipped: m cancelled, m cancelled; skipped: i1 cancelled', 'of a map and a sub-workflow: what is below is cancelled');

-- Pause and resume ------------------------------------------------------
SELECT wf_on('{"items": [1, 2, 3]}', s('a'), s('a2', '{a}'), s('b'), orchestrator.step('n', sleep => '1 min'), orchestrator.step('w', wait_for => 'go'),
          orchestrator.step('sub', definition => 'inner'), s('m', '{}', '{"each": "$.input.items", "max_parallel": 1}')) AS run \gset
SELECT at(:run, 'sub') AS sub, at(:run, 'm') AS m, (task(at(:run, 'n'))).expire_at AS ends \gset
SELECT run_one(at(:run, 'a'));
UPDATE orchestrator.task_live SET state = 'pending', epoch = 0, attempt = 0, worker = NULL, started_at = NULL, sort_key = 1 WHERE state = 'running' AND name <> 'a' AND root_id = :run;
SELECT orchestrator.pause(at(:run, 'b'));
SELECT is(orchestrator.pause(:run), 'paused', 'pause() of a run');
SELECT is(look(:run) || '; ' || look(:sub) || '; ' || look(:m), 'paused (waiting) 7: a running (paused), b paused (pending), n paused (waiting), w paused (waiting), sub paused (waiting), m paused (waiting); '
  'paused (waiting) 2: i1 paused (pending); paused (waiting) 3: m paused (pending)', 'holds all that is below it; what runs ends its attempt');
SELECT is(story(at(:run, 'a')) || (detail_of(at(:run, 'a'), 'pausing') ->> 'by'), 'created 0, started 1, pausing 1' || current_user, 'as the trace of that says');
SELECT is(claim(100000), '{}', 'nothing of it is claimed');
SELECT settle_completed(at(:run, 'a'));
SELECT is(look(:run), 'paused (waiting) 6: a completed, a2 paused (pending), b paused (pending), n paused (waiting), w paused (waiting), sub paused (waiting), m paused (waiting)', 'what would start is paused, too');
SELECT orchestrator.signal(:run, 'go', '1'), pass(100);
SELECT is(look(:run), 'paused (waiting) 6: a completed, a2 paused (pending), b paused (pending), n paused (waiting), w paused (waiting), sub paused (waiting), m paused (waiting)', 'no time passes in it, and signals are kept');
SELECT is(orchestrator.resume(:run), 'waiting', 'resume() of a run');
SELECT is(look(:run) || '; ' || look(:sub) || '; ' || look(:m), 'waiting 5: a completed, a2 pending, b paused (pending), n waiting, w completed, sub waiting, m waiting; waiting 2: i1 pending; waiting 3: m pending',
  'returns them to what they were in; a step that was paused by itself stays so; the signal is there');
SELECT is((task(at(:run, 'n'))).expire_at, :'ends', 'a sleep keeps its end');
SELECT pass(0);
SELECT is(state_of(at(:run, 'n')), 'completed', 'which may be over');
SELECT orchestrator.resume(at(:run, 'b')), claim(100000), orchestrator.pause(:run, true);
SELECT is(look(:run) || '; ' || look(:sub) || '; ' || look(:m), 'paused (waiting) 4: a completed, a2 paused (pending), b paused (pending), n completed, w completed, sub paused (waiting), m paused (waiting); paused (waiting) 2: i1 paused (pending); paused (waiting) 3: m paused (pending)', 'force stops what runs');
SELECT orchestrator.resume(:sub);
SELECT is(look(:run) || '; ' || look(:sub), 'paused (waiting) 4: a completed, a2 paused (pending), b paused (pending), n completed, w completed, sub waiting, m paused (waiting); waiting 2: i1 pending', 'resume() of one below, with what is below that');
SELECT orchestrator.resume(:run);
SELECT is(look(:run) || '; ' || look(:sub) || '; ' || look(:m), 'waiting 4: a completed, a2 pending, b pending, n completed, w completed, sub waiting, m waiting; waiting 2: i1 pending; waiting 3: m pending', 'and of all');
SELECT orchestrator.pause(:sub), orchestrator.pause(:run), orchestrator.resume(:run);
SELECT is(look(:sub), 'paused (waiting) 2: i1 paused (pending)', 'a run below that was paused by itself stays so, with its steps');
SELECT orchestrator.resume(:sub);
SELECT is(look(:sub), 'waiting 2: i1 pending', 'until it is resumed');
-- taken back before the attempt of a step ends
SELECT wf(s('a')) AS run \gset
SELECT run_one(at(:run, 'a')), orchestrator.pause(:run), orchestrator.resume(:run);
SELECT is(look(:run) || '; ' || story(at(:run, 'a')), 'waiting 1: a running; created 0, started 1, pausing 1, resumed 1', 'a step that runs is not held any more');
-- what begins in a paused run
SELECT wf_on('{"items": [1, 2]}', s('a'), orchestrator.step('n', sleep => '1 min', needs => '{a}'), s('m', '{a}', '{"each": "$.input.items"}'), orchestrator.step('sub', definition => 'inner', needs => '{a}'), orchestrator.step('w', wait_for => 'go', needs => '{a}')) AS run \gset
SELECT run_one(at(:run, 'a')), orchestrator.pause(:run), orchestrator.signal(:run, 'go');
SELECT settle_completed(at(:run, 'a'));
SELECT at(:run, 'sub') AS sub, at(:run, 'm') AS m \gset
SELECT is(look(:run) || '; ' || look(:sub) || '; ' || look(:m), 'paused (waiting) 4: a completed, n paused (waiting), m paused (waiting), sub paused (waiting), w paused (waiting); paused (waiting) 2: i1 paused (pending); paused (waiting) 2: m paused (pending), m paused (pending)', 'sleeps, waits, maps and sub-workflows begin paused');
SELECT orchestrator.resume(:run);
SELECT is(look(:run) || '; ' || look(:sub) || '; ' || look(:m), 'waiting 3: a completed, n waiting, m waiting, sub waiting, w completed; waiting 2: i1 pending; waiting 2: m pending, m pending', 'and are resumed with it');
SELECT pass(61);
SELECT is(state_of(at(:run, 'n')), 'completed', 'the sleep ends');
SELECT wf(orchestrator.step('w', wait_for => 'go')) AS run \gset
SELECT orchestrator.pause(at(:run, 'w')), orchestrator.signal(:run, 'go', '"kept"'), orchestrator.resume(at(:run, 'w'));
SELECT is(look(:run) || output_of(:run), 'completed: w completed"kept"', 'a wait that was paused by itself gets its signal, too');
SELECT wf(s('a')) AS run \gset
SELECT run_one(at(:run, 'a')), orchestrator.pause(:run);
SELECT settle_completed(at(:run, 'a'));
SELECT is(look(:run), 'completed: a completed', 'a paused run whose last step ends is completed');

-- Cancel ----------------------------------------------------------------
SELECT wf_on('{"items": [1, 2, 3]}', s('a'), s('a2', '{a}'), s('b'), orchestrator.step('n', sleep => '1 min'), orchestrator.step('o1', definition => 'middle'), s('m', '{}', '{"each": "$.input.items", "max_parallel": 2}')) AS run \gset
SELECT at(:run, 'o1') AS o1, at(:run, 'm') AS m \gset
SELECT done(:run, 'a'), done(:run, 'm', '1', 0), orchestrator.pause(at(:run, 'a2'));
SELECT (task(at(:run, 'b'))).epoch AS epoch \gset
SELECT orchestrator.on_completion(:o1, 'plain');
SELECT is(orchestrator.cancel(:run, 'enough'), 'cancelled', 'cancel() of a run');
SELECT is(look(:run) || '; ' || look(:o1) || '; ' || look(at(:o1, 'm1')) || '; ' || look(:m), 'cancelled: a completed, a2 cancelled, b cancelled, n cancelled, o1 cancelled, m cancelled; cancelled: m1 cancelled; cancelled: i1 cancelled; cancelled: m completed, m cancelled, m cancelled', 'cancels all that is below it');
SELECT is(orchestrator._settle_completed(at(:run, 'b'), :epoch, NULL, NULL, NULL), false, 'what ran is stopped');
SELECT is((task(:run)).error = (task(at(:run, 'b'))).error AND (task(:run)).error ->> 'detail' = 'enough', true, 'with the reason');
SELECT is((SELECT input ->> 'state' FROM orchestrator.task WHERE (input ->> 'task')::bigint = :o1), 'cancelled', 'callbacks of what is below are called');
SELECT is((SELECT count(*) FROM orchestrator.task_live WHERE root_id = :run), 0::bigint, 'nothing of it lives');
SELECT is(orchestrator.cancel(:run), 'cancelled', 'again: nothing happens');
SELECT wf(s('a'), orchestrator.step('o1', definition => 'middle', on_failure => 'continue'), s('z', '{o1}')) AS run \gset
SELECT orchestrator.cancel(at(:run, 'o1'));
SELECT is(look(:run), 'waiting 2: a pending, o1 cancelled, z pending', 'cancel() of a sub-workflow, by its on_failure');

-- Compensation ----------------------------------------------------------
CREATE FUNCTION public.undo_it(input jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
SELECT orchestrator.define('undoing', 'SELECT 1', 'sql', max_attempts => 1);
CREATE FUNCTION u(name text, needs text[] DEFAULT '{}', more jsonb DEFAULT '{}') RETURNS orchestrator.step_spec LANGUAGE sql AS $$
  SELECT s($1, $2, '{"undo": "undoing"}' || $3)$$;
CREATE FUNCTION comp(run bigint) RETURNS text LANGUAGE sql AS $$SELECT coalesce((task($1)).compensation, 'none')$$;
-- The undo that is to run now, in any run below; it ends.
CREATE FUNCTION undo(run bigint, fails boolean DEFAULT false) RETURNS text LANGUAGE plpgsql AS $$
DECLARE t orchestrator.task;
BEGIN
  PERFORM claim(100000);
  SELECT x.* INTO t FROM orchestrator.task x WHERE x.root_id = $1 AND x.step < 0 AND x.state = 'running';
  IF NOT FOUND THEN RETURN 'none'; END IF;
  IF $2 THEN PERFORM settle_failed(t.id); ELSE PERFORM settle_completed(t.id); END IF;
  RETURN t.name || coalesce(' ' || t.item, '');
END $$;
SELECT wf(u('a'), u('b', '{a}'), s('c', '{b}'), u('d', '{c}'), s('e', '{d}'), u('f')) AS run \gset
SELECT done(:run, x, to_jsonb(x)) FROM unnest('{a,b,c,d}'::text[]) x;
SELECT is(comp(:run), 'none', 'a run that lives has no compensation');
SELECT broken(:run, 'e');
SELECT is(look(:run) || comp(:run), 'failed: a completed, b completed, c completed, d completed, d (undo) pending, e failed, f cancelledrunning', 'a failed run is undone: the last that was completed first');
SELECT is(input_of(:run, 'd (undo)'), '{"input": {}, "steps": {"c": "c"}, "output": "d"}', 'with the input and output of the step');
SELECT is(error_of(format('SELECT orchestrator.retry(%s)', :run)) LIKE '55000: cannot retry %What it did was undone%', true, 'it cannot be retried then');
SELECT is(error_of(format('SELECT orchestrator.rerun_from(%s, ''a'')', :run)) LIKE '55000: cannot go back in %What it did was undone%', true, 'nor run again from a step');
SELECT is(undo(:run), 'd (undo)', 'one');
SELECT is(undo(:run), 'b (undo)', 'after another, only those that have an undo');
SELECT is(comp(:run), 'running', 'while they run');
SELECT is(undo(:run), 'a (undo)', 'in reverse order');
SELECT is(undo(:run) || comp(:run), 'nonedone', 'each once');
SELECT is(detail_of(:run, 'compensated'), '{"compensation": "done"}', 'traced');
SELECT wf(u('a'), u('b', '{a}'), u('c', '{b}')) AS run \gset
SELECT done(:run, 'a'), done(:run, 'b'), orchestrator.cancel(:run);
SELECT is(look(:run) || comp(:run), 'cancelled: a completed, b completed, b (undo) pending, c cancelledrunning', 'a cancelled run, too');
SELECT is(undo(:run, true), 'b (undo)', 'an undo that fails');
SELECT is(undo(:run), 'a (undo)', 'does not stop the others');
SELECT is(comp(:run) || (detail_of(:run, 'undo_failed') ->> 'step'), 'failedb (undo)', 'and is recorded');
SELECT wf(u('a'), u('b', '{a}'), s('c', '{b}')) AS run \gset
SELECT done(:run, 'a'), done(:run, 'b'), broken(:run, 'c');
SELECT orchestrator.cancel(at(:run, 'b (undo)'));
SELECT is(undo(:run) || comp(:run), 'a (undo)failed', 'an undo that is cancelled counts as failed');
SELECT wf(s('a'), s('c', '{a}')) AS run \gset
SELECT done(:run, 'a'), broken(:run, 'c');
SELECT is(comp(:run), 'none', 'nothing to undo');
SELECT wf(u('a'), s('c', '{a}')) AS run \gset
SELECT done(:run, 'a'), done(:run, 'c');
SELECT is(comp(:run), 'none', 'a completed run is not undone');
SELECT orchestrator.define_workflow('saga', ARRAY[u('i1'), u('i2', '{i1}')]);
SELECT wf_on('{"items": [1, 2]}', orchestrator.step('sub', definition => 'saga'), u('m', '{sub}', '{"each": "$.input.items", "input": "$.item"}'), orchestrator.step('last', definition => 'saga', needs => '{m}')) AS run \gset
SELECT at(:run, 'sub') AS sub \gset
SELECT done(:sub, 'i1'), done(:sub, 'i2'), done(:run, 'm', '"one"', 0), done(:run, 'm', '"two"', 1);
SELECT done(at(:run, 'last'), 'i1'), broken(at(:run, 'last'), 'i2');
SELECT is(array[comp(:run), comp(at(:run, 'last'))], '{running,none}', 'nested: the outermost run that failed is undone');
SELECT is(array[undo(:run), undo(:run)], '{"i1 (undo)","m (undo) 1"}', 'all that is below it, items by themselves');
SELECT is((task(at(:run, 'm'))).output, '["one", "two"]', 'outputs stay');
SELECT is(array[undo(:run), undo(:run), undo(:run), undo(:run)], '{"m (undo) 0","i2 (undo)","i1 (undo)",none}', 'in reverse order of all of it');
SELECT is(comp(:run), 'done', 'done');
SELECT is((SELECT input FROM orchestrator.task WHERE root_id = :run AND step < 0 AND item = 1), '{"input": 2, "output": "two"}', 'an input that is no object');
SELECT wf(orchestrator.step('sub', definition => 'saga', on_failure => 'continue'), s('z', '{sub}')) AS run \gset
SELECT at(:run, 'sub') AS sub \gset
SELECT done(:sub, 'i1'), broken(:sub, 'i2');
SELECT is(array[comp(:run), comp(:sub), look(:run)], '{none,running,"waiting 1: sub failed, z pending"}', 'where on_failure stops it: the one below alone');
SELECT is(undo(:run) || comp(:sub), 'i1 (undo)done', 'done');
SELECT done(:run, 'z');
SELECT is(look(:run) || comp(:run), 'completed: sub failed, z completednone', 'the run above goes on meanwhile');
SELECT wf(orchestrator.step('sub', definition => 'saga', undo => 'undoing'), s('z', '{sub}')) AS run \gset
SELECT done(at(:run, 'sub'), 'i1'), done(at(:run, 'sub'), 'i2'), broken(:run, 'z');
SELECT is(undo(:run) || ', ' || undo(:run) || comp(:run), 'sub (undo), nonedone', 'a sub-workflow with an undo of its own is undone by that');
SELECT wf(orchestrator.step('a', 'SELECT 1', 'sql', undo => 'public.undo_it', max_attempts => 2, retry_delay => '0'), s('c', '{a}')) AS run \gset
SELECT done(:run, 'a'), broken(:run, 'c');
SELECT is(undo(:run, true) || state_of(at(:run, 'a (undo)')) || comp(:run), 'a (undo)pendingrunning', 'an undo has retries of its own');
SELECT undo(:run);
SELECT is(comp(:run), 'done', 'and may succeed then');

-- what has been undone is not retried in part
SELECT wf(orchestrator.step('sub', definition => 'saga', on_failure => 'continue'), s('z')) AS run \gset
SELECT at(:run, 'sub') AS sub \gset
SELECT done(:sub, 'i1'), orchestrator.cancel(:sub);
SELECT undo(:run), broken(:run, 'z');
SELECT is(look(:run) || comp(:sub), 'failed: sub cancelled, z faileddone', 'a sub-workflow that was cancelled and undone, and a run that failed for something else');
SELECT orchestrator.retry(:run);
SELECT is(look(:run) || '; ' || look(:sub) || comp(:sub), 'waiting 2: sub waiting, z pending; waiting 2: i1 pendingnone', 'retried: the sub-workflow begins anew');
SELECT orchestrator.define_workflow('half', ARRAY[orchestrator.step('sub', definition => 'saga', on_failure => 'continue'), s('z', '{sub}')]);
SELECT orchestrator._enqueue_as(owner_id(), 'half', '{"items": 5}') AS run \gset
SELECT done(at(:run, 'sub'), 'i1'), broken(at(:run, 'sub'), 'i2');
SELECT orchestrator.fork(:run, 'z') AS fork \gset
SELECT is(look(:fork) || comp(at(:fork, 'sub')), 'waiting 1: sub failed, z pendingnone', 'a fork has nothing to undo of the old run; its input may be anything');

-- Batches ---------------------------------------------------------------
SELECT orchestrator.enqueue_batch('plain', '{}') AS batch \gset
SELECT is(look(:batch) || output_of(:batch), 'completed{"total": 0, "failed": 0, "cancelled": 0, "completed": 0}', 'a batch of nothing is completed');
SELECT orchestrator.enqueue_batch('plain', ARRAY['{"n": 1}', '{"n": 2}', '{"n": 3}', NULL]::jsonb[], on_completion => 'plain', completion_input => '"tell"', name => 'four') AS batch \gset
SELECT is(state_of(:batch) || (task(:batch)).remaining || (task(:batch)).name, 'waiting4four', 'a batch');
SELECT is(jsonb_agg(input ORDER BY item), '[{"n": 1}, {"n": 2}, {"n": 3}, {}]', 'its items') FROM orchestrator.task WHERE parent_id = :batch;
CREATE FUNCTION item(batch bigint, n int) RETURNS bigint LANGUAGE sql AS $$SELECT id FROM orchestrator.task WHERE parent_id = $1 AND item = $2$$;
SELECT claim(100000);
SELECT settle_completed(item(:batch, 2)), settle_failed(item(:batch, 0)), orchestrator.cancel(item(:batch, 1));
SELECT is(state_of(:batch) || (task(:batch)).remaining, 'waiting1', 'items that fail or are cancelled leave the others');
SELECT settle_completed(item(:batch, 3));
SELECT is(state_of(:batch) || output_of(:batch), 'completed{"total": 4, "failed": 1, "cancelled": 1, "completed": 2}', 'the batch is completed with the counts');
SELECT is((SELECT input - 'task' FROM orchestrator.task WHERE (input ->> 'task')::bigint = :batch), '{"name": "four", "definition": "orchestrator.batch", "state": "completed", "output": {"total": 4, "failed": 1, "cancelled": 1, "completed": 2}, "error": null, "input": "tell"}', 'which its callback is told');
SELECT orchestrator.retry(item(:batch, 0));
SELECT is(state_of(:batch) || (task(:batch)).remaining, 'waiting1', 'an item that is retried: the batch lives again');
SELECT claim(100000);
SELECT settle_completed(item(:batch, 0));
SELECT is(state_of(:batch) || output_of(:batch), 'completed{"total": 4, "failed": 0, "cancelled": 1, "completed": 3}', 'and counts anew');
SELECT orchestrator.enqueue_batch('saga', ARRAY['{"n": 1}', '{"n": 2}', '{"n": 3}']::jsonb[]) AS batch \gset
SELECT done(item(:batch, 0), 'i1'), done(item(:batch, 0), 'i2'), done(item(:batch, 1), 'i1'), broken(item(:batch, 2), 'i1');
SELECT is(look(item(:batch, 1)) || state_of(:batch) || (task(:batch)).remaining, 'waiting 1: i1 completed, i2 pendingwaiting1', 'a batch of workflows');
SELECT orchestrator.retry(item(:batch, 2));
SELECT is(look(item(:batch, 2)) || state_of(:batch) || (task(:batch)).remaining, 'waiting 2: i1 pendingwaiting2', 'one of them retried');
SELECT orchestrator.cancel(:batch);
SELECT is(state_of(:batch) || state_of(item(:batch, 0)) || state_of(item(:batch, 1)) || state_of(item(:batch, 2)), 'cancelledcompletedcancelledcancelled', 'cancelled: those that are not finished');
SELECT is(array[comp(item(:batch, 0)), comp(item(:batch, 1))], '{none,running}', 'and undone, each by itself');
SELECT is(array[undo(:batch), undo(:batch)], '{"i1 (undo)",none}', 'to the end');
SELECT is(error_of(format('SELECT orchestrator.retry(%s)', item(:batch, 1))) LIKE '55000: cannot retry %What it did was undone%', true, 'one that was undone is not retried');
SELECT orchestrator.retry(:batch);
SELECT is(state_of(:batch) || (task(:batch)).remaining || look(item(:batch, 2)), 'waiting1waiting 2: i1 pending', 'the batch retried: those that were not');
SELECT orchestrator.enqueue_batch('plain', ARRAY['{}', '{}']::jsonb[]) AS batch \gset
SELECT orchestrator.cancel(:batch), orchestrator.retry(item(:batch, 0));
SELECT is(state_of(:batch) || (task(:batch)).remaining, 'waiting1', 'an item of a cancelled batch retried');
SELECT orchestrator.enqueue_batch('saga', ARRAY['{}', '{}']::jsonb[]) AS batch \gset
SELECT done(item(:batch, 0), 'i1'), done(item(:batch, 0), 'i2'), broken(item(:batch, 1), 'i1');
SELECT is(state_of(:batch), 'completed', 'completed');
SELECT orchestrator.retry(item(:batch, 1));
SELECT is(look(item(:batch, 1)) || state_of(:batch) || (task(:batch)).remaining, 'waiting 2: i1 pendingwaiting1', 'a workflow of a completed batch retried');
SELECT orchestrator.enqueue_batch('plain', ARRAY['{}']::jsonb[]) AS batch \gset
SELECT claim(100000);
SELECT asked(item(:batch, 0), 'none', jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps', to_jsonb(ARRAY[s('a')]))));
SELECT is(look(item(:batch, 0)) || state_of(:batch), 'waiting 1: a pendingwaiting', 'an item may become a run');
SELECT done(item(:batch, 0), 'a');
SELECT is(state_of(:batch), 'completed', 'and ends the batch then');

-- Deadlines, timeouts, versions -----------------------------------------
SELECT orchestrator.enqueue_workflow(ARRAY[s('a'), orchestrator.step('n', sleep => '1 hour'), s('z', '{a,n}')], deadline => orchestrator._now() + interval '1 min') AS run \gset
SELECT is((task(at(:run, 'a'))).deadline, (task(:run)).deadline, 'the deadline of a run is that of its steps');
SELECT pass(61);
SELECT is(split_part(error_at(:run), ' ', 1) || state_of(:run), 'OR002failed', 'which ends them');
SELECT is((SELECT count(*) FROM orchestrator.task_live WHERE root_id = :run), 0::bigint, 'all');
SELECT orchestrator.define_workflow('quick', ARRAY[s('a'), u('b', '{a}'), s('c', '{b}')], timeout => '1 min');
SELECT orchestrator._enqueue_as(owner_id(), 'quick', '{}') AS run \gset
SELECT done(:run, 'a'), done(:run, 'b'), run_one(at(:run, 'c')), pass(61);
SELECT is(look(:run) || comp(:run), 'failed: a completed, b completed, b (undo) pending, c cancelledrunning', 'the timeout of a workflow ends and undoes it');
SELECT is(error_at(:run) LIKE 'OR004 not finished within the timeout of its definition%', true, 'and says so');
SELECT wf(orchestrator.step('sub', definition => 'quick', on_failure => 'continue'), s('z', '{sub}')) AS run \gset
SELECT pass(61);
SELECT is(look(:run), 'waiting 1: sub failed, z pending', 'of a sub-workflow, by its on_failure');
SELECT orchestrator.define_workflow('strict', ARRAY[s('a')], timeout => '1 min', timeout_policy => 'fail_workflow');
SELECT wf(orchestrator.step('sub', definition => 'strict', on_failure => 'continue'), s('z', '{sub}')) AS run \gset
SELECT pass(61);
SELECT is(look(:run), 'failed: sub failed', 'unless timeout_policy says fail_workflow');
SELECT orchestrator.retry(:run);
SELECT is(look(:run) || '; ' || look(at(:run, 'sub')) || ((task(at(:run, 'sub'))).expire_at > orchestrator._now()), 'waiting 2: sub waiting; waiting 1: a pendingtrue', 'retried, it has the time again');

SELECT orchestrator.define_workflow('versioned', ARRAY[s('a'), s('b', '{a}')]);
SELECT orchestrator._enqueue_as(owner_id(), 'versioned', '{}') AS run \gset
SELECT is(orchestrator.define_workflow('versioned', ARRAY[s('a'), s('x', '{a}'), s('y', '{x}')]), 2, 'a new version');
SELECT done(:run, 'a');
SELECT is(look(:run), 'waiting 1: a completed, b pending', 'a run keeps the one it began with');
SELECT orchestrator._enqueue_as(owner_id(), 'versioned', '{}') AS new \gset
SELECT done(:new, 'a'), done(:run, 'b');
SELECT is(look(:run) || '; ' || look(:new), 'completed: a completed, b completed; waiting 2: a completed, x pending', 'the next has the new one');
SELECT orchestrator.rerun_from(:run, 'b');
SELECT is(look(:run), 'waiting 1: a completed, b pending', 'also when it runs again');

-- a long chain of steps that are skipped, and of waits served at once
SELECT orchestrator.enqueue_workflow(array_agg(s('s' || i, CASE WHEN i > 1 THEN ARRAY['s' || i - 1] ELSE '{}' END, CASE i WHEN 1 THEN '{"when": "$.no"}'::jsonb ELSE '{}' END) ORDER BY i)) AS run FROM generate_series(1, 500) i \gset
SELECT is(state_of(:run) || count(*), 'completed500', 'a chain of 500 that are skipped') FROM orchestrator.task WHERE parent_id = :run;

-- Nothing is left over
SELECT is((SELECT count(*) FROM orchestrator.task_live l WHERE l.parent_id IS NOT NULL AND l.step > 0 AND NOT EXISTS (SELECT FROM orchestrator.task_live p WHERE p.id = l.parent_id)), 0::bigint, 'no step lives below a finished run');
SELECT is((SELECT count(*) FROM orchestrator.task_live l WHERE l.remaining <= 0), 0::bigint, 'no run with nothing left lives');
SELECT is((SELECT count(*) FROM orchestrator.task_live l JOIN orchestrator.task_finished f USING (id)), 0::bigint, 'no row is live and finished');

SELECT * FROM finish();
ROLLBACK;
