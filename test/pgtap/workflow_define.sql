-- step(), define_workflow(), definition_json() and purge_definition(): what is kept, what is compiled, what is refused.
\ir lib/setup.psql
SELECT plan(232);

CREATE ROLE wf_app LOGIN;
CREATE ROLE wf_other LOGIN;
CREATE ROLE wf_member LOGIN IN ROLE wf_app;
SELECT orchestrator.grant_usage('wf_app'), orchestrator.grant_usage('wf_other'), orchestrator.grant_usage('wf_member');
CREATE SCHEMA lib;
GRANT USAGE ON SCHEMA lib TO PUBLIC;
CREATE FUNCTION lib.echo(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.undo(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.late(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.secret(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
REVOKE ALL ON FUNCTION lib.secret FROM PUBLIC;
CREATE PROCEDURE lib.work(jsonb) LANGUAGE sql AS '';

-- The compiled steps of the current version, and one of them by its name.
CREATE FUNCTION compiled(workflow text, step text) RETURNS jsonb LANGUAGE sql AS $$
  SELECT s FROM orchestrator.definition d, jsonb_array_elements(d.steps) s WHERE d.name = $1 AND d.is_current AND s ->> 'name' = $2;
$$;
CREATE FUNCTION definition_of(workflow text, step text, key text DEFAULT 'definition') RETURNS orchestrator.definition LANGUAGE sql AS $$
  SELECT d FROM orchestrator.definition d WHERE d.id = (compiled($1, $2) ->> $3)::int;
$$;
CREATE FUNCTION plan_of(workflow text) RETURNS int[] LANGUAGE sql AS $$
  SELECT d.plan FROM orchestrator.definition d WHERE d.name = $1 AND d.is_current;
$$;
-- The successors, or the flags.
CREATE FUNCTION plan_column(workflow text, n int) RETURNS int[] LANGUAGE sql AS $$
  SELECT array_agg(p.p[i][$2] ORDER BY i) FROM plan_of($1) p(p), generate_series(1, array_length(p.p, 1)) i;
$$;

-- step()
SELECT is((SELECT proargnames[1:18]::text || pronargs - pronargdefaults FROM pg_proc WHERE oid = 'orchestrator.step'::regproc),
          '{name,handler,kind,definition,needs,input,when,each,max_parallel,wait_for,sleep,on_failure,optional,undo,repeat_while,weight,description,estimated_duration}1', 'step(): parameters of the contract');
SELECT is(orchestrator.step('a', 'lib.echo')::jsonb, '{"name": "a", "handler": "lib.echo"}', 'a step says only what was given');
SELECT is(orchestrator.step('a', 'lib.work', 'procedure', NULL, '{x,y}', '{"n": null, "v": "$.input"}', '$.input.go == true', '$.steps.x[*]', 4, NULL, NULL,
            'continue', true, 'lib.undo', NULL, 2.5, 'words', '90 min', NULL, '1 h', NULL, 'q', 3, 5, 'fixed', '2 s', '3 s', 0.5, '1 d', '{23,40001}', 1,
            '4 s', '5 s', 'fail', 7, 8, '6 s', 'off')::jsonb,
          '{"name": "a", "handler": "lib.work", "kind": "procedure", "needs": ["x", "y"], "input": {"n": null, "v": "$.input"},
            "when": "$.input.go == true", "each": "$.steps.x[*]", "max_parallel": 4, "on_failure": "continue", "optional": true, "undo": "lib.undo",
            "weight": 2.5, "description": "words", "estimated_duration": "01:30:00", "timeout": "01:00:00", "queue": "q", "priority": 3,
            "max_attempts": 5, "backoff": "fixed", "retry_delay": "00:00:02", "max_retry_delay": "00:00:03", "retry_jitter": 0.5,
            "retry_budget": "1 day", "never_retry": ["23", "40001"], "retry_priority_step": 1, "queue_timeout": "00:00:04",
            "response_timeout": "00:00:05", "timeout_policy": "fail", "max_running": 7, "rate_limit": 8, "rate_period": "00:00:06", "notify": "off"}',
          'every parameter is a key, in the order of the contract');
SELECT is(orchestrator.step('w', wait_for => 's', timeout => '1 h', on_timeout => 'b', max_repeats => 2, repeat_while => '$.x', sleep => '1 s', definition => 'd')::jsonb,
          '{"name": "w", "wait_for": "s", "timeout": "01:00:00", "on_timeout": "b", "max_repeats": 2, "repeat_while": "$.x", "sleep": "00:00:01", "definition": "d"}',
          'it does not judge what belongs together');
SET intervalstyle = iso_8601;
SELECT is(orchestrator.step('w', sleep => '90 s')::jsonb ->> 'sleep', '00:01:30', 'an interval has one spelling');
RESET intervalstyle;
SELECT is(error_of($$SELECT orchestrator.step(NULL)$$), '22023: a step has no name [Its name is how other steps need it.]', 'a step has a name');
SELECT matches(error_of(format('SELECT %L::jsonb::orchestrator.step_spec', spec)), '^23514: value for domain orchestrator.step_spec violates', spec || ' is no step_spec')
FROM unnest('{"{}","[]","1","{\"name\": 1}","{\"name\": null}"}'::text[]) spec;
SELECT is(value_of($$SELECT orchestrator.step('a', sleep => '1 s')$$, 'wf_app'), '{"name": "a", "sleep": "00:00:01"}', 'a producer may make steps');
SELECT ok(NOT has_type_privilege('public', 'orchestrator.step_spec', 'USAGE') AND has_type_privilege('wf_app', 'orchestrator.step_spec', 'USAGE'),
          'the type is granted like the others');

-- Versions
SELECT is(orchestrator.define_workflow('v', ARRAY[orchestrator.step('a', 'lib.echo')]), 1, 'the first definition is version 1');
SELECT is(orchestrator.define_workflow('v', ARRAY[orchestrator.step('a', 'lib.echo')]), 1, 'an equal one returns the version it has');
SELECT is(orchestrator.define_workflow('v', ARRAY[orchestrator.step('a', 'lib.echo(jsonb)', on_failure => 'fail', needs => NULL)], notify => NULL), 1, 'written differently, too');
SELECT is(orchestrator.define_workflow('{"name": "v", "steps": [{"name": "a", "handler": "lib.echo", "kind": "function", "optional": false, "needs": [], "when": null}], "backoff": "exponential"}'), 1,
          'and as a document');
SELECT is(orchestrator.define_workflow('v', ARRAY[orchestrator.step('a', 'lib.echo', max_attempts => 5)]), 2, 'a changed one is the next version');
SELECT is(orchestrator.define_workflow('v', ARRAY[orchestrator.step('a', 'lib.echo')], description => 'x'), 3, 'so is one with other words');
SELECT is(orchestrator.define_workflow('v', ARRAY[orchestrator.step('a', 'lib.echo')]), 1, 'an older one is found again');
SELECT is((SELECT array_agg(version) FROM orchestrator.definition WHERE name = 'v' AND is_current), '{1}', 'and is current again');
SELECT is(orchestrator.define('v', 'lib.echo'), 4, 'a plain definition of the name is a version, too');
SELECT is((SELECT kind FROM orchestrator._resolve_definition('postgres'::regrole, 'v')), 'function', 'and what the name means then');

-- What is kept
SELECT orchestrator.define_queue('q');
SELECT orchestrator.define('cb', 'lib.echo');
SELECT orchestrator.define_workflow('full', ARRAY[orchestrator.step('a', 'lib.echo'), orchestrator.step('b', 'lib.echo', max_attempts => 2, notify => 'all')],
    'q', 7, 9, 'linear', '2 s', '3 min', 0.5, '1 day', '{23505,40}', 4, '5 s', '6 s', '7 s', 'fail', 8, 9, '10 s', 'off', 'words', '11 s',
    '{"m": null}', NULL, 'cb', 'cb', 3, 60, 4);
SELECT is(to_jsonb(d) - '{id,owner,created_at,handler_owner,queue,document,steps,plan,concurrency_key,key_max_running,key_rate_limit,key_rate_period,batch_size,batch_wait,endpoint,request}'::text[],
          '{"name": "full", "version": 1, "is_current": true, "kind": "workflow", "handler": null, "priority": 7, "max_attempts": 1,
            "backoff": "exponential", "retry_delay": "00:00:01", "max_retry_delay": "01:00:00", "retry_jitter": 0.1, "retry_budget": null,
            "never_retry": [], "retry_priority_step": 1, "timeout": "00:00:05", "queue_timeout": "00:00:06", "response_timeout": null,
            "timeout_policy": "fail", "max_running": 8, "rate_limit": 9, "rate_period": "00:00:10", "notify": "off", "description": "words",
            "estimated_duration": "00:00:11", "metadata": {"m": null}, "success_callback": "cb", "failure_callback": "cb",
            "checkpoint_interval": 3, "max_steps": 60, "max_depth": 4, "step_names": ["a", "b"]}'::jsonb,
          'what is about the run is kept with the workflow; a run is one attempt')
FROM orchestrator.definition d WHERE name = 'full';
SELECT is(to_jsonb(definition_of('full', 'a')) - '{id,owner,version,created_at,handler_owner,concurrency_key,key_max_running,key_rate_limit,key_rate_period,batch_size,batch_wait,endpoint,request}'::text[],
          '{"name": "orchestrator.step.full.a", "is_current": false, "kind": "function", "handler": "lib.echo(jsonb)", "queue": null,
            "priority": 0, "max_attempts": 9, "backoff": "linear", "retry_delay": "00:00:02", "max_retry_delay": "00:03:00", "retry_jitter": 0.5,
            "retry_budget": "1 day", "never_retry": ["23505", "40"], "retry_priority_step": 4, "timeout": null, "queue_timeout": null,
            "response_timeout": "00:00:07", "timeout_policy": "retry", "max_running": null, "rate_limit": null, "rate_period": null,
            "notify": "off", "description": null, "estimated_duration": null, "metadata": null, "success_callback": null, "failure_callback": null,
            "checkpoint_interval": null, "max_steps": null, "max_depth": null, "document": null, "steps": null, "step_names": null, "plan": null}'::jsonb,
          'how to retry is handed to the steps, which have hidden definitions');
SELECT is(array[(definition_of('full', 'b')).max_attempts::text, (definition_of('full', 'b')).backoff, (definition_of('full', 'b')).notify], '{2,linear,all}', 'unless they say otherwise');
SELECT is(plan_column('full', 6), '{15,15}', 'with checkpoint_interval each step that ends is looked at');
SELECT is(error_of($$SELECT orchestrator.enqueue('orchestrator.step.full.a')$$),
          '42704: definition "orchestrator.step.full.a" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]',
          'which cannot be enqueued by themselves');

-- What is compiled
SELECT orchestrator.define('plain', 'lib.echo');
SELECT orchestrator.define('special', 'lib.echo', queue => 'q', priority => 5, max_attempts => 7);
SELECT orchestrator.define_workflow('c', ARRAY[
    orchestrator.step('a', 'lib.echo'), orchestrator.step('b', 'SELECT $1', 'sql', needs => '{a}'), orchestrator.step('p', 'lib.work', 'procedure', needs => '{b}'),
    orchestrator.step('d', definition => 'special', needs => '{b}', undo => 'lib.undo'), orchestrator.step('e', definition => 'full', needs => '{d}', queue => 'default'),
    orchestrator.step('m', 'lib.echo', each => '$.input[*]', max_parallel => 3, needs => '{a}', timeout => '1 s', weight => 0),
    orchestrator.step('r', 'lib.echo', repeat_while => '$.output.more == true', needs => '{m}', undo => 'cb'),
    orchestrator.step('r2', 'lib.echo', repeat_while => '$.output.more == true', max_repeats => 5, "when" => '$.input.x', input => '{"a": ["$.input", "$$x"]}', on_failure => 'continue'),
    orchestrator.step('w', wait_for => 'go', timeout => '60 min', on_timeout => 'late', needs => '{p,e,r}', description => 'waits', estimated_duration => '1 h'),
    orchestrator.step('late', 'lib.late', optional => true), orchestrator.step('s', sleep => '90 s', needs => '{r2}', on_failure => 'skip_dependants'),
    orchestrator.step('y', wait_for => 'no', timeout => '1 s', on_timeout => 'continue'), orchestrator.step('n', wait_for => 'no', timeout => '1 s', on_timeout => 'fail')]);
SELECT is(compiled('c', step) - '{definition,undo}'::text[], expected::jsonb, 'compiled: ' || step)
FROM (VALUES
  ('a',    '{"name": "a", "kind": "task", "needs": [], "next": [2, 6]}'),
  ('b',    '{"name": "b", "kind": "task", "needs": [1], "next": [3, 4]}'),
  ('d',    format('{"name": "d", "kind": "task", "needs": [2], "next": [5], "priority": 5, "queue": %s}', (SELECT id FROM orchestrator.queue WHERE name = 'q'))),
  ('e',    '{"name": "e", "kind": "workflow", "needs": [4], "next": [9], "queue": 1, "priority": 7}'),
  ('m',    '{"name": "m", "kind": "task", "needs": [1], "next": [7], "each": "$.input[*]", "max_parallel": 3, "weight": 0}'),
  ('r',    '{"name": "r", "kind": "task", "needs": [6], "next": [9], "repeat_while": "$.output.more == true", "max_repeats": 100}'),
  ('r2',   '{"name": "r2", "kind": "task", "needs": [], "next": [11], "repeat_while": "$.output.more == true", "max_repeats": 5, "when": "$.input.x", "input": {"a": ["$.input", "$$x"]}, "on_failure": "continue"}'),
  ('w',    '{"name": "w", "kind": "wait", "needs": [3, 5, 7], "next": [10], "wait_for": "go", "timeout": "01:00:00", "on_timeout": 10, "description": "waits", "estimated_duration": "01:00:00"}'),
  ('late', '{"name": "late", "kind": "task", "needs": [9], "next": [], "optional": true}'),
  ('s',    '{"name": "s", "kind": "wait", "needs": [8], "next": [], "sleep": "00:01:30", "on_failure": "skip_dependants"}'),
  ('y',    '{"name": "y", "kind": "wait", "needs": [], "next": [], "wait_for": "no", "timeout": "00:00:01", "on_timeout": "continue"}'),
  ('n',    '{"name": "n", "kind": "wait", "needs": [], "next": [], "wait_for": "no", "timeout": "00:00:01"}')) c(step, expected);
SELECT is((definition_of('c', step, key)).name, name, step || ': ' || name)
FROM (VALUES ('a', 'definition', 'orchestrator.step.c.a'), ('d', 'definition', 'special'), ('d', 'undo', 'orchestrator.undo.c.d'), ('r', 'undo', 'cb'),
             ('e', 'definition', 'full')) c(step, key, name);
SELECT is((definition_of('c', 'd', 'undo')).handler, 'lib.undo(jsonb)', 'an undo is a function');
SELECT is((definition_of('c', 'm')).timeout, '1 s', 'the timeout of a step that runs is its definition''s');
SELECT is(step_names, '{a,b,p,d,e,m,r,r2,w,late,s,y,n}', 'names by number') FROM orchestrator.definition WHERE name = 'c' AND is_current;
SELECT is(array_length(plan_of('c'), 2), 6, 'the plan has six columns');
SELECT is(plan_column('c', 1), ARRAY(SELECT coalesce((compiled('c', n) ->> 'definition')::int, 0) FROM unnest('{a,b,p,d,e,m,r,r2,w,late,s,y,n}'::text[]) n), 'plan: definitions');
SELECT is(plan_column('c', 2), ARRAY[0, 0, 0, (SELECT id FROM orchestrator.queue WHERE name = 'q'), 1, 0, 0, 0, 0, 0, 0, 0, 0], 'plan: queues');
SELECT is(plan_column('c', 3), array_fill(-2147483648, '{3}') || ARRAY[5, 7] || array_fill(-2147483648, '{8}'), 'plan: priorities');
SELECT is(plan_column('c', 4), '{3,3,3,7,1,3,3,3,1,3,1,1,1}', 'plan: attempts');
SELECT is(plan_column('c', 5), '{-1,-1,-1,-1,-1,-1,-1,-1,-1,0,0,0,0}', 'plan: successors');
SELECT is(plan_column('c', 6), '{5,4,0,4,0,0,8,9,0,2,2,3,3}', 'plan: flags');
SELECT orchestrator.define_workflow('line', ARRAY[orchestrator.step('c', 'lib.echo', needs => '{b}'), orchestrator.step('b', 'lib.echo', needs => '{a}'), orchestrator.step('a', 'lib.echo')]);
SELECT is(plan_column('line', 5), '{0,1,2}', 'a chain goes straight on, in whatever order it is written');
SELECT is(plan_column('line', 6), '{6,4,5}', 'and begins at its end');
SELECT orchestrator.define_workflow('join', ARRAY[orchestrator.step('a', 'lib.echo'), orchestrator.step('b', 'lib.echo'), orchestrator.step('c', 'lib.echo', needs => '{a,b}')]);
SELECT is(plan_column('join', 5), '{-1,-1,0}', 'a join has no predecessor of its own');
SELECT orchestrator.define('hurried', 'lib.echo', queue_timeout => '1 h');
SELECT orchestrator.define('noted', 'lib.echo', success_callback => 'cb');
SELECT orchestrator.define_workflow('hard', ARRAY[orchestrator.step('a', 'lib.echo'), orchestrator.step('b', definition => 'hurried', needs => '{a}'), orchestrator.step('c', definition => 'noted', needs => '{b}'),
    orchestrator.step('d', 'lib.echo', needs => '{c}', input => '1')]);
SELECT is(plan_column('hard', 5), '{-1,-1,-1,0}', 'what needs SQL to begin is not gone on to');
SELECT orchestrator.define('special', 'lib.undo');
SELECT is((definition_of('c', 'd')).handler, 'lib.echo(jsonb)', 'a definition is taken in the version it had');
SELECT orchestrator.define_workflow(repeat('w', 190), ARRAY[orchestrator.step(repeat('s', 190), 'lib.echo'), orchestrator.step(repeat('ä', 100), 'lib.echo')]);
SELECT ok(max(octet_length(name)) <= 200 AND count(DISTINCT name) = 2, 'hidden names are cut') FROM orchestrator.definition WHERE name LIKE 'orchestrator.step.www%';

-- Round trips
SELECT is(orchestrator.define_workflow(orchestrator.definition_json(d.name)), d.version, d.name || ' is the same when it is defined from its document')
FROM orchestrator.definition d WHERE d.kind = 'workflow' AND d.is_current AND d.name <> 'c';
SELECT is(orchestrator.definition_json('full'),
          '{"name": "full", "steps": [{"name": "a", "handler": "lib.echo"}, {"name": "b", "handler": "lib.echo", "max_attempts": 2, "notify": "all"}],
            "queue": "q", "priority": 7, "max_attempts": 9, "backoff": "linear", "retry_delay": "00:00:02", "max_retry_delay": "00:03:00", "retry_jitter": 0.5,
            "retry_budget": "1 day", "never_retry": ["23505", "40"], "retry_priority_step": 4, "timeout": "00:00:05", "queue_timeout": "00:00:06",
            "response_timeout": "00:00:07", "timeout_policy": "fail", "max_running": 8, "rate_limit": 9, "rate_period": "00:00:10", "notify": "off",
            "description": "words", "estimated_duration": "00:00:11", "metadata": {"m": null}, "success_callback": "cb", "failure_callback": "cb",
            "checkpoint_interval": 3, "max_steps": 60, "max_depth": 4}', 'the document of a workflow');
SET intervalstyle = iso_8601;
SELECT is(orchestrator.define_workflow(orchestrator.definition_json('full')), 1, 'whatever the style of intervals');
RESET intervalstyle;
SELECT is(orchestrator.definition_json('v', 2) -> 'steps' -> 0 -> 'max_attempts', '5', 'an older version');
SELECT is(orchestrator.definition_json('plain'), '{"name": "plain", "handler": "lib.echo"}', 'the document of a plain definition');
SELECT orchestrator.define('rich', 'lib.work', 'procedure', 'q', 7, 9, 'linear', '2 s', '3 min', 0.5, '1 day', '{23505,40}', 4, '5 s', '6 s', '7 s', 'fail', 8, 9, '10 s', 'all', 'words', '11 s',
    '{"m": null}', NULL, 'cb', 'plain');
SELECT is(orchestrator.definition_json('rich'),
          '{"name": "rich", "handler": "lib.work", "kind": "procedure", "queue": "q", "priority": 7, "max_attempts": 9, "backoff": "linear", "retry_delay": "00:00:02",
            "max_retry_delay": "00:03:00", "retry_jitter": 0.5, "retry_budget": "1 day", "never_retry": ["23505", "40"], "retry_priority_step": 4,
            "timeout": "00:00:05", "queue_timeout": "00:00:06", "response_timeout": "00:00:07", "timeout_policy": "fail", "max_running": 8,
            "rate_limit": 9, "rate_period": "00:00:10", "notify": "all", "description": "words", "estimated_duration": "00:00:11",
            "metadata": {"m": null}, "success_callback": "cb", "failure_callback": "plain"}', 'with all it can have');
SELECT is(error_of($$SELECT orchestrator.definition_json('nope')$$), '42704: definition "nope" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]', 'one that is missing');
SELECT is(error_of($$SELECT orchestrator.definition_json('v', 9)$$), '42704: definition "v" version 9 does not exist [The view orchestrator.definition_status shows what there is.]', 'a version that is missing');
SELECT matches(error_of($$SELECT orchestrator.definition_json('orchestrator.step.c.a', 1)$$), '^42704: definition', 'a hidden one');

-- Roles
SELECT matches(error_of($$SELECT orchestrator.definition_json('full')$$, 'wf_app'), '^42704: definition "full" does not exist', 'a stranger''s does not exist');
SELECT orchestrator.share_definition('full', 'wf_app');
SELECT is(value_of($$SELECT orchestrator.definition_json('full') ->> 'name'$$, 'wf_app'), 'full', 'a shared one does');
SELECT is(value_of($$SELECT orchestrator.define_workflow('{"name": "mine", "owner": "wf_app", "steps": [{"name": "a", "definition": "full"}]}')$$, 'wf_member'), '1', 'a member defines for a role, with what was shared with it');
SELECT is(owner, owner_id('wf_app'), 'which owns it') FROM orchestrator.definition WHERE name = 'mine';
SELECT is(value_of($$SELECT orchestrator.definition_json('mine', owner => 'wf_app')$$, 'wf_member'), '{"name": "mine", "steps": [{"name": "a", "definition": "full"}]}', 'and is named to see it');
SELECT is(error_of($$SELECT orchestrator.define_workflow('{"name": "mine", "owner": "wf_app", "steps": [{"name": "a", "sleep": "1 s"}]}')$$, 'wf_other'), '42501: must be a member of role "wf_app"', 'a stranger cannot');
SELECT matches(error_of($$SELECT orchestrator.define_workflow('x', ARRAY[orchestrator.step('a', 'lib.secret')])$$, 'wf_app'),
               '^42501: step "a", key "handler": permission denied for function lib.secret\(jsonb\) \[GRANT', 'EXECUTE on a handler is needed');
SELECT matches(error_of($$SELECT orchestrator.define_workflow('x', ARRAY[orchestrator.step('a', definition => 'plain')])$$, 'wf_app'),
               '^42704: step "a", key "definition": definition "plain" does not exist \[Make it with', 'and definitions of one''s own, or shared ones');

-- What is refused of a document
SELECT written() AS before \gset
SELECT is(error_of(format('SELECT orchestrator.define_workflow(%L::jsonb)', document)), message, document)
FROM (VALUES
  ('[]',                            '22023: the document of a workflow is not an object [Give an object with name and steps.]'),
  ('{}',                            '22023: the name of a workflow must not be null'),
  ('{"name": 1}',                   '22023: the name of a workflow is not a string'),
  ('{"name": ""}',                  '22023: the name of a workflow must have 1 to 200 bytes'),
  ('{"name": "orchestrator.x"}',    '22023: workflow "orchestrator.x" has a reserved name [Names that begin with "orchestrator." are the engine''s own.]'),
  ('{"name": "x"}',                 '22023: the steps of workflow "x" are not an array'),
  ('{"name": "x", "steps": {}}',    '22023: the steps of workflow "x" are not an array'),
  ('{"name": "x", "steps": []}',    '22023: workflow "x" has no steps [Make them with orchestrator.step().]'),
  ('{"name": "x", "steps": [1]}',   '22023: step number 1 is not an object with a name [Make it with orchestrator.step().]'),
  ('{"name": "x", "steps": [{"name": "a", "sleep": "1 s"}, {"nam": "a"}]}', '22023: step number 2 is not an object with a name [Make it with orchestrator.step().]')) bad(document, message);
SELECT is(error_of(format('SELECT orchestrator.define_workflow(''{"name": "x", "steps": [{"name": "a", "sleep": "1 s"}]}''::jsonb || %L)', '{' || document || '}')), message, document)
FROM (VALUES
  ('"priority": "high"',            '22023: workflow "x", key "priority": "high" is not an integer'),
  ('"priority": 1.5',               '22023: workflow "x", key "priority": 1.5 is not an integer'),
  ('"priority": 3000000000',        '22023: workflow "x", key "priority": 3000000000 is not an integer'),
  ('"timeout": "soon"',             '22023: workflow "x", key "timeout": "soon" is not an interval'),
  ('"timeout": 5',                  '22023: workflow "x", key "timeout": 5 is not an interval'),
  ('"timeout": "-1 s"',             '22023: workflow "x": timeout must be positive, and not exceed 100 years'),
  ('"max_attempts": 0',             '22023: workflow "x": max_attempts must be between 1 and 10000'),
  ('"never_retry": [1]',            '22023: workflow "x", key "never_retry": [1] is not an array of strings'),
  ('"never_retry": "23"',           '22023: workflow "x", key "never_retry": "23" is not an array of strings'),
  ('"backoff": "none"',             '22023: workflow "x": unknown backoff "none" [Say exponential, fixed or linear.]'),
  ('"retry_jitter": "1"',           '22023: workflow "x", key "retry_jitter": "1" is not a number'),
  ('"checkpoint_interval": 0',      '22023: workflow "x": checkpoint_interval must be positive'),
  ('"max_steps": 0',                '22023: workflow "x": max_steps must be positive'),
  ('"max_depth": 0',                '22023: workflow "x": max_depth must be positive'),
  ('"success_callback": "nope"',    '42704: workflow "x": definition "nope" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ('"failure_callback": "x"',       '22023: workflow "x": failure_callback of definition "x" names itself [It would never end.]')) bad(document, message);
SELECT matches(error_of($$SELECT orchestrator.define_workflow('{"name": "x", "steps": [{"name": "a", "sleep": "1 s"}], "queue": "nowhere"}')$$), '^42704: workflow "x": queue "nowhere" does not exist', 'a queue that is missing');
SELECT matches(error_of($$SELECT orchestrator.define_workflow('{"name": "x", "steps": [{"name": "a", "sleep": "1 s"}], "step": []}')$$),
               '^22023: workflow "x": unknown key "step" \[The keys of a workflow are backoff, checkpoint_interval, .*, steps, ', 'an unknown key');
SELECT is(error_of($$SELECT orchestrator.define_workflow('x', ARRAY[orchestrator.step('a', 'lib.echo'), orchestrator.step('b', 'lib.echo')], max_steps => 1)$$),
          '22023: workflow "x" has 2 steps, and max_steps is 1 [Raise max_steps.]', 'more steps than it allows itself');
SELECT is(error_of($$SELECT orchestrator.define_workflow('x', array_fill(orchestrator.step('a', 'lib.echo'), '{10001}'))$$),
          '22023: workflow "x" has more than 10000 steps [Use each for many items, and workflows as steps.]', 'more steps than it may have');
SELECT is(error_of($$SELECT orchestrator.define_workflow('x', NULL)$$), '22023: workflow "x" has no steps [Make them with orchestrator.step().]', 'no steps');

-- What is refused of a step
SELECT is(error_of(format('SELECT orchestrator.define_workflow(jsonb_build_object(''name'', ''x'', ''steps'', jsonb_build_array(''{"name": "z", "sleep": "1 s"}''::jsonb, ''{"name": "a"}''::jsonb || %L)))', '{' || spec || '}')), message, spec)
FROM (VALUES
  ('"name": ""',                             '22023: the name of a step must have 1 to 200 bytes'),
  ('"sleep": null',                          '22023: step "a" does nothing [Give it a handler, an endpoint, a definition, wait_for or sleep.]'),
  ('"handler": 1',                           '22023: step "a", key "handler": 1 is not a string'),
  ('"handler": "lib.echo", "needs": "z"',    '22023: step "a", key "needs": "z" is not an array of strings'),
  ('"handler": "lib.echo", "needs": [1]',    '22023: step "a", key "needs": [1] is not an array of strings'),
  ('"handler": "lib.echo", "needs": ["y"]',  '22023: step "a", key "needs": there is no step "y" [A step needs others of the same workflow, by their names.]'),
  ('"handler": "lib.echo", "needs": ["z", "z"]', '22023: step "a", key "needs": names step "z" twice'),
  ('"handler": "lib.echo", "needs": ["a"]',  '22023: the steps of workflow "x" need each other: a -> a [An arrow leads to a step that needs the one before. Take one of them away; repeat_while repeats a step.]'),
  ('"handler": "lib.echo", "name": "z"',     '22023: workflow "x" has two steps "z" [The name of a step is unique in its workflow.]'),
  ('"handler": "lib.nope"',                  '42883: step "a", key "handler": function lib.nope(jsonb) does not exist [A handler of kind function is a function with one argument, of type jsonb.]'),
  ('"handler": "nope"',                      '22023: step "a", key "handler": handler "nope" is not the name of a function [Write schema.name or schema.name(jsonb).]'),
  ('"handler": " ;", "kind": "sql"',         '22023: step "a", key "handler": it is empty [Give the name of a function or procedure, or a command.]'),
  ('"handler": "lib.echo", "kind": "smtp"',  '22023: step "a", key "kind": unknown kind "smtp" [Kinds are function, sql, procedure, utility, remote, http, llm, embedding, tool, webhook, summarize and checkpoint; a workflow is named by definition.]'),
  ('"definition": "nope"',                   '42704: step "a", key "definition": definition "nope" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ('"definition": "x"',                      '22023: step "a", key "definition": a workflow cannot be a step of itself [Use repeat_while, or enqueue it from a step.]'),
  ('"definition": "plain", "kind": "sql"',   '22023: step "a" has kind without handler [Leave it out, or give what it is about.]'),
  ('"definition": "plain", "max_attempts": 2', '22023: step "a" has max_attempts, which its definition says [Give it to orchestrator.define(), or give the step a handler instead of a definition.]'),
  ('"handler": "lib.echo", "definition": "plain"', '22023: step "a" has handler and definition, which contradict each other [Make two steps of it.]'),
  ('"handler": "lib.echo", "wait_for": "s"', '22023: step "a" has handler and wait_for, which contradict each other [Make two steps of it.]'),
  ('"handler": "lib.echo", "sleep": "1 s"',  '22023: step "a" has handler and sleep, which contradict each other [Make two steps of it.]'),
  ('"definition": "plain", "wait_for": "s"', '22023: step "a" has definition and wait_for, which contradict each other [Make two steps of it.]'),
  ('"definition": "plain", "sleep": "1 s"',  '22023: step "a" has definition and sleep, which contradict each other [Make two steps of it.]'),
  ('"wait_for": "s", "sleep": "1 s"',        '22023: step "a" has wait_for and sleep, which contradict each other [Make two steps of it.]'),
  ('"handler": "lib.echo", "each": "$.x", "repeat_while": "$.y"', '22023: step "a" has each and repeat_while, which contradict each other [Make two steps of it.]'),
  ('"handler": "lib.echo", "max_parallel": 2', '22023: step "a" has max_parallel without each [Leave it out, or give what it is about.]'),
  ('"handler": "lib.echo", "max_repeats": 2', '22023: step "a" has max_repeats without repeat_while [Leave it out, or give what it is about.]'),
  ('"handler": "lib.echo", "on_timeout": "fail"', '22023: step "a" has on_timeout without wait_for and timeout [Leave it out, or give what it is about.]'),
  ('"wait_for": "s", "on_timeout": "fail"',  '22023: step "a" has on_timeout without wait_for and timeout [Leave it out, or give what it is about.]'),
  ('"wait_for": "s", "timeout": "1 s", "on_timeout": "y"', '22023: step "a", key "on_timeout": there is no step "y" [Say fail, continue, or the name of a step that runs only then.]'),
  ('"wait_for": "s", "timeout": "1 s", "on_timeout": "a"', '22023: the steps of workflow "x" need each other: a -> a [An arrow leads to a step that needs the one before. Take one of them away; repeat_while repeats a step.]'),
  ('"wait_for": "s", "timeout": "0"',        '22023: step "a", key "timeout": must be positive, and not exceed 100 years'),
  ('"wait_for": ""',                         '22023: step "a", key "wait_for": the name of a signal must have 1 to 200 bytes'),
  ('"wait_for": "s", "each": "$.x"',         '22023: step "a" has each, but only waits [Make two steps of it.]'),
  ('"wait_for": "s", "undo": "lib.undo"',    '22023: step "a" has undo, but only waits [Make two steps of it.]'),
  ('"sleep": "1 s", "timeout": "1 s"',       '22023: step "a" has timeout, but only waits [Make two steps of it.]'),
  ('"sleep": "1 s", "max_attempts": 1',      '22023: step "a" has max_attempts, but only waits [Make two steps of it.]'),
  ('"sleep": "-1 s"',                        '22023: step "a", key "sleep": must not be negative, nor exceed 100 years'),
  ('"sleep": "long"',                        '22023: step "a", key "sleep": "long" is not an interval'),
  ('"handler": "lib.echo", "on_failure": "panic"', '22023: step "a", key "on_failure": unknown value "panic" [Say fail, continue or skip_dependants.]'),
  ('"handler": "lib.echo", "on_failure": "continue", "optional": true', '22023: step "a" has optional and on_failure continue, which contradict each other [An optional step that fails is as one that was skipped.]'),
  ('"handler": "lib.echo", "optional": "yes"', '22023: step "a", key "optional": "yes" is not a boolean'),
  ('"handler": "lib.echo", "weight": -1',    '22023: step "a", key "weight": must be between 0 and 1e9'),
  ('"handler": "lib.echo", "weight": "NaN"', '22023: step "a", key "weight": "NaN" is not a number'),
  ('"handler": "lib.echo", "each": "$.x", "max_parallel": 0', '22023: step "a", key "max_parallel": must be positive'),
  ('"handler": "lib.echo", "repeat_while": "$.x", "max_repeats": 0', '22023: step "a", key "max_repeats": must be between 1 and 1000000'),
  ('"handler": "lib.echo", "priority": 1000001', '22023: step "a", key "priority": must be between -1000000 and 1000000'),
  ('"handler": "lib.echo", "estimated_duration": "-1 s"', '22023: step "a", key "estimated_duration": must not be negative, nor exceed 100 years'),
  ('"handler": "lib.echo", "timeout": "0"',  '22023: step "a": timeout must be positive, and not exceed 100 years'),
  ('"handler": "lib.echo", "max_attempts": 0', '22023: step "a": max_attempts must be between 1 and 10000'),
  ('"handler": "lib.echo", "timeout_policy": "x"', '22023: step "a": unknown timeout_policy "x" [Say retry, fail, fail_workflow or alert.]'),
  ('"handler": "lib.echo", "queue": "nowhere"', '42704: step "a", key "queue": queue "nowhere" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]'),
  ('"handler": "lib.echo", "undo": "lib.nope"', '42883: step "a", key "undo": function lib.nope(jsonb) does not exist [A handler of kind function is a function with one argument, of type jsonb.]'),
  ('"handler": "lib.echo", "undo": "nope"',  '42704: step "a", key "undo": definition "nope" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ('"handler": "lib.echo", "undo": "full"',  '22023: step "a", key "undo": "full" is a workflow [Name a function or another definition.]'),
  ('"handler": "lib.echo", "when": true',    '22023: step "a", key "when": true is not a string'),
  ('"handler": "lib.echo", "when": "$.x >"', '22023: step "a", key "when": path $.x > does not parse [Write an SQL/JSON path like $.steps.a.count > 0.]'),
  ('"handler": "lib.echo", "each": "x[*"',   '22023: step "a", key "each": path x[* does not parse [Write an SQL/JSON path like $.steps.a.count > 0.]'),
  ('"handler": "lib.echo", "repeat_while": ""', '22023: step "a", key "repeat_while": path  does not parse [Write an SQL/JSON path like $.steps.a.count > 0.]'),
  ('"handler": "lib.echo", "when": "$.x like_regex \"(\""', '22023: step "a", key "when": path $.x like_regex "(" does not parse [Write an SQL/JSON path like $.steps.a.count > 0.]'),
  ('"handler": "lib.echo", "when": "$.a == $b"', '22023: step "a", key "when": path $.a == $b names a variable [There are none: $.input, $.steps, $.item and so on are what a path can take.]'),
  ('"handler": "lib.echo", "input": "$."',   '22023: step "a", key "input": path $. does not parse [A string that begins with $ is an SQL/JSON path; write $$ for a literal $.]'),
  ('"handler": "lib.echo", "input": {"a": [1, {"b": "$.x["}]}', '22023: step "a", key "input": path $.x[ does not parse [A string that begins with $ is an SQL/JSON path; write $$ for a literal $.]'),
  ('"handler": "lib.echo", "input": ["$HOME"]', '22023: step "a", key "input": path $HOME names a variable [There are none: $.input, $.steps, $.item and so on are what a path can take; write $$ for a literal $.]')) bad(spec, message);
SELECT matches(error_of($$SELECT orchestrator.define_workflow('{"name": "x", "steps": [{"name": "a", "handler": "lib.echo", "need": []}]}')$$),
               '^22023: step "a": unknown key "need" \[The keys of a step are backoff, definition, .*, needs, ', 'an unknown key of a step');
SELECT is(error_of($$SELECT orchestrator.define_workflow('x', ARRAY[orchestrator.step('a', 'lib.echo', needs => '{c}'), orchestrator.step('b', 'lib.echo', needs => '{a}'),
            orchestrator.step('z', 'lib.echo', needs => '{a}'), orchestrator.step('c', 'lib.echo', needs => '{b}'), orchestrator.step('d', 'lib.echo')])$$),
          '22023: the steps of workflow "x" need each other: a -> b -> c -> a [An arrow leads to a step that needs the one before. Take one of them away; repeat_while repeats a step.]', 'a circle is named');
SELECT is(error_of($$SELECT orchestrator.define_workflow('x', ARRAY[orchestrator.step('w', wait_for => 's', timeout => '1 s', on_timeout => 'b', needs => '{b}'), orchestrator.step('b', 'lib.echo')])$$),
          '22023: the steps of workflow "x" need each other: w -> b -> w [An arrow leads to a step that needs the one before. Take one of them away; repeat_while repeats a step.]', 'also through on_timeout');
SELECT is(written(), :'before', 'a refused workflow leaves nothing');
SELECT is(error_of(format($$SELECT orchestrator.define_workflow('y', ARRAY[orchestrator.step('a', 'lib.echo', "when" => %L)])$$, path)), 'no error', path || ' is a path')
FROM unnest('{"$","$.a.\"b$\" == \"$c\"","strict $.x[*] ? (@ > 1)","exists($.a)","$.\"$\".x","lax $.items[*]"}'::text[]) path;
SELECT is(error_of($$SELECT orchestrator.define('s', 'lib.echo', success_callback => 's')$$), '22023: success_callback of definition "s" names itself [It would never end.]', 'a callback that would never end');
SELECT matches(error_of($$SELECT orchestrator.define('s', 'lib.echo', failure_callback => 'nope')$$), '^42704: definition "nope" does not exist', 'a callback that is missing');

-- At run time: steps after those there are, graphs without a name, definitions of the engine's own rows
SELECT is(c.steps - '{}'::text[], jsonb_build_array(jsonb_build_object('name', 'c', 'kind', 'task', 'needs', '[2]'::jsonb, 'next', '[4]'::jsonb, 'definition', c.plan[1][1]),
                                                    jsonb_build_object('name', 'd', 'kind', 'task', 'needs', '[1, 3]'::jsonb, 'next', '[]'::jsonb, 'definition', c.plan[2][1])), 'added steps are numbered after the known ones')
FROM orchestrator._compile_steps('postgres'::regrole, owner_id(), 'k', '[{"name": "c", "handler": "lib.echo", "needs": ["b"]}, {"name": "d", "handler": "lib.echo", "needs": ["c", "a"]}]', '{a,b}') c;
SELECT is(ARRAY[c.plan[1][5], c.plan[2][5], c.plan[1][6], c.plan[2][6]] || c.names::text, '{-1,0,4,6,"{c,d}"}', 'their plan') FROM
  (SELECT plan::text[] AS plan, names FROM orchestrator._compile_steps('postgres'::regrole, owner_id(), 'k', '[{"name": "c", "handler": "lib.echo", "needs": ["b"]}, {"name": "d", "handler": "lib.echo", "needs": ["c", "a"]}]', '{a,b}')) c;
SELECT is(error_of($$SELECT orchestrator._compile_steps('postgres'::regrole, owner_id(), 'k', '[{"name": "a", "handler": "lib.echo"}]', '{a,b}')$$),
          '22023: workflow "k" has two steps "a" [The name of a step is unique in its workflow.]', 'a name that is taken');
SELECT is(error_of($$SELECT orchestrator._compile_steps('postgres'::regrole, owner_id(), 'k', '[{"name": "c", "wait_for": "s", "timeout": "1 s", "on_timeout": "a"}]', '{a,b}')$$),
          '22023: step "c", key "on_timeout": there is no step "a" [Say fail, continue, or the name of a step that runs only then.]', 'what is there already cannot become a branch');
SELECT orchestrator._workflow_definition('postgres'::regrole, ARRAY[orchestrator.step('a', 'lib.echo')], '{"timeout": "1 h"}') AS one \gset
SELECT is(orchestrator._workflow_definition('postgres'::regrole, ARRAY[orchestrator.step('a', 'lib.echo(jsonb)')], '{"timeout": "60 min"}'), :one, 'an equal graph is the same definition');
SELECT isnt(orchestrator._workflow_definition('postgres'::regrole, ARRAY[orchestrator.step('a', 'lib.echo')]), :one, 'another is another');
SELECT matches(name || is_current || timeout, '^orchestrator\.workflow\.[0-9a-f]{32}false01:00:00$', 'it is hidden') FROM orchestrator.definition WHERE id = :one;
SELECT is(orchestrator._internal_definition(owner_id(), kind), orchestrator._internal_definition(owner_id(), kind), 'one definition of maps, waits, batches: ' || kind) FROM unnest('{map,wait,batch}'::text[]) kind;
SELECT is((SELECT array_agg(name || kind || is_current || max_attempts ORDER BY name) FROM orchestrator.definition WHERE kind IN ('map', 'wait', 'batch')),
          '{orchestrator.batchbatchfalse1,orchestrator.mapmapfalse1,orchestrator.waitwaitfalse1}', 'which is the engine''s own');

-- Names mean workflows, too
SELECT is((SELECT kind || max_attempts FROM orchestrator._resolve_definition('postgres'::regrole, 'full')), 'workflow1', 'enqueue() finds a workflow');

-- purge_definition
SELECT orchestrator.define('p', 'lib.echo'), orchestrator.define('p', 'lib.undo');
SELECT is(error_of($$SELECT orchestrator.purge_definition('p', 2)$$),
          '55000: version 2 of definition "p" is the current one [Define another version first, or withdraw the definition with orchestrator.drop_definition().]', 'the current version stays');
SELECT is(error_of($$SELECT orchestrator.purge_definition('p', 7)$$), '42704: definition "p" version 7 does not exist [The view orchestrator.definition_status shows what there is.]', 'a version that is missing');
SELECT matches(error_of($$SELECT orchestrator.purge_definition('p', 1)$$, 'wf_app'), '^42704: definition "p" version 1 does not exist', 'or a stranger''s');
SELECT is(error_of($$SELECT orchestrator.purge_definition('p', 1)$$), 'no error', 'an old one goes');
SELECT is((SELECT array_agg(version) FROM orchestrator.definition WHERE name = 'p'), '{2}', 'and is gone');
SELECT is(orchestrator.define_workflow('pw', ARRAY[orchestrator.step('a', definition => 'p'), orchestrator.step('b', 'lib.late', undo => 'lib.late'), orchestrator.step('same', 'lib.echo')]), 1, 'a workflow takes it as a step');
SELECT orchestrator.define('p', 'lib.echo');
SELECT is(error_of($$SELECT orchestrator.purge_definition('p', 2)$$),
          '2BP01: version 2 of definition "p" is a step of version 1 of "pw" [Define that workflow anew, and purge that version first.]', 'which holds on to it');
SELECT is(error_of($$SELECT orchestrator.purge_definition('p', 2, force => true)$$),
          '2BP01: version 2 of definition "p" is a step of version 1 of "pw" [Define that workflow anew, and purge that version first.]', 'whatever force');
SELECT orchestrator.enqueue('pw') AS task \gset
SELECT is(orchestrator.define_workflow('pw', ARRAY[orchestrator.step('a', definition => 'p'), orchestrator.step('same', 'lib.echo')]), 2, 'defined anew');
SELECT is(error_of($$SELECT orchestrator.purge_definition('pw', 1)$$),
          '2BP01: version 1 of definition "pw" has tasks that are not finished [Wait for them, cancel them with orchestrator.cancel_many(), or purge with force => true.]', 'a run holds on to its version');
SELECT is(error_of('DROP FUNCTION lib.late(jsonb)'),
          '2BP01: cannot drop lib.late(jsonb): unfinished tasks of definition "pw" use it [Replace it with CREATE OR REPLACE, or end the tasks first with orchestrator.cancel_many() or drop_definition().]',
          'and on the handlers of steps that have not started');
SELECT orchestrator.purge_definition('pw', 1, force => true);
SELECT is(state_of(:task), 'cancelled', 'force cancels it');
SELECT is((task(:task)).error ->> 'detail', 'version 1 of definition "pw" was purged', 'and says why');
SELECT is((SELECT array_agg(name || ' ' || is_current ORDER BY name) FROM orchestrator.definition WHERE name LIKE '%pw%'), '{"orchestrator.step.pw.same false","pw true"}', 'what its steps alone had goes with it');
SELECT is(error_of($$SELECT orchestrator.purge_definition('p', 2)$$), 'no error', 'then the step''s definition can go');
SELECT matches(error_of($$SELECT orchestrator.purge_definition('orchestrator.step.pw.same', 1)$$), '^42704: definition', 'hidden ones go with what has them');
SELECT orchestrator.cancel_many(all_tasks => true);

-- What belongs to a run is seen by its owner
INSERT INTO orchestrator.added_step VALUES (1, 1, owner_id('wf_app'), '{}');
INSERT INTO orchestrator.signal (task_id, owner, name, payload, sent_by, sent_at) VALUES (1, owner_id('wf_app'), 's', '{}', 'x', now());
INSERT INTO orchestrator.checkpoint (task_id, owner, name, steps, created_at) VALUES (1, owner_id('wf_app'), 'c', '{}', now());
INSERT INTO orchestrator.run_context VALUES (1, owner_id('wf_app'), '{}');
INSERT INTO orchestrator.step_memo VALUES (1, 'm', owner_id('wf_app'), '{}', now());
SELECT is(value_of(format('SELECT count(*) FROM orchestrator.%I', name), 'wf_member') || value_of(format('SELECT count(*) FROM orchestrator.%I', name), 'wf_other'), '10', name || ' is seen by who has the task, and nobody else')
FROM unnest('{added_step,signal,checkpoint,run_context,step_memo}'::text[]) name;
SELECT ok(to_regclass('orchestrator.' || name) = ANY ((SELECT extconfig FROM pg_extension WHERE extname = 'orchestrator')::oid[]), name || ' is dumped')
FROM unnest('{added_step,signal,signal_id_seq,checkpoint,checkpoint_id_seq,run_context,step_memo}'::text[]) name;

-- Size
SELECT clock_timestamp() AS start \gset
SELECT is(orchestrator.define_workflow('chain', ARRAY(SELECT orchestrator.step('s' || i, 'lib.echo', needs => CASE WHEN i > 1 THEN ARRAY['s' || i - 1] END) FROM generate_series(1, 1000) i)), 1, 'a chain of 1,000 steps');
SELECT is(orchestrator.define_workflow(orchestrator.definition_json('chain')), 1, 'is found again');
SELECT cmp_ok(clock_timestamp() - :'start', '<', '10 s', 'in no time');
SELECT is((SELECT array_agg(x) FROM unnest((plan_column('chain', 5))[1:999]) WITH ORDINALITY u(x, n) WHERE x <> n + 1), NULL, 'and goes straight on');

SELECT * FROM finish();
ROLLBACK;
