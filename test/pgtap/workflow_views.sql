-- step_status, workflow_status, batch_status, what task_status says of runs, and graph().
\ir lib/setup.psql
SELECT plan(77);

CREATE ROLE views_app LOGIN;
CREATE ROLE views_other LOGIN;
CREATE ROLE views_viewer LOGIN;
SELECT orchestrator.grant_usage('views_app'), orchestrator.grant_usage('views_other'), orchestrator.grant_usage('views_viewer', 'viewer');
CREATE SCHEMA lib;
GRANT USAGE ON SCHEMA lib TO PUBLIC;
CREATE FUNCTION lib.echo(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';

CREATE FUNCTION status(id bigint) RETURNS orchestrator.task_status LANGUAGE sql AS $$SELECT s.* FROM orchestrator.task_status s WHERE s.task_id = $1$$;
CREATE FUNCTION run(id bigint) RETURNS orchestrator.workflow_status LANGUAGE sql AS $$SELECT s.* FROM orchestrator.workflow_status s WHERE s.task_id = $1$$;
CREATE FUNCTION step(run bigint, step text) RETURNS orchestrator.step_status LANGUAGE sql AS $$SELECT s.* FROM orchestrator.step_status s WHERE s.run_id = $1 AND s.step = $2$$;
-- The states of a run's steps, in the order of their numbers.
CREATE FUNCTION states(run bigint) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(s.step || ' ' || s.state, ', ' ORDER BY s.number) FROM orchestrator.step_status s WHERE s.run_id = $1;
$$;
-- Claim all that can be, and complete what is of a step.
CREATE FUNCTION complete(run bigint, step text, output jsonb DEFAULT '1') RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_ids bigint[];
BEGIN
  PERFORM claim(100);
  v_ids := ARRAY(SELECT x.id FROM orchestrator.task x WHERE x.name = $2 AND x.state = 'running'
                 AND (x.parent_id = $1 OR x.parent_id = (SELECT y.id FROM orchestrator.task y WHERE y.parent_id = $1 AND y.name = $2)) ORDER BY x.id);
  PERFORM settle_completed(i, $3) FROM unnest(v_ids) i;
END
$$;
-- A drawing without its times.
CREATE FUNCTION drawn(run bigint, format text DEFAULT 'text') RETURNS text LANGUAGE sql AS $$
  SELECT regexp_replace(orchestrator.graph($1, $2), '\d+(\.\d+)? m?s|until [0-9: +-]+', 'T', 'g');
$$;

-- Their columns
SELECT is((SELECT string_agg(a.attname, ' ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = ('orchestrator.' || view)::regclass AND a.attnum > 0), columns, 'the columns of ' || view)
FROM (VALUES
  ('step_status', 'task_id run_id root_id number step kind definition version handler state needs attempt max_attempts progress message stage weight items_total items_done created_at started_at '
                  'finished_at duration input output error wait_for wakes_at iteration on_failure optional added when description estimated_duration'),
  ('workflow_status', 'task_id parent_id root_id name definition version owner description status progress current_step total_steps completed_steps steps latest_traces estimated_duration compensation '
                      'created_at started_at finished_at duration input output error metadata context'),
  ('batch_status', 'batch_id name definition owner state total pending running completed failed cancelled progress created_at finished_at')
) v(view, columns);

-- A run from its beginning to its end
SELECT orchestrator.define('named', 'lib.echo', estimated_duration => '2 min');
SELECT orchestrator.define_workflow('sub', ARRAY[orchestrator.step('one', 'lib.echo'), orchestrator.step('two', 'lib.echo', needs => '{one}')]);
SELECT orchestrator.enqueue_workflow(ARRAY[
  orchestrator.step('a', 'lib.echo', weight => 2, description => 'first'),
  orchestrator.step('m', 'lib.echo', needs => '{a}', each => '$.input.list', max_parallel => 2, weight => 4),
  orchestrator.step('no', 'lib.echo', needs => '{a}', "when" => '$.input.nothing'),
  orchestrator.step('s', definition => 'sub', needs => '{a}', weight => 2),
  orchestrator.step('w', needs => '{m,no,s}', wait_for => 'go', timeout => '1 h', estimated_duration => '10 min'),
  orchestrator.step('z', definition => 'named', needs => '{w,a}', optional => true)], '{"list": [1, 2, 3, 4]}', 'my "run"') AS run \gset
SELECT is(s.state || ' ' || s.progress || ' ' || s.compensation || coalesce(s.started_at::text, '-') || coalesce(s.duration::text, '-'), 'waiting 0 none--', 'nothing started: it waits') FROM status(:run) s;
SELECT is(states(:run), 'a pending, m waiting, no waiting, s waiting, w waiting, z waiting', 'the first step has a row, the others wait');
SELECT is((SELECT string_agg(s.step || coalesce(s.task_id::text, '-'), ' ' ORDER BY s.number) FROM orchestrator.step_status s WHERE s.run_id = :run AND s.number > 1), 'm- no- s- w- z-', 'without a task');
SELECT is((SELECT array_agg(s.number ORDER BY s.number)::text || array_agg(s.kind ORDER BY s.number)::text || array_agg(s.definition ORDER BY s.number)::text FROM orchestrator.step_status s WHERE s.run_id = :run),
  '{1,2,3,4,5,6}{function,map,function,workflow,wait,function}{NULL,NULL,NULL,sub,NULL,named}', 'numbers, kinds and definitions');
SELECT is((SELECT string_agg(s.needs::text, ' ' ORDER BY s.number) FROM orchestrator.step_status s WHERE s.run_id = :run), '{} {a} {a} {a} {m,no,s} {a,w}', 'needs by name');
SELECT is((SELECT sum(s.weight) FROM orchestrator.step_status s WHERE s.run_id = :run), 11::float8, 'weights');
SELECT is(s.wait_for || ' ' || s.estimated_duration, 'go 00:10:00', 'what it waits for') FROM step(:run, 'w') s;
SELECT is(s.estimated_duration || ' ' || s.optional || ' ' || s.on_failure || ' ' || s.handler, '00:02:00 true fail lib.echo(jsonb)', 'what its definition says') FROM step(:run, 'z') s;
SELECT is(s.status || ' ' || s.current_step || ' ' || s.total_steps || ' ' || s.completed_steps || ' ' || s.progress || ' ' || s.name || ' ' || s.estimated_duration, 'waiting 1 6 0 0 my "run" 00:10:00', 'the status of the run') FROM run(:run) s;
SELECT is((run(:run)).steps -> 0, jsonb_build_object('index', 1, 'name', 'a', 'description', 'first', 'status', 'pending', 'task', (step(:run, 'a')).task_id, 'progress', 0.0), 'its steps as JSON');

SELECT claim();
SELECT is(s.state || ' ' || s.progress || (s.started_at IS NOT NULL) || (s.duration >= '0'), 'running 0truetrue', 'a started step: it runs') FROM status(:run) s;
SELECT is((SELECT l.state FROM orchestrator.task l WHERE l.id = :run), 'waiting', 'though its row waits');
SELECT complete(:run, 'a');
SELECT is(states(:run), 'a completed, m running, no skipped, s waiting, w waiting, z waiting', 'then');
SELECT is(round(((status(:run)).progress * 11)::numeric, 6), 3.000000, 'progress by weight: what is completed or skipped counts');
SELECT is(s.items_done || '/' || s.items_total || ' ' || s.progress, '0/4 0', 'items') FROM step(:run, 'm') s;
SELECT is((SELECT count(*) FROM orchestrator.step_status s WHERE s.root_id = :run), 8::bigint, 'the steps of the nested run too, no items');
SELECT is((SELECT count(*) FROM orchestrator.workflow_status s WHERE s.root_id = :run), 2::bigint, 'two runs');
SELECT is((SELECT s.parent_id || ' ' || s.definition || ' ' || s.status FROM orchestrator.workflow_status s WHERE s.root_id = :run AND s.task_id <> :run), :run || ' sub waiting', 'the nested one');
SELECT complete(:run, 'm');
SELECT is(s.items_done || '/' || s.items_total || ' ' || s.progress || ' ' || s.state, '2/4 0.5 running', 'half of the items') FROM step(:run, 'm') s;
SELECT is((status((step(:run, 'm')).task_id)).progress, 0.5::float8, 'and in task_status');
SELECT is((step(:run, 's')).state, 'running', 'the nested run runs: its first step was claimed');
SELECT is(round(((status(:run)).progress * 11)::numeric, 6), 5.000000, 'they count in the run');
SELECT complete((step(:run, 's')).task_id, 'one');
SELECT is(round(((status(:run)).progress * 11)::numeric, 6), 6.000000, 'so does half of the nested run');
SELECT is(drawn(:run), $$task $$ || :run || $$ "my "run"": running, 55 %
[x] a                   completed, T
  [>] m <- a            running, 2 of 4 items
    [ ] w <- m, no, s   waiting
      [ ] z <- a, w     waiting
  [-] no <- a           skipped
  [>] s <- a            running, 50 %
    | [x] one           completed, T
    |   [ ] two <- one  pending$$, 'its graph') FROM (SELECT 1) x;
SELECT complete(:run, 'm');
SELECT complete((step(:run, 's')).task_id, 'two');
SELECT is(states(:run), 'a completed, m completed, no skipped, s completed, w waiting, z waiting', 'all but the last');
SELECT is(s.wakes_at - s.created_at BETWEEN '59 min' AND '61 min' AND s.task_id IS NOT NULL, true, 'a wait knows when it ends') FROM step(:run, 'w') s;
SELECT is(s.status || ' ' || s.current_step || ' ' || s.completed_steps, 'running 5 3', 'it waits, and the run runs') FROM run(:run) s;
SELECT matches(drawn(:run), '\[ \] w <- m, no, s +waiting, for signal "go", T', 'the graph says for what');
SELECT orchestrator.pause(:run);
SELECT is((status(:run)).state || ' ' || (step(:run, 'w')).state || ' ' || (run(:run)).status, 'paused paused paused', 'paused');
SELECT orchestrator.resume(:run);
SELECT orchestrator.signal(:run, 'go', '{"x": 1}');
SELECT complete(:run, 'z', '"end"');
SELECT is(s.state || ' ' || s.progress || ' ' || s.output, 'completed 1 "end"', 'completed') FROM status(:run) s;
SELECT is(s.status || ' ' || s.progress || coalesce(s.current_step::text, '-') || s.completed_steps || ' ' || s.total_steps, 'completed 1-5 6', 'and in workflow_status') FROM run(:run) s;
SELECT is(jsonb_array_length(s.latest_traces) || ' ' || (s.latest_traces -> 0 ->> 'event') || ' ' || (s.latest_traces @> '[{"event": "completed", "step": "z"}]'), '10 completed true', 'its latest traces') FROM run(:run) s;
SELECT is((SELECT bool_and((e.value ->> 'at')::timestamptz >= (f.value ->> 'at')::timestamptz) FROM run(:run) s, jsonb_array_elements(s.latest_traces) WITH ORDINALITY e(value, n), jsonb_array_elements(s.latest_traces) WITH ORDINALITY f(value, n)
           WHERE f.n = e.n + 1), true, 'the newest first');
SELECT is((SELECT count(*) FROM orchestrator.task_status), (SELECT count(*) FROM orchestrator.task), 'task_status has each task once');

-- A run that fails
SELECT orchestrator.enqueue_workflow(ARRAY[
  orchestrator.step('a', 'lib.echo'), orchestrator.step('b', 'lib.echo', needs => '{a}', max_attempts => 1), orchestrator.step('c', 'lib.echo', needs => '{b}')]) AS bad \gset
SELECT complete(:bad, 'a');
SELECT claim(10);
SELECT settle_failed((step(:bad, 'b')).task_id);
SELECT is(states(:bad), 'a completed, b failed, c skipped', 'a step that was never reached is shown as skipped');
SELECT is(s.state || ' ' || round(s.progress::numeric, 2) || ' ' || (s.error ->> 'step'), 'failed 0.33 b', 'progress says how far it came') FROM status(:bad) s;
SELECT is(coalesce((step(:bad, 'c')).task_id::text, '-') || ((step(:bad, 'b')).error ->> 'message'), '-no', 'no task, and the error of the other');
SELECT is((run(:bad)).steps -> 1 ->> 'message', 'no', 'steps tell the error');
SELECT is(drawn(:bad), 'task ' || :bad || $$: failed, 33 %
[x] a           completed, T
  [!] b <- a    failed, T, no
    [-] c <- b  skipped$$, 'its graph') FROM (SELECT 1) x;

-- A task that was given steps
SELECT orchestrator.enqueue('named', name => 'plain') AS plain \gset
SELECT is((SELECT count(*) FROM orchestrator.step_status s WHERE s.run_id = :plain), 0::bigint, 'a plain task has no steps');
SELECT is((SELECT count(*) FROM orchestrator.workflow_status s WHERE s.task_id = :plain), 0::bigint, 'and is no run');
SELECT is(drawn(:plain), 'task ' || :plain || ' "plain": pending, 0 %', 'its graph is a line');
SELECT claim(10);
SELECT orchestrator._settle_completed(:plain, (task(:plain)).epoch, '1', NULL, NULL, jsonb_build_array(jsonb_build_object('verb', 'add_steps', 'steps',
  ARRAY[orchestrator.step('x', 'lib.echo'), orchestrator.step('y', 'lib.echo', needs => '{x}', weight => 3)])));
SELECT is((SELECT string_agg(s.number || s.step || s.added || s.needs::text, ' ' ORDER BY s.number) FROM orchestrator.step_status s WHERE s.run_id = :plain), '1xtrue{} 2ytrue{x}', 'steps that were added');
SELECT is((run(:plain)).total_steps, 2, 'make it a run');

-- Batches
SELECT orchestrator.enqueue_batch('named', ARRAY['1', '2', '3', '4']::jsonb[], name => 'four') AS batch \gset
CREATE FUNCTION batch(id bigint) RETURNS orchestrator.batch_status LANGUAGE sql AS $$SELECT s.* FROM orchestrator.batch_status s WHERE s.batch_id = $1$$;
SELECT is(to_jsonb(b) - '{batch_id,owner,created_at,finished_at}'::text[],
  '{"name": "four", "definition": "named", "state": "waiting", "total": 4, "pending": 4, "running": 0, "completed": 0, "failed": 0, "cancelled": 0, "progress": 0}', 'a batch') FROM batch(:batch) b;
SELECT orchestrator.pause_queue('default'), orchestrator.resume_queue('default');
CREATE FUNCTION items(batch bigint) RETURNS bigint[] LANGUAGE sql AS $$SELECT array_agg(x.id ORDER BY x.item) FROM orchestrator.task x WHERE x.parent_id = $1$$;
SELECT claim(100);
SELECT is(b.state || ' ' || b.pending || ' ' || b.running, 'running 0 4', 'claimed') FROM batch(:batch) b;
SELECT settle_completed((items(:batch))[1]);
SELECT orchestrator.cancel((items(:batch))[2]);
SELECT is(b.state || ' ' || b.running || ' ' || b.completed || ' ' || b.cancelled || ' ' || b.progress, 'running 2 1 1 0.5', 'half of it') FROM batch(:batch) b;
SELECT is((status(:batch)).progress, 0.5::float8, 'and in task_status');
SELECT is((SELECT count(*) FROM orchestrator.workflow_status s WHERE s.task_id = :batch) + (SELECT count(*) FROM orchestrator.step_status s WHERE s.run_id = :batch), 0::bigint, 'a batch is no workflow and has no steps');
SELECT settle_completed((items(:batch))[3]);
SELECT settle_completed((items(:batch))[4]);
SELECT is(b.state || ' ' || b.total || ' ' || b.pending || b.running || ' ' || b.completed || ' ' || b.cancelled || ' ' || b.progress || (b.finished_at IS NOT NULL), 'completed 4 00 3 1 1true', 'all of it') FROM batch(:batch) b;
SELECT is(drawn(:batch), 'task ' || :batch || ' "four": completed', 'its graph');
SELECT orchestrator.enqueue_batch('named', '{}') AS empty \gset
SELECT is(b.state || ' ' || b.total || ' ' || b.progress, 'completed 0 1', 'an empty batch') FROM batch(:empty) b;

-- Formats
SELECT orchestrator.enqueue_workflow(ARRAY[
  orchestrator.step(E'say "hi"\\n<b>#`&', 'lib.echo'), orchestrator.step(E'two\nlines', definition => 'sub', needs => ARRAY[E'say "hi"\\n<b>#`&'])]) AS odd \gset
SELECT is(drawn(:odd), 'task ' || :odd || E': waiting, 0 %\n[ ] say "hi"\\n<b>#`&                 pending\n  [ ] two?lines <- say "hi"\\n<b>#`&  waiting', 'odd names in text') FROM (SELECT 1) x;
SELECT is(drawn(:odd, 'dot'), $$digraph {
  label="task $$ || :odd || $$: waiting, 0 %";
  node [shape=box, style="rounded,filled", fillcolor=white];
  s_1 [label="say \"hi\"\\n<b>#`&\npending"];
  s_2 [label="two lines\nwaiting"];
  s_1 -> s_2;
}$$, 'in dot') FROM (SELECT 1) x;
SELECT matches(drawn(:odd, 'mermaid'), '^flowchart TD\n', 'mermaid begins so');
SELECT matches(drawn(:odd, 'mermaid'), '\n  s_1\["say #quot;hi#quot;\\n#lt;b#gt;#35;#96;#amp;<br/>pending"\]:::pending\n  s_2\["two lines<br/>waiting"\]:::waiting\n  s_1 --> s_2$', 'in mermaid');
SELECT complete(:odd, E'say "hi"\\n<b>#`&');
SELECT matches(drawn(:odd, 'dot'), 's_2_1 \[label="one\\npending"\].*\n  subgraph cluster_s_2 { label="two lines"; style=dashed; s_2_1; s_2_2; }\n  s_1 -> s_2;\n  s_2 -> s_2_1 \[style=dashed\];\n  s_2_1 -> s_2_2;\n}$', 'a nested run in dot');
SELECT matches(drawn(:odd, 'mermaid'), '\n  s_2 -\.-> s_2_1\n  s_2_1 --> s_2_2$', 'and in mermaid');
SELECT is(error_of(format('SELECT orchestrator.graph(%s, %L)', :odd, format)), '22023: unknown format "' || coalesce(format, 'null') || '" [Formats are text, dot and mermaid.]', 'an unknown format')
FROM unnest(ARRAY['svg', NULL]) format;

-- Workflows
SELECT orchestrator.define_workflow('drawn', ARRAY[orchestrator.step('z', definition => 'sub', needs => '{y}'), orchestrator.step('y', 'lib.echo', each => '$.input', on_failure => 'continue')]);
SELECT is(orchestrator.definition_graph('drawn'), $$workflow "drawn", version 1
y                   each $.input, on failure continue
  z <- y            sub
    | one
    |   two <- one$$, 'a workflow, whatever order its steps were given in');
SELECT matches(orchestrator.definition_graph('drawn', 'dot'), 's_2 \[label="y\\neach \$\.input, on failure continue"\]', 'in dot');
SELECT is(error_of($$SELECT orchestrator.definition_graph('named')$$), '42809: definition "named" is not a workflow [Workflows are made by orchestrator.define_workflow().]', 'of what is none');
SELECT matches(error_of($$SELECT orchestrator.definition_graph('nobody''s')$$), '^42704: definition "nobody''s" does not exist', 'or is not there');

-- Who sees what
SELECT is(error_of('SELECT orchestrator.graph(-1)'), '42704: task -1 does not exist', 'no task');
SELECT is(error_of('SELECT orchestrator.graph(NULL)'), '42704: task null does not exist', 'none at all');
SELECT is(error_of('SELECT orchestrator.graph(' || :run || ')', 'views_other'), '42704: task ' || :run || ' does not exist', 'another''s run');
SELECT matches(value_of('SELECT orchestrator.graph(' || :run || ')', 'views_viewer'), 'my "run"', 'a viewer sees it');
SELECT is(value_of(format('SELECT count(*) FROM orchestrator.%I', view), 'views_other'), '0', view || ' shows others nothing') FROM unnest('{step_status,workflow_status,batch_status}'::text[]) view;
SELECT is(value_of('SELECT count(*)::text || status FROM orchestrator.workflow_status WHERE task_id = ' || :run || ' GROUP BY status', 'views_viewer'), '1completed', 'a viewer reads them');
SET LOCAL ROLE views_app;
SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('mine', 'lib.echo')], name => 'mine') AS mine \gset
SELECT is(orchestrator.graph(:mine), 'task ' || :mine || E' "mine": waiting, 0 %\n[ ] mine  pending', 'its owner draws it') FROM (SELECT 1) x;
SELECT is((SELECT string_agg(s.run_id::text || s.step, ' ') FROM orchestrator.step_status s), :mine || 'mine', 'and sees its steps alone');

RESET ROLE;
SELECT * FROM finish();
ROLLBACK;
