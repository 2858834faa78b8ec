-- Lists of tools by their SQL functions, with no courier: tasks that name a tool,
-- models that are given some, and what they must not get at.
\ir lib/setup.psql
\ir lib/models.psql
SELECT plan(101);

CREATE ROLE tools_app LOGIN;
CREATE ROLE tools_other LOGIN;
SELECT orchestrator.grant_usage('tools_app'), orchestrator.grant_usage('tools_other');
CREATE SERVER gpt FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://gpt.example/v1', provider 'openai');
CREATE SERVER mcp FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://tools.example/mcp', provider 'mcp');
GRANT USAGE ON FOREIGN SERVER gpt, mcp TO tools_app;
CREATE FUNCTION enqueue(name text, input jsonb DEFAULT '{}', role text DEFAULT 'tools_app') RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  RETURN value_of(format('SELECT orchestrator.enqueue(%L, %L)', $1, $2), $3)::bigint;
END $$;
CREATE FUNCTION at(run bigint, name text) RETURNS bigint LANGUAGE sql AS $$SELECT t.id FROM orchestrator.task t WHERE t.parent_id = $1 AND t.name = $2$$;
CREATE FUNCTION steps(run bigint) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(name || ' ' || state, ', ' ORDER BY step) FROM orchestrator.task WHERE parent_id = $1;
$$;
-- Settle the tasks that name a tool, as the courier does; how many there were.
CREATE FUNCTION choose() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  r record;
BEGIN
  PERFORM orchestrator._claim_call_rows(4711, 0, 0, 1);
  SELECT coalesce(array_agg(x.task_id), '{}') AS tasks, array_agg(x.epoch) AS epochs, array_agg('error'::text) AS outcomes, array_agg(x.refusal) AS refusals INTO r
    FROM courier_claims() x WHERE x.refusal IS NOT NULL;
  PERFORM orchestrator._settle_calls(r.tasks, r.epochs, r.outcomes, r.refusals);
  RETURN cardinality(r.tasks);
END $$;
-- Run the steps of executors that are ready, each with an output.
CREATE FUNCTION run(output jsonb DEFAULT '"ok"') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_ids bigint[] := claim(50, role => 'tools_app');
  v_id  bigint;
BEGIN
  FOREACH v_id IN ARRAY v_ids LOOP
    PERFORM settle_completed(v_id, $1);
  END LOOP;
  RETURN cardinality(v_ids);
END $$;

SET ROLE tools_app;
SELECT orchestrator.define('look', 'SELECT 1', 'sql', description => 'looks'),
       orchestrator.define('write', 'SELECT 1', 'sql'),
       orchestrator.define('plain', 'SELECT 1', 'sql'),
       orchestrator.define('no such name', 'SELECT 1', 'sql'),
       orchestrator.define('far', NULL, 'tool', endpoint => 'mcp', request => '{"tool": "far"}'),
       orchestrator.define_workflow('flow', ARRAY[orchestrator.step('one', 'SELECT 1', 'sql')]);
SELECT orchestrator.define_tool('look', '{"type": "object", "required": ["at"], "properties": {"at": {"type": "string"}}, "additionalProperties": false}'),
       orchestrator.define_tool('write', needs_approval => true), orchestrator.define_tool('no such name'), orchestrator.define_tool('flow'),
       orchestrator.define_tool('far', '{"type": "object", "properties": {"n": {"type": "integer"}}}');
RESET ROLE;

-- Definitions --------------------------------------------------------------
CREATE FUNCTION refused(kind text, endpoint text, request jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.define(''x'', NULL, %L, endpoint => %L, request => %L)', $1, $2, $3), 'tools_app');
$$;
SELECT is(refused(k, e, r::jsonb), m, format('%s %s', k, r)) FROM (VALUES
  ('tool', NULL, '{}', '22023: kind "tool" without endpoint [Give the name of a server of orchestrator_http, or tools in its request.]'),
  ('tool', NULL, '{"tools": []}', '22023: request, key "tools": is no array of names'),
  ('tool', NULL, '{"tools": "$.tools"}', '22023: request, key "tools": is no array of names'),
  ('tool', NULL, '{"tools": ["look"], "tool": "x"}', '22023: request: unknown key "tool" [The keys of a request of kind tool are tool and arguments; without endpoint, tools, name and arguments.]'),
  ('tool', 'mcp', '{"tool": "far", "tools": ["look"]}', '22023: request: unknown key "tools" [The keys of a request of kind tool are tool and arguments; without endpoint, tools, name and arguments.]'),
  ('tool', NULL, '{"tools": ["look", 1]}', '22023: request, key "tools": has names and others [Give names of tools alone.]'),
  ('tool', NULL, '{"tools": ["look", "look"]}', '22023: request, key "tools": names "look" twice'),
  ('tool', NULL, '{"tools": ["plain"]}', '42704: definition "plain" is no tool [Say what its input is with orchestrator.define_tool().]'),
  ('tool', NULL, '{"tools": ["$.tool"]}', '42704: definition "$.tool" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ('tool', NULL, '{"tools": ["no such name"]}', 'no error'),
  ('llm', 'gpt', '{"model": "m", "prompt": "x", "tools": ["no such name"]}', '22023: request, key "tools": models do not take the name "no such name" [They take letters, digits, _ and -, 64 at most. Define the same under such a name.]'),
  ('llm', 'gpt', '{"model": "m", "prompt": "x", "tools": ["$.tools"]}', '22023: request, key "tools": models do not take the name "$.tools" [They take letters, digits, _ and -, 64 at most. Define the same under such a name.]'),
  ('llm', 'gpt', '{"model": "m", "prompt": "x", "tools": ["look"], "max_tool_rounds": 51}', '22023: request, key "max_tool_rounds": is no integer between 1 and 50'),
  ('llm', 'gpt', '{"model": "m", "prompt": "x", "tools": ["look"], "max_tool_rounds": "2"}', '22023: request, key "max_tool_rounds": is no integer between 1 and 50'),
  ('llm', 'gpt', '{"model": "m", "prompt": "x", "max_tool_rounds": 2}', '22023: request: max_tool_rounds without tools by name [Give the names of tools, by define_tool().]')) x(k, e, r, m);

-- Kind tool ------------------------------------------------------------------
SET ROLE tools_app;
SELECT orchestrator.define('act', NULL, 'tool', request => '{"tools": ["look", "write", "flow", "far"]}');
SELECT orchestrator.define('look only', NULL, 'tool', request => '{"tools": ["look"], "name": "look", "arguments": {"at": "$.where"}}');
RESET ROLE;
SELECT orchestrator.share_definition('look only', 'tools_other', owner => 'tools_app');
SELECT enqueue('act', '{"name": "look", "arguments": {"at": "$.input; DROP TABLE x"}}') AS act \gset
SELECT is(choose(), 1, 'there is nothing to send');
SELECT is(state_of(:act) || ': ' || steps(:act), 'waiting: call pending', 'a task that names a tool calls it, as a step');
SELECT is((task(at(:act, 'call'))).input, '{"at": "$.input; DROP TABLE x"}', 'with its arguments as they are');
SELECT is((task(at(:act, 'call'))).owner, owner_id('tools_app'), 'as the role of the task');
SELECT run('"seen"');
SELECT is(state_of(:act) || ' ' || (task(:act)).output::text, 'completed "seen"', 'what it gives is the output');

-- Refused: no call, no second attempt
CREATE FUNCTION refusal(name text, input jsonb, role text DEFAULT 'tools_app') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_id bigint := enqueue($1, $2, $3);
BEGIN
  PERFORM choose();
  RETURN (SELECT t.state || ' ' || t.attempt || ': ' || concat_ws(' ', t.error ->> 'sqlstate', t.error ->> 'message', '[' || (t.error ->> 'hint') || ']')
            || CASE WHEN EXISTS (SELECT FROM orchestrator.task c WHERE c.parent_id = v_id) THEN ' but it was called' ELSE '' END
          FROM orchestrator.task t WHERE t.id = v_id);
END $$;
SELECT is(refusal('act', i::jsonb), 'failed 1: ' || m, i) FROM (VALUES
  ('{"name": "look", "arguments": {"at": 1}}', '22023 the arguments of tool "look" do not fit: arguments.at is number, not string [The table orchestrator.tool has what each tool takes.]'),
  ('{"name": "look", "arguments": {"at": "x", "b": 1}}', '22023 the arguments of tool "look" do not fit: arguments has "b", which is not asked for [The table orchestrator.tool has what each tool takes.]'),
  ('{"name": "look"}', '22023 the arguments of tool "look" do not fit: arguments has no "at" [The table orchestrator.tool has what each tool takes.]'),
  ('{"name": "look", "arguments": "at"}', '22023 the arguments of tool "look" do not fit: arguments is string, not object [The table orchestrator.tool has what each tool takes.]'),
  ('{"name": "plain"}', '42704 tool "plain" is not on the list of definition "act" [Its tools are look, write, flow, far.]'),
  ('{"name": "look\"; DROP TABLE x; --"}', '42704 tool "look"; DROP TABLE x; --" is not on the list of definition "act" [Its tools are look, write, flow, far.]'),
  ('{"name": ["look"]}', '22023 the name of the tool is not a string [Give name and arguments.]'),
  ('{}', '22023 the name of the tool is not a string [Give name and arguments.]')) x(i, m);
SELECT is(refusal('look only', '{"where": "x"}', 'tools_other'), 'failed 1: 42704 definition "look" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]',
          'a list that was shared gives no right to what is on it');
SET ROLE tools_app;
SELECT orchestrator.drop_tool('look');
RESET ROLE;
SELECT is(refusal('look only', '{"where": "x"}'), 'failed 1: 42704 definition "look" is no tool [Say what its input is with orchestrator.define_tool().]', 'one that is no tool any more is refused');
SET ROLE tools_app;
SELECT orchestrator.define_tool('look', '{"type": "object", "required": ["at"], "properties": {"at": {"type": "string"}}}', 'looks');
RESET ROLE;

-- The list is of the version
SELECT enqueue('act', '{"name": "look", "arguments": {"at": "x"}}') AS old \gset
SELECT value_of($$SELECT orchestrator.define('act', NULL, 'tool', request => '{"tools": ["write", "flow"]}')$$, 'tools_app');
SELECT choose();
SELECT is(steps(:old), 'call pending', 'a task keeps the list of its version');
SELECT is(refusal('act', '{"name": "look", "arguments": {"at": "x"}}'), 'failed 1: 42704 tool "look" is not on the list of definition "act" [Its tools are write, flow.]', 'the next has the new one');
SELECT run();

-- Workflows, approvals, failures
SELECT enqueue('act', '{"name": "flow"}') AS flow \gset
SELECT choose(), run('"done"');
SELECT is(state_of(:flow) || ' ' || (task(:flow)).output::text, 'completed "done"', 'a workflow is called');
SELECT enqueue('act', '{"name": "write", "arguments": {"x": 1}}') AS write \gset
SELECT choose();
SELECT is(steps(:write), 'call approval waiting', 'a tool that needs approval waits for it');
SELECT is(value_of(format('SELECT description FROM orchestrator.step_status WHERE run_id = %s AND step = ''call approval''', :write), 'tools_app'), 'write {"x": 1}', 'which says what is to be called');
SELECT value_of(format('SELECT orchestrator.approve(%s, ''call approval'')', :write), 'tools_app'), run('"written"');
SELECT is((task(:write)).output, '"written"', 'then it is called');
SELECT enqueue('act', '{"name": "write"}') AS write \gset
SELECT choose(), value_of(format('SELECT orchestrator.reject(%s, ''call approval'', ''no'')', :write), 'tools_app');
SELECT is(state_of(:write) || ' ' || ((task(:write)).error ->> 'sqlstate'), 'failed OR006', 'or it fails');
SELECT enqueue('look only', '{"where": "x"}') AS bad \gset
SELECT choose();
SELECT claim(9, role => 'tools_app'), settle_failed(at(:bad, 'call'), error => '{"sqlstate": "22012", "message": "no", "retry": false}');
SELECT is(state_of(:bad) || ' ' || ((task(:bad)).error ->> 'message'), 'failed step "call" failed: no', 'a call that fails fails the task');
SELECT is(value_of(format('SELECT orchestrator.retry(%s)', :bad), 'tools_app'), 'waiting', 'which can be retried');
SELECT run('"again"');
SELECT is((task(:bad)).output, '"again"', 'and calls again');
SELECT is(error_of(format('SELECT orchestrator.rerun_from(%s, ''call'')', :bad), 'tools_app'),
          format('55000: cannot go back in task %s: it is completed [A model said what its steps are; retry() runs the failed ones again.]', :bad), 'but nobody goes back in it');

-- Said by a step alone
CREATE FUNCTION refused_step(step text) RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step(''a'', %s)])', $1), 'tools_app');
$$;
SELECT value_of($$SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', kind => 'tool', request => '{"tools": ["look"], "name": "look", "arguments": {"at": "$.input.at"}}')], '{"at": "there"}')$$, 'tools_app') AS run \gset
SELECT choose(), run('"seen"');
SELECT is((task(:run)).output, '"seen"', 'a step may have a list of its own');
SELECT is(refused_step($$kind => 'tool', request => '{"tools": ["plain"]}'$$), '42704: step "a": definition "plain" is no tool [Say what its input is with orchestrator.define_tool().]', 'checked as that of a definition');
SELECT is(refused_step($$kind => 'http', request => '{"path": "/"}'$$), '22023: step "a" has request without endpoint [Leave it out, or give what it is about.]', 'other kinds need an endpoint');
SELECT is(refused_step($$kind => 'tool', request => '{"tools": ["look"]}', definition => 'look'$$), '22023: step "a" has request without endpoint [Leave it out, or give what it is about.]', 'and a definition has its own');

-- A server's tool, called without a list
SELECT enqueue('far', '{"n": "x"}') AS far \gset
SELECT is(sent(), '{"sqlstate": "22023", "message": "the arguments of tool \"far\" do not fit: arguments.n is string, not integer", "hint": "The table orchestrator.tool has what each tool takes.", "retry": false}', 'arguments are checked before a call');
SELECT is(answered(:far, '{"sqlstate": "22023", "message": "the arguments", "retry": false}', 'error'), 'failed', 'which is not made');

-- Models ---------------------------------------------------------------------
CREATE FUNCTION calls(VARIADIC calls jsonb[]) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('model', 'm', 'usage', '{"prompt_tokens": 10, "completion_tokens": 5}'::jsonb, 'choices', jsonb_build_array(jsonb_build_object('finish_reason', 'tool_calls',
    'message', jsonb_build_object('role', 'assistant', 'content', NULL, 'tool_calls', (SELECT jsonb_agg(jsonb_build_object('id', 'c' || n, 'type', 'function',
      'function', jsonb_build_object('name', c ->> 0, 'arguments', (c -> 1)::text)) ORDER BY n) FROM unnest($1) WITH ORDINALITY e(c, n))))));
$$;
SET ROLE tools_app;
SELECT orchestrator.define('clerk', NULL, 'llm', endpoint => 'gpt', retry_delay => '0', request => '{"model": "m", "prompt": "$.q", "tools": ["look"]}');
SELECT orchestrator.define('ask', NULL, 'llm', endpoint => 'gpt', retry_delay => '0', success_callback => 'plain',
  request => '{"model": "m", "prompt": "$.q", "tools": ["look", "write", "flow"], "tool_choice": "required", "max_tool_rounds": 2}');
RESET ROLE;
SELECT enqueue('ask', '{"q": "go"}') AS ask \gset
SELECT sent() AS request \gset
SELECT is(:'request'::jsonb #> '{body,tools}' -> 0, '{"type": "function", "function": {"name": "look", "description": "looks", "parameters": {"type": "object", "required": ["at"], "properties": {"at": {"type": "string"}}}}}', 'a model is told of its tools');
SELECT is(:'request'::jsonb #> '{body,max_tool_rounds}', NULL, 'and not of what is ours');
SELECT is(answered(:ask, calls('["look", {"at": "$.input"}]', '["flow", {}]', '["plain", {}]', '["look", {"at": 1}]', '["write'');--", {}]')), 'waiting', 'an answer with calls goes on');
SELECT is(steps(:ask), 'call 1.1 pending, call 1.2 waiting', 'those that may be are made, at the same time');
SELECT is((task(at(:ask, 'call 1.1'))).input, '{"at": "$.input"}', 'their arguments are no paths');
SELECT is(detail_of(:ask, 'tools_called') -> 'calls' -> 3, '{"name": "look", "error": "the arguments of tool \"look\" do not fit: arguments.at is number, not string"}', 'the trace has what was not');
SELECT is(run('{"found": "$.x"}'), 2::bigint, 'they run');
SELECT is(steps(:ask), 'call 1.1 completed, call 1.2 completed, round 2 pending', 'then the model is asked again');
SELECT sent() AS request \gset
SELECT is(:'request'::jsonb #> '{body,messages}' -> 1 -> 'tool_calls' -> 0, '{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"at\": \"$.input\"}"}}', 'with what it asked for');
SELECT is((SELECT jsonb_agg(m -> 'content' ORDER BY n) FROM jsonb_array_elements(:'request'::jsonb #> '{body,messages}') WITH ORDINALITY e(m, n) WHERE m ->> 'role' = 'tool'),
  '["{\"found\": \"$.x\"}", "{\"found\": \"$.x\"}", "error: there is no tool \"plain\"", "error: the arguments of tool \"look\" do not fit: arguments.at is number, not string", "error: there is no tool \"write'');--\""]', 'and what came of it');
SELECT is(:'request'::jsonb #> '{body,tool_choice}', NULL, 'it need not call again');
CREATE FUNCTION called_back() RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'plain';
$$;
SELECT is(answered(at(:ask, 'round 2'), calls('["look", {"at": "y"}]', '["write", {}]')), 'completed', 'it may call again all the same');
SELECT is(steps(:ask), 'call 1.1 completed, call 1.2 completed, round 2 completed, call 2.1 pending, call 2.2 approval waiting', 'with approvals');
SELECT claim(9, role => 'tools_app'), settle_failed(at(:ask, 'call 2.1'), error => '{"sqlstate": "22012", "message": "it broke", "retry": false}');
SELECT value_of(format('SELECT orchestrator.approve(%s, ''call 2.2 approval'')', :ask), 'tools_app'), run('"ok"');
SELECT is(sent() #> '{body,messages,-2,content}', '"error: it broke"', 'a call that failed is told');
SELECT is(called_back(), 0::bigint, 'no round is an end of the task');
SELECT is(answered(at(:ask, 'round 3'), completion('at last')), 'completed', 'until it answers');
SELECT is(state_of(:ask) || ' ' || ((task(:ask)).output ->> 'content'), 'completed at last', 'the last answer is that of the task');
SELECT is(called_back(), 1::bigint, 'and its end');
SELECT is((task(:ask)).resources, '{"cost": 0, "tokens_in": 30, "tokens_out": 15}', 'which has what all rounds used');
SELECT is((SELECT sum(calls) FROM orchestrator.usage_status WHERE definition = 'ask'), 3::numeric, 'under the name of its definition');

-- In a workflow, and where it stops
SET ROLE tools_app;
SELECT orchestrator.define('small', NULL, 'llm', endpoint => 'gpt', retry_delay => '0', request => '{"model": "m", "prompt": "$.steps.first", "tools": ["look"], "max_tool_rounds": 1.0,
  "schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}}');
SELECT orchestrator.define_workflow('whole', ARRAY[orchestrator.step('first', 'SELECT 1', 'sql'), orchestrator.step('asks', definition => 'small', needs => '{first}'),
                                                   orchestrator.step('last', 'SELECT 1', 'sql', needs => '{asks}')]);
RESET ROLE;
SELECT enqueue('whole') AS whole \gset
SELECT run('1'), sent();
SELECT is(answered(at(:whole, 'asks'), calls('["look", {"at": "x"}]')), 'waiting', 'a step of a workflow calls tools');
SELECT is(steps(:whole), 'first completed, asks waiting', 'for which its dependants wait');
SELECT run('"seen"'), sent();
SELECT is(answered(at(at(:whole, 'asks'), 'round 2'), completion('none')), 'pending', 'a last answer that does not fit is asked for again');
SELECT is(sent() #>> '{body,messages,-1,content}', 'This answer cannot be used: the answer does not fit its schema: it is not JSON. Answer again, with JSON that fits.', 'after what was called');
SELECT answered(at(at(:whole, 'asks'), 'round 2'), completion('{"n": 3}'));
SELECT is(run('"over"'), 1::bigint, 'then they go on');
SELECT is((task(at(:whole, 'last'))).input #> '{steps,asks,content}', '{"n": 3}', 'with the last answer');
SELECT is((SELECT resources -> 'tokens_in' FROM orchestrator.task WHERE id = at(:whole, 'asks')) || (task(:whole)).resources, '[30, {"cost": 0, "tokens_in": 30, "tokens_out": 15}]', 'all is counted, once each');
SELECT ok(value_of(format('SELECT orchestrator.graph(%s)', :whole), 'tools_app') ~ 'asks.*call 1\.1.*round 2.*last', 'and in the picture');
SELECT enqueue('small', '{"steps": {"first": "again"}}') AS small \gset
SELECT sent(), answered(:small, calls('["look", {"at": "x"}]')), run(), sent(), answered(at(:small, 'round 2'), calls('["look", {"at": "y"}]'));
SELECT is((task(:small)).error - '{step,task}'::text[], '{"retry": false, "sqlstate": "OR007", "message": "step \"round 2\" failed: the model asked for tools 2 times, more than max_tool_rounds, 1",
  "hint": "Raise max_tool_rounds of the request, 50 at most, or see in its steps what it asks for."}', 'a model that goes on asking is stopped');
SELECT is(value_of(format('SELECT orchestrator.retry(%s)', :small), 'tools_app'), 'waiting', 'retried, it is asked once more');
SELECT sent(), answered(at(:small, 'round 2'), completion('{"n": 1}'));
SELECT is((task(:small)).output -> 'content', '{"n": 1}', 'and may answer');
SELECT enqueue('small', '{"steps": {"first": "many"}}') AS many \gset
SELECT sent(), answered(:many, (SELECT calls(VARIADIC array_agg('["look", {"at": "x"}]'::jsonb)) FROM generate_series(1, 51)));
SELECT is((task(:many)).error ->> 'message', 'the model asked for 51 calls at once, more than 50', 'so are too many calls at once');
SELECT value_of($$SELECT orchestrator.enqueue('small', '{"steps": {"first": "dear"}}', metadata => '{"budget": {"max_tokens": 12}}')$$, 'tools_app') AS dear \gset
SELECT sent(), answered(:dear, calls('["look", {"at": "x"}]')), run();
SELECT is(sent() ->> 'message', format('the budget of task %s is spent: 15 of 12 tokens', :dear), 'and rounds beyond the budget of the task');
SELECT answered(at(:dear, 'round 2'), '{"sqlstate": "OR014", "message": "spent", "retry": false}', 'error');
SELECT is((task(:dear)).error ->> 'sqlstate', 'OR014', 'which fails');
SELECT enqueue('small', '{"steps": {"first": "gone"}}') AS gone \gset
SELECT sent(), answered(:gone, calls('["look", {"at": "x"}]'));
SELECT is(value_of(format('SELECT orchestrator.cancel(%s)', :gone), 'tools_app'), 'cancelled', 'it can be cancelled');
SELECT is(state_of(:gone) || ': ' || steps(:gone), 'cancelled: call 1.1 cancelled', 'with its calls');

-- Items, batches and repeats, each with rounds of its own
SET ROLE tools_app;
SELECT orchestrator.define_workflow('many', ARRAY[orchestrator.step('each', definition => 'clerk', each => '$.input.of', input => '{"q": "$.item"}')]);
SELECT orchestrator.define_workflow('repeats', ARRAY[orchestrator.step('asks', definition => 'clerk', repeat_while => '$.iteration < 2', input => '{"q": "$.iteration"}')]);
RESET ROLE;
-- The clerk calls once, then answers.
CREATE FUNCTION serve(id bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM sent();
  PERFORM answered($1, calls('["look", {"at": "x"}]'));
  PERFORM run();
  PERFORM sent();
  RETURN answered(at($1, 'round 2'), completion((task($1)).input ->> 'q'));
END $$;
SELECT enqueue('many', '{"of": ["one", "two"]}') AS many \gset
SELECT sent(), serve(id) FROM orchestrator.task WHERE parent_id = at(:many, 'each') ORDER BY item;
SELECT is((SELECT string_agg(o ->> 'content', ', ') FROM jsonb_array_elements((task(:many)).output) o), 'one, two', 'items of a map');
SELECT value_of($$SELECT orchestrator.enqueue_batch('clerk', ARRAY['{"q": "one"}', '{"q": "two"}']::jsonb[])$$, 'tools_app') AS batch \gset
SELECT sent(), serve(id) FROM orchestrator.task WHERE parent_id = :batch ORDER BY item;
SELECT is((task(:batch)).output, '{"total": 2, "failed": 0, "cancelled": 0, "completed": 2}', 'items of a batch');
SELECT enqueue('repeats') AS again \gset
SELECT serve(at(:again, 'asks'));
SELECT is(steps(at(:again, 'asks')), NULL, 'a step that repeats begins anew');
SELECT is(sent() #> '{body,messages}', '[{"role": "user", "content": "1"}]', 'and is told nothing of before');
SELECT answered(at(:again, 'asks'), calls('["look", {"at": "y"}]')), run();
SELECT is(jsonb_array_length(sent() #> '{body,messages}'), 3, 'but of its own calls');
SELECT answered(at(at(:again, 'asks'), 'round 2'), completion('over'));
SELECT is((task(:again)).output ->> 'content', 'over', 'to its end');
SET ROLE tools_app;
SELECT orchestrator.define('talk', NULL, 'llm', endpoint => 'gpt', request => '{"model": "m", "prompt": "$.q", "tools": ["look"], "conversation": true}');
SELECT orchestrator.define_workflow('talks', ARRAY[orchestrator.step('a', definition => 'talk', input => '{"q": "first"}'), orchestrator.step('b', definition => 'talk', input => '{"q": "second"}', needs => '{a}')]);
RESET ROLE;
SELECT enqueue('talks') AS talks \gset
SELECT serve(at(:talks, 'a'));
SELECT is(sent() #> '{body,messages}', '[{"role": "user", "content": "first"}, {"role": "assistant", "content": "first"}, {"role": "user", "content": "second"}]', 'a conversation keeps what was asked and answered, not the calls');
SELECT answered(at(:talks, 'b'), calls('["look", {"at": "y"}]')), run();
SELECT is((SELECT string_agg(m ->> 'role', ' ' ORDER BY n) FROM jsonb_array_elements(sent() #> '{body,messages}') WITH ORDINALITY e(m, n)), 'user assistant user assistant tool', 'and comes before them');
SELECT enqueue('clerk', '{"q": "gone"}') AS gone \gset
SELECT orchestrator.cancel(:talks);
SELECT sent(), value_of($$SELECT orchestrator.drop_tool('look')$$, 'tools_app');
SELECT is(answered(:gone, calls('["look", {"at": "x"}]')) || ' ' || ((task(:gone)).error ->> 'message'), 'failed definition "look" is no tool', 'a tool that is gone meanwhile fails the task');
SELECT enqueue('clerk', '{"q": "gone"}') AS gone \gset
SELECT is(sent() ->> 'sqlstate', '42704', 'or the next before it is asked');
SELECT is(orchestrator._model_call('llm', 'ollama', jsonb_build_object('model', 'm', 'messages', '[{"role": "tool", "tool_call_id": "c1", "name": "look", "content": "x"}]'::jsonb)) #> '{body,messages,0}',
          '{"role": "tool", "content": "x", "tool_name": "look"}', 'Ollama is told the name of the tool');
SELECT is((orchestrator._model_call('llm', 'ollama', '{"model": "m", "messages": [{"role": "user", "content": "x"}], "schema": {"type": "object"}, "tools": []}') -> 'body') - '{model,stream}'::text[],
          '{"tools": [], "messages": [{"role": "system", "content": "When you call no tool, answer with JSON that fits this schema: {\"type\": \"object\"}"}, {"role": "user", "content": "x"}]}',
          'and with tools no format, but its schema');
SELECT value_of($$SELECT orchestrator.define_tool('look')$$, 'tools_app'), value_of($$SELECT orchestrator.drop_definition('look', force => true)$$, 'tools_app'),
       value_of($$SELECT orchestrator.define('look', 'SELECT 1', 'sql')$$, 'tools_app');
SELECT is(refused('tool', NULL, '{"tools": ["look"]}'), '42704: definition "look" is no tool [Say what its input is with orchestrator.define_tool().]', 'a definition that was dropped and made anew is no tool');

-- Should it be orchestrated --------------------------------------------------
SELECT is(error_of($$SELECT orchestrator.should_orchestrate('x', 'gpt')$$, 'tools_app'), '22023: endpoint and model belong together [Give both, or neither: then the words decide.]', 'a model is named with its endpoint');
SELECT is(error_of($$SELECT orchestrator.should_orchestrate('x', 'gpt', 'm')$$, 'tools_other'), '42501: permission denied for endpoint "gpt" [GRANT USAGE ON FOREIGN SERVER gpt TO tools_other.]', 'which the caller must be allowed to call');
SELECT value_of($$SELECT orchestrator.should_orchestrate('$.x "]} Compare all pages', 'gpt', '$m')$$, 'tools_app') AS guess \gset
SELECT is(:'guess'::jsonb - 'task'::text, '{"orchestrate": true, "score": 0.6, "signs": ["large work", "many things"]}', 'the words are judged at once');
SELECT sent() AS request \gset
SELECT is(jsonb_build_array(:'request'::jsonb #> '{body,model}', :'request'::jsonb #> '{body,messages,1,content}'), '["$m", "$.x \"]} Compare all pages"]', 'a model is asked');
SELECT answered((:'guess'::jsonb ->> 'task')::bigint, completion('{"orchestrate": false, "score": 0.2, "reason": "it is one act"}'));
SELECT is((task((:'guess'::jsonb ->> 'task')::bigint)).output -> 'content', '{"orchestrate": false, "score": 0.2, "reason": "it is one act"}', 'and its judgement is the output of a task');

SELECT * FROM finish();
ROLLBACK;
