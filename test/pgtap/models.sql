-- Calls of models and tools by their SQL functions, with no courier: schemas,
-- what is sent to each provider, what its answers mean, what is counted, and the
-- decisions of an agent. Servers and real clients are in test/t.
\ir lib/setup.psql
\ir lib/models.psql
SELECT plan(105);

CREATE ROLE models_app LOGIN;
CREATE ROLE models_other LOGIN;
SELECT orchestrator.grant_usage('models_app'), orchestrator.grant_usage('models_other');
CREATE SERVER gpt FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://gpt.example/v1', provider 'openai');
CREATE SERVER claude FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://claude.example/v1', provider 'anthropic');
CREATE SERVER llama FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://llama.example', provider 'ollama');
CREATE SERVER tools FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://tools.example/mcp', provider 'mcp');
GRANT USAGE ON FOREIGN SERVER gpt, claude, llama, tools TO models_app;

-- Schemas ----------------------------------------------------------------
CREATE FUNCTION misfit(value jsonb, schema jsonb) RETURNS text LANGUAGE sql AS 'SELECT orchestrator._schema_error($1, $2)';
SELECT is(misfit(v::jsonb, s::jsonb), e, format('%s against %s', v, s)) FROM (VALUES
  ('1', '{"type": "integer"}', NULL), ('1.0', '{"type": "integer"}', NULL), ('1.5', '{"type": "integer"}', '$ is number, not integer'),
  ('"a"', '{"type": ["string", "null"]}', NULL), ('null', '{"type": ["string", "null"]}', NULL), ('true', '{"type": "string"}', '$ is boolean, not string'),
  ('"b"', '{"enum": ["a", "b"]}', NULL), ('"c"', '{"enum": ["a", "b"]}', '$ is none of ["a", "b"]'), ('1', '{"const": 2}', '$ is not 2'),
  ('{"a": 1}', '{"type": "object", "required": ["a", "b"]}', '$ has no "b"'),
  ('{"a": {"b": [1, "x"]}}', '{"properties": {"a": {"properties": {"b": {"items": {"type": "number"}}}}}}', '$.a.b[1] is string, not number'),
  ('{"a": 1, "z": 2}', '{"properties": {"a": {}}, "additionalProperties": false}', '$ has "z", which is not asked for'),
  ('{"z": "2"}', '{"additionalProperties": {"type": "number"}}', '$.z is string, not number'),
  ('[1]', '{"minItems": 2}', '$ has fewer than 2 items'), ('[1, 2, 3]', '{"maxItems": 2}', '$ has more than 2 items'),
  ('"ab"', '{"minLength": 3}', '$ is shorter than 3 characters'), ('"äöü"', '{"maxLength": 3}', NULL), ('"abcd"', '{"maxLength": 3}', '$ is longer than 3 characters'),
  ('1', '{"minimum": 2}', '$ is less than 2'), ('3', '{"maximum": 2}', '$ is more than 2'), ('2', '{"exclusiveMinimum": 2}', '$ is not more than 2'),
  ('2', '{"exclusiveMaximum": 2}', '$ is not less than 2'), ('3', '{"multipleOf": 2}', '$ is no multiple of 2'),
  ('1', '{"anyOf": [{"type": "string"}, {"type": "number"}]}', NULL), ('true', '{"anyOf": [{"type": "string"}, {"type": "number"}]}', '$ is boolean, not string'),
  ('1', '{"oneOf": [{"minimum": 0}, {"maximum": 2}]}', '$ fits 2 of oneOf'), ('1', '{"allOf": [{"minimum": 0}, {"minimum": 2}]}', '$ is less than 2'),
  ('1', '{"not": {"type": "number"}}', '$ is what it must not be'), ('1', 'false', '$ must not be there'),
  ('{"n": {"n": {"n": 1}}}', '{"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "properties": {"n": {"$ref": "#/$defs/x"}}}}}', '$.n.n.n is number, not object'),
  ('1', '{"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}}', '$ is nested too deep')) x(v, s, e);

-- Definitions --------------------------------------------------------------
CREATE FUNCTION refused(kind text, endpoint text, request jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.define(''x'', NULL, %L, endpoint => %L, request => %L)', $1, $2, $3), 'models_app');
$$;
SELECT is(refused(k, e, r::jsonb), m, m) FROM (VALUES
  ('llm', 'tools', '{"model": "m", "prompt": "x"}', '22023: endpoint "tools" is of provider mcp, which kind llm cannot call [Its provider must be openai or anthropic or ollama.]'),
  ('embedding', 'claude', '{"model": "m", "input": "x"}', '22023: endpoint "claude" is of provider anthropic, which kind embedding cannot call [Its provider must be openai or ollama.]'),
  ('llm', 'gpt', '{"prompt": "x"}', '22023: request, key "model": is not a string [Give the name of a model.]'),
  ('llm', 'gpt', '{"model": "m"}', '22023: request: has both messages and prompt, or neither [Give messages, or a prompt and perhaps system.]'),
  ('llm', 'gpt', '{"model": "m", "prompt": "x", "temprature": 1}', '22023: request: unknown key "temprature" [The keys of a request of kind llm are model, messages, system, prompt, temperature, top_p, max_tokens, stop, seed, tools, tool_choice, max_tool_rounds, schema, stream, options, conversation.]'),
  ('llm', 'gpt', '{"model": "m", "prompt": "x", "schema": {"pattern": "a"}}', '22023: request, key "schema": schema has keyword "pattern", which is not known'),
  ('llm', 'gpt', '{"model": "m", "prompt": "x", "stream": "yes"}', '22023: request, key "stream": is neither true nor false'),
  ('embedding', 'gpt', '{"model": "m", "input": "x", "stream": true}', '22023: request: unknown key "stream" [The keys of a request of kind embedding are model, input, dimensions, options.]'),
  ('embedding', 'gpt', '{"model": "m"}', '22023: request: has no input [Give a text, an array of texts, or a path to one.]'),
  ('tool', 'tools', '{}', '22023: request, key "tool": is not a string [Give the name that the server has for it.]')) x(k, e, r, m);

-- What is sent -------------------------------------------------------------
SELECT $${"model": "m", "temperature": 0, "max_tokens": 9, "stop": "END", "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "go"},
  {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}, {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
  {"role": "tool", "tool_call_id": "c1", "content": "one"}, {"role": "tool", "tool_call_id": "c2", "content": "two"}],
  "tools": [{"type": "function", "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}}}]}$$ AS doc \gset
SELECT is(orchestrator._model_call('llm', 'openai', :'doc'), jsonb_build_object('method', 'POST', 'path', '/chat/completions', 'body', :'doc'::jsonb), 'OpenAI: as it is');
SELECT is(orchestrator._model_call('llm', 'anthropic', :'doc') #> '{body,messages}', '[{"role": "user", "content": [{"type": "text", "text": "go"}]},
  {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}, {"type": "tool_use", "id": "c2", "name": "f", "input": {}}]},
  {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "one"}, {"type": "tool_result", "tool_use_id": "c2", "content": "two"}]}]', 'Anthropic: calls and results are blocks');
SELECT is((orchestrator._model_call('llm', 'anthropic', :'doc') -> 'body') - 'messages'::text, '{"model": "m", "system": "be brief", "temperature": 0, "max_tokens": 9, "stop_sequences": ["END"],
  "tools": [{"name": "f", "description": "does f", "input_schema": {"type": "object"}}]}', 'and the rest has its names');
SELECT is(orchestrator._model_call('llm', 'anthropic', :'doc') -> 'headers', '{"anthropic-version": "2023-06-01"}', 'with its version');
SELECT is((orchestrator._model_call('llm', 'ollama', :'doc') -> 'body') - '{messages,tools}'::text[], '{"model": "m", "stream": false, "options": {"temperature": 0, "num_predict": 9, "stop": "END"}}', 'Ollama: options');
SELECT is(orchestrator._model_call('llm', 'ollama', :'doc') #> '{body,messages,2}', '{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "f", "arguments": {}}}]}', 'and arguments are objects');
SELECT '{"model": "m", "messages": [{"role": "user", "content": "go"}], "schema": {"type": "object"}, "options": {"extra": 1}}' AS doc \gset
SELECT is(orchestrator._model_call('llm', 'openai', :'doc') -> 'body', '{"model": "m", "messages": [{"role": "user", "content": "go"}], "extra": 1,
  "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}}', 'OpenAI: a schema, and options');
SELECT is(orchestrator._model_call('llm', 'anthropic', :'doc') #> '{body,tool_choice}', '{"type": "tool", "name": "answer"}', 'Anthropic: a tool that must be called');
SELECT is(orchestrator._model_call('llm', 'ollama', :'doc') #> '{body,format}', '{"type": "object"}', 'Ollama: a format');
SELECT '{"model": "m", "stream": true, "messages": [{"role": "user", "content": "go"}]}' AS doc \gset
SELECT is(orchestrator._model_call('llm', 'openai', :'doc') - 'path'::text, '{"method": "POST", "stream": true, "body": {"model": "m", "stream": true, "stream_options": {"include_usage": true},
  "messages": [{"role": "user", "content": "go"}]}}', 'OpenAI: a stream, with its usage');
SELECT is(orchestrator._model_call('llm', 'anthropic', :'doc') #> '{body,stream}', 'true', 'Anthropic: a stream');
SELECT is(orchestrator._model_call('llm', 'ollama', :'doc') #> '{body,stream}', 'true', 'Ollama: a stream');
SELECT is(orchestrator._model_call('llm', 'openai', :'doc'::jsonb || '{"schema": true}') -> 'stream', 'false', 'one with a schema is not shown');
SELECT is(orchestrator._model_call('llm', 'openai', :'doc'::jsonb || '{"stream": false}'), '{"method": "POST", "path": "/chat/completions", "body": {"model": "m", "messages": [{"role": "user", "content": "go"}]}}', 'none, if that is said');

-- A call and its answer ------------------------------------------------------
CREATE FUNCTION add_call(name text, input jsonb DEFAULT '{}', metadata jsonb DEFAULT NULL) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_task bigint;
BEGIN
  SET LOCAL ROLE models_app;
  v_task := orchestrator.enqueue(name, input, metadata => $3);
  RESET ROLE;
  RETURN v_task;
END $$;
SET ROLE models_app;
SELECT orchestrator.define('ask', NULL, 'llm', endpoint => 'gpt', request => '{"model": "m", "system": "brief", "prompt": "$.q"}', retry_delay => '0');
SELECT orchestrator.define('json', NULL, 'llm', endpoint => 'gpt', retry_delay => '0',
  request => '{"model": "m", "prompt": "$.q", "schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}}');
SELECT orchestrator.define('embed', NULL, 'embedding', endpoint => 'gpt', request => '{"model": "e", "input": "$.texts"}');
RESET ROLE;
SELECT orchestrator.set_price('m', 2, 4), orchestrator.set_price('m-1', 1, 2);
SELECT add_call('ask', '{"q": "hello"}') AS ask \gset
SELECT is(sent() #> '{body,messages}', '[{"role": "system", "content": "brief"}, {"role": "user", "content": "hello"}]', 'a prompt becomes messages');
SELECT is(answered(:ask, completion('hi')), 'completed', 'an answer completes it');
SELECT is((task(:ask)).output, '{"content": "hi", "finish_reason": "stop", "model": "m-1", "tokens_in": 10, "tokens_out": 5}', 'the output is of one form');
SELECT is(value_of(format('SELECT s::text FROM orchestrator.llm_stream(%s) s', :ask), 'models_app'), '(1,2,hi,t)', 'and is read as one that was streamed');
SELECT is(value_of(format('SELECT s::text FROM orchestrator.llm_stream(%s, 1) s', :ask), 'models_app'), '(1,2,i,t)', 'from a place on');
SELECT is(value_of(format('SELECT count(*) FROM orchestrator.llm_stream(%s) s', :ask), 'models_other'), '0', 'not by others');
SELECT is((task(:ask)).resources, '{"tokens_in": 10, "tokens_out": 5, "cost": 0.00002}', 'what it used, at the price of the longest name');
SELECT is((SELECT ROW(owner, definition, model, calls, tokens_in, tokens_out, cost)::text FROM orchestrator.usage_status), '(models_app,ask,m-1,1,10,5,0.00002)', 'and by role, definition and model');
SELECT is(value_of('SELECT count(*) FROM orchestrator.usage_status', 'models_other'), '0', 'which others do not see');

SELECT add_call('json', '{"q": "n?"}') AS json \gset
SELECT sent();
SELECT is(answered(:json, completion('{"n": "x"}')), 'pending', 'an answer that does not fit is asked for again');
SELECT is((sent() #>> '{body,messages}')::jsonb -> 2, '{"role": "user", "content": "This answer cannot be used: the answer does not fit its schema: $.n is string, not integer. Answer again, with JSON that fits."}', 'and the model is told why');
SELECT is(answered(:json, completion(E'```json\n{"n": 4}\n```')), 'completed', 'a block of code is read');
SELECT is((task(:json)).output -> 'content', '{"n": 4}', 'the content is JSON');
SELECT is((task(:json)).resources -> 'tokens_in', '20', 'both attempts count');
SELECT add_call('json') AS cut \gset
SELECT sent();
SELECT is(answered(:cut, jsonb_set(completion('{"n"'), '{choices,0,finish_reason}', '"length"')), 'failed', 'one that was cut off is not');
SELECT add_call('ask') AS odd \gset
SELECT sent();
SELECT is(answered(:odd, '"no json"'), 'pending', 'nonsense is an error of the step');
SELECT is((task(:odd)).error ->> 'message', 'the answer is not of the form of provider openai', 'that says so');
SELECT orchestrator.cancel(:odd);
SELECT add_call('embed', '{"texts": ["a", "b"]}') AS embed \gset
SELECT is(sent() -> 'body', '{"model": "e", "input": ["a", "b"]}', 'many texts go in one call');
SELECT answered(:embed, '{"model": "e", "data": [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2]}], "usage": {"prompt_tokens": 2}}');
SELECT is((task(:embed)).output -> 'embeddings', '[[1, 2], [3, 4]]', 'their embeddings are in their order');
SELECT is(orchestrator.to_embedding('{"embedding": [1, 2.5]}'), '{1,2.5}'::real[], 'as real[]');

-- Budgets ------------------------------------------------------------------
SELECT is(error_of($$SELECT orchestrator.set_budget('models_app', 1)$$, 'models_app'), '42501: permission denied for function set_budget', 'a budget is an administrator''s to set');
SELECT orchestrator.set_budget('models_app', 40);
SELECT add_call('ask') AS poor \gset
SELECT is(sent() ->> 'sqlstate', 'OR014', 'what is spent refuses the next call');
SELECT is(orchestrator._budget_refusal(task(:poor)) ->> 'message', format('the budget of role "models_app" is spent: %s of 40 tokens within 1 day', (SELECT sum(tokens_in + tokens_out) FROM orchestrator.model_usage)), 'and says how much');
SELECT later(90000);
SELECT ok(orchestrator._budget_refusal(task(:poor)) IS NULL, 'after the period it may again');
SELECT orchestrator.set_budget('models_app');
SELECT orchestrator.cancel(:poor);
SELECT add_call('json', metadata => '{"budget": {"max_tokens": 5}}') AS small \gset
SELECT sent();
SELECT answered(:small, completion('x'));
SELECT is(sent() ->> 'message', format('the budget of task %s is spent: 15 of 5 tokens', :small), 'a task has one of its own');

-- Tools -------------------------------------------------------------------
SELECT is((SELECT k.output FROM orchestrator._keep_tools(jsonb_populate_record(NULL::orchestrator.task, jsonb_build_object('owner', owner_id('models_app'), 'input', '{"prefix": ""}'::jsonb)),
    jsonb_populate_record(NULL::orchestrator.definition, '{"endpoint": "tools"}'), '{"tools": [{"name": "ask"}, {"name": "far"}]}') k), '["far"]', 'a server of tools gives definitions');
SELECT is((SELECT string_agg(name || ' ' || kind, ', ' ORDER BY name) FROM orchestrator.definition WHERE name IN ('ask', 'far') AND is_current), 'ask llm, far tool', 'but replaces none of another kind');

-- An agent -------------------------------------------------------------------
SET ROLE models_app;
SELECT orchestrator.define('look', 'SELECT 1', 'sql', description => 'looks');
SELECT orchestrator.define_tool('look', '{"type": "object", "required": ["at"], "properties": {"at": {"type": "string"}}}', needs_approval => true);
SELECT orchestrator.orchestrate('find it', '{look}', 'gpt', 'm', max_steps => 6, max_tokens => 1000) AS run \gset
RESET ROLE;
CREATE FUNCTION at(run bigint, name text) RETURNS bigint LANGUAGE sql AS $$SELECT t.id FROM orchestrator.task t WHERE t.parent_id = $1 AND t.name = $2$$;
CREATE FUNCTION decision(what text, steps jsonb DEFAULT '[]', answer text DEFAULT '') RETURNS jsonb LANGUAGE sql AS $$
  SELECT completion(jsonb_build_object('decision', $1, 'reason', 'because', 'answer', $3, 'steps', $2)::text);
$$;
CREATE FUNCTION planned(tool text, arguments jsonb, name text DEFAULT 's', needs jsonb DEFAULT '[]') RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_array(jsonb_build_object('name', $3, 'description', '', 'tool', $1, 'arguments', $2, 'needs', $4));
$$;
SELECT ok(sent() #>> '{body,messages,0,content}' LIKE '%- look: looks Arguments: {"type": "object"%', 'the model is told of the tools');
SELECT is(orchestrator._plan_refusal(task(:run), s), e, coalesce(e, 'a plan that can be followed')) FROM (VALUES
  (planned('look', '{"at": "x"}'), NULL), ('[]'::jsonb, 'continue without steps'), (planned('rm', '{}'), 'there is no tool "rm"'),
  (planned('look', '{"at": 1}'), 'the arguments of tool "look" do not fit: arguments.at is number, not string'),
  (planned('look', '{"at": "x"}', 'a b'), '"a b" is no name for a step'), (planned('look', '{"at": "x"}', 'plan'), 'there is a step "plan" already'),
  (planned('', '{}', needs => '["z"]'), 'step "s" needs one that does not come before it'),
  (planned('', '{}', 'a') || planned('', '{}', 'b') || planned('', '{}', 'c') || planned('', '{}', 'd') || planned('', '{}', 'e'), 'the run may have 6 steps, and has 1')) x(s, e);
SELECT is(answered(at(:run, 'plan'), decision('continue', planned('look', '{"at": "$.input"}'))), 'completed', 'a plan is followed');
SELECT is((SELECT string_agg(name || ' ' || state, ', ' ORDER BY step) FROM orchestrator.task WHERE parent_id = :run), 'plan completed, s approval waiting', 'a tool waits for its approval');
SELECT is((detail_of(:run, 'decision')) - 'turn'::text, '{"decision": "continue", "reason": "because", "steps": ["s"]}', 'the decision is traced');
SELECT is(value_of(format('SELECT orchestrator.approve(%s, ''s approval'')', :run), 'models_app'), '', 'somebody approves');
SELECT is((task(at(:run, 's'))).input, '{"at": "$.input"}', 'arguments are no paths');
SELECT claim(9, role => 'models_app'), settle_completed(at(:run, 's'), '"seen"');
SELECT ok(sent() #>> '{body,messages,3,content}' LIKE E'What the steps gave:\n- s: seen\n%', 'the next decision is told what it gave');
SELECT is((SELECT resources -> 'tokens_in' FROM orchestrator.task WHERE id = :run), '10', 'the run has what its steps used');
SELECT is(answered(at(:run, 'evaluate 1'), decision('done', answer => 'here')), 'completed', 'the last decision');
SELECT is(state_of(:run) || ' ' || ((task(:run)).output ->> 'answer'), 'completed here', 'is the end of the run, and its output');
SELECT is((SELECT s - '{latest_traces,steps,estimated_seconds,cost,task_id}'::text[] FROM value_of(format('SELECT orchestrator.agent_status(%s)', :run), 'models_app') v, LATERAL (SELECT v::jsonb) x(s)),
  '{"goal": "find it", "status": "completed", "progress": 100, "current_step": 4, "total_steps": 4, "answer": "here", "error": null, "tokens_in": 20, "tokens_out": 10}', 'agent_status() says it all');
SELECT is(error_of(format('SELECT orchestrator.agent_status(%s)', :run), 'models_other'), format('42704: task %s does not exist', :run), 'but not to others');
SELECT value_of($$SELECT orchestrator.orchestrate('nothing', '{}', 'gpt', 'm')$$, 'models_app') AS run \gset
SELECT sent(), answered(at(:run, 'plan'), decision('give_up'));
SELECT is((task(:run)).error ->> 'sqlstate', 'OR016', 'an agent may give up');
SELECT is((SELECT orchestrator.should_orchestrate('Analyze all issues in my GitHub repo and create a summary report') - 'signs'::text), '{"score": 0.8, "orchestrate": true}', 'work with many parts');
SELECT is((SELECT orchestrator.should_orchestrate('What time is it?')), '{"score": 0, "signs": [], "orchestrate": false}', 'a question');

SELECT * FROM finish();
ROLLBACK;
