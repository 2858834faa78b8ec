-- Contexts of runs by their SQL functions, with no courier: steps that make
-- checkpoints, conversations, and summaries: when, of what, by which calls, and
-- what undoes, ends or meets them. Real calls are in test/t/345_context.pl.
\ir lib/setup.psql
\ir lib/models.psql
SELECT plan(127);

CREATE ROLE context_app LOGIN;
SELECT orchestrator.grant_usage('context_app');
CREATE SERVER gpt FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://gpt.example/v1', provider 'openai');
CREATE SERVER claude FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://claude.example/v1', provider 'anthropic');
CREATE SERVER forbidden FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://no.example/v1', provider 'openai');
CREATE SERVER plain FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://plain.example/v1');
GRANT USAGE ON FOREIGN SERVER gpt, claude, plain TO context_app;

-- What the calls of now were asked: by their task.
CREATE TABLE asked (task_id bigint, endpoint text, request jsonb, done boolean DEFAULT false);
-- Claim what there is, as the courier; refusals are settled, and so on. The
-- names of the tasks that make calls.
CREATE FUNCTION claimed() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  c       record;
  v_found boolean := true;
BEGIN
  UPDATE asked SET done = true;
  WHILE v_found LOOP
    v_found := false;
    PERFORM FROM orchestrator._claim_call_rows(4711, 0, 0, 1);   -- a session remembers where its last lane went on
    FOR c IN SELECT * FROM courier_claims(100) LOOP
      v_found := true;
      IF c.refusal IS NULL THEN
        INSERT INTO asked VALUES (c.task_id, c.endpoint, c.request);
      ELSE
        PERFORM answered(c.task_id, c.refusal, 'error');
      END IF;
    END LOOP;
  END LOOP;
  RETURN (SELECT string_agg((task(a.task_id)).name, ', ' ORDER BY a.task_id) FROM asked a WHERE NOT a.done);
END $$;
-- What a call was told, but for what the system says.
CREATE FUNCTION told(name text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg((m ->> 'role') || ' ' || (m ->> 'content'), ' | ' ORDER BY n) FROM asked a, jsonb_array_elements(a.request #> '{body,messages}') WITH ORDINALITY e(m, n)
  WHERE NOT a.done AND (task(a.task_id)).name = $1 AND m ->> 'role' <> 'system';
$$;
-- Answer all calls of a name, in their order.
CREATE FUNCTION answer(name text, VARIADIC contents text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_state text;
  v_n     int := 0;
  v_task  bigint;
BEGIN
  FOR v_task IN SELECT a.task_id FROM asked a WHERE NOT a.done AND (task(a.task_id)).name = $1 ORDER BY a.task_id LOOP
    v_n := v_n + 1;
    v_state := answered(v_task, completion($2[least(v_n, cardinality($2))], tokens => (SELECT length(a.request ->> 'body') / 4 FROM asked a WHERE a.task_id = v_task AND NOT a.done)));
  END LOOP;
  RETURN v_state;
END $$;
CREATE FUNCTION step_of(run bigint, name text) RETURNS bigint LANGUAGE sql AS $$
  SELECT t.id FROM orchestrator.task t WHERE t.parent_id = $1 AND t.name = $2 AND t.item IS NULL;
$$;
CREATE FUNCTION state_of(run bigint, name text) RETURNS text LANGUAGE sql AS $$SELECT state_of(step_of($1, $2))$$;
CREATE FUNCTION enqueued(workflow text, input jsonb DEFAULT '{}', metadata jsonb DEFAULT NULL) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_task bigint;
BEGIN
  SET LOCAL ROLE context_app;
  v_task := orchestrator.enqueue(workflow, input, metadata => $3);
  RESET ROLE;
  RETURN v_task;
END $$;
CREATE FUNCTION context_of(run bigint) RETURNS jsonb LANGUAGE sql AS $$SELECT orchestrator.context($1)$$;
-- A step that asks, and a text of so many characters.
CREATE FUNCTION asks(name text, needs text[] DEFAULT '{}', request jsonb DEFAULT '{"prompt": "$.context"}', each text DEFAULT NULL, on_failure text DEFAULT 'fail') RETURNS orchestrator.step_spec LANGUAGE sql AS $$
  SELECT orchestrator.step($1, kind => 'llm', endpoint => 'gpt', needs => $2, each => $4, on_failure => $5, retry_delay => '0', request => '{"model": "m"}' || $3);
$$;
CREATE FUNCTION words(n int, word text DEFAULT 'abcd') RETURNS text LANGUAGE sql AS $$SELECT left(repeat($2 || ' ', $1), $1)$$;

-- Pieces -----------------------------------------------------------------
SELECT is(orchestrator._pieces(t, n), p, format('%s in pieces of %s', to_json(t), n)) FROM (VALUES
  ('abc', 3, '{abc}'::text[]), ('abcd', 3, '{abc,d}'), ('aaaa bb cc', 10, '{"aaaa bb cc"}'), ('aaaaaaaa bbb', 10, '{"aaaaaaaa ",bbb}'),
  (E'aaaaaaaa\nb c', 10, ARRAY[E'aaaaaaaa\n', 'b c']), ('', 5, '{""}'), ('äöüäöüä', 3, '{äöü,äöü,ä}')) x(t, n, p);
SELECT is(array_to_string(orchestrator._pieces(words(10000), 777), ''), words(10000), 'no character is lost');
SELECT performs_ok($$SELECT orchestrator._pieces(words(1000000), 250)$$, 1000, 'a long text in short pieces takes no longer for that');

-- Definitions --------------------------------------------------------------
CREATE FUNCTION refused(step jsonb, options jsonb DEFAULT '{}') RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.define_workflow(%L::jsonb)', jsonb_build_object('name', 'w', 'steps', jsonb_build_array('{"name": "s"}' || $1)) || $2), 'context_app');
$$;
SELECT is(refused('{"kind": "checkpoint"}', jsonb_build_object('context', c::jsonb)), '22023: workflow "w": ' || e, e) FROM (VALUES
  ('[]', 'context is not an object'), ('{"limits": 1}', 'context: unknown key "limits" [The keys of a context are limit, endpoint, model and part.]'),
  ('{}', 'context: has no limit [Say of how many tokens on it is summarised.]'), ('{"limit": 999}', 'context, key "limit": must be a number of tokens from 1000 to 2147483647'),
  ('{"limit": 1000, "model": 1}', 'context, key "model": is not a string'), ('{"limit": 1000, "endpoint": 1}', 'context, key "endpoint": is not a string'),
  ('{"limit": 1000, "part": "$.notes"}', 'context, key "part": is no path to a member of the context [Say $.context, or a part of it like $.context.notes.]'),
  ('{"limit": 1000, "part": "$.context.notes[*]"}', 'context, key "part": is no path to a member of the context [Say $.context, or a part of it like $.context.notes.]'),
  ('{"limit": 1000, "endpoint": "plain"}', 'endpoint "plain" is of provider http, which kind summarize cannot call [Its provider must be openai or anthropic or ollama.]')) x(c, e);
SELECT is(refused('{"kind": "checkpoint"}', '{"context": {"limit": 1000, "endpoint": "forbidden"}}'), '42501: permission denied for endpoint "forbidden" [GRANT USAGE ON FOREIGN SERVER forbidden TO context_app.]', 'an endpoint must be the role''s to use');
SELECT is(refused(s::jsonb), '22023: step "s"' || e, e) FROM (VALUES
  ('{"kind": "checkpoint", "sleep": "1 s"}', ' has kind checkpoint and something else to do, which contradict each other [Make two steps of it.]'),
  ('{"kind": "checkpoint", "max_attempts": 2}', ' has max_attempts, but only makes a checkpoint [Make two steps of it.]'),
  ('{"kind": "checkpoint", "each": "$.input"}', ' has each, but only makes a checkpoint [Make two steps of it.]'),
  ('{"kind": "summarize", "endpoint": "gpt", "request": {"model": "m", "prompt": "x"}}', ': request: unknown key "prompt" [The keys of a request of kind summarize are model, part, limit, temperature, top_p, max_tokens, seed, options.]'),
  ('{"kind": "summarize", "endpoint": "gpt", "request": {"model": "m", "limit": "x"}}', ': request, key "limit": must be a number of tokens from 1000 to 2147483647'),
  ('{"kind": "llm", "endpoint": "gpt", "request": {"model": "m", "prompt": "x", "conversation": 1}}', ': request, key "conversation": is neither true nor false')) x(s, e);
SELECT is(error_of($$SELECT orchestrator.define('x', NULL, 'checkpoint')$$, 'context_app') ~ '^22023: unknown kind "checkpoint"', true, 'a checkpoint is a step, no task of its own');
SELECT is(value_of($$SELECT orchestrator.define_workflow('kept', ARRAY[orchestrator.step('s', kind => 'checkpoint', input => '{"a": "$.input.a"}')], context => '{"limit": 5000, "model": "n", "endpoint": "gpt", "part": "$.context.a"}')$$, 'context_app'), '1', 'a workflow says what is done with its context');
SELECT is(value_of($$SELECT orchestrator.definition_json('kept')$$, 'context_app')::jsonb, '{"name": "kept", "steps": [{"name": "s", "kind": "checkpoint", "input": {"a": "$.input.a"}}], "context": {"limit": 5000, "model": "n", "endpoint": "gpt", "part": "$.context.a"}}', 'and its document, too');

-- Steps that make checkpoints ------------------------------------------------
SET ROLE context_app;
SELECT orchestrator.define_workflow('points', ARRAY[
  orchestrator.step('a', 'SELECT 1', kind => 'sql'),
  orchestrator.step('save', kind => 'checkpoint', needs => '{a}', input => '{"draft": "$.steps.a", "before": "$.context"}'),
  orchestrator.step('never', kind => 'checkpoint', "when" => '$.input.x == 1'),
  orchestrator.step('b', 'SELECT 2', kind => 'sql', needs => '{save}')]);
RESET ROLE;
SELECT enqueued('points') AS run \gset
SELECT is(state_of(:run, 'never'), 'skipped', 'a checkpoint has a condition as other steps');
SELECT orchestrator.set_context(:run, '"old"'), claim(5, role => 'context_app');
SELECT settle_completed(step_of(:run, 'a'), '"A"');
SELECT is(state_of(:run, 'save') || ' ' || state_of(:run, 'b'), 'completed pending', 'it ends at once, and what needs it starts');
SELECT is(context_of(:run), '{"draft": "A", "before": "old"}', 'its input is the context from then on');
SELECT is((SELECT name || context || (SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(steps) k) FROM orchestrator.checkpoint WHERE task_id = :run), 'save{"draft": "A", "before": "old"}a,never,save', 'and the checkpoint has both');
SELECT is((task(step_of(:run, 'save'))).output, '{"checkpoint": "save"}', 'its output names it');
SELECT is((SELECT kind FROM orchestrator.step_status WHERE run_id = :run AND step = 'save'), 'checkpoint', 'views call it by its kind');
SELECT orchestrator.set_context(:run, '"newer"'), claim(5, role => 'context_app');
SELECT settle_completed(step_of(:run, 'b'), '"B"');
SELECT is(state_of(:run), 'completed', 'the run ends');
SELECT is(orchestrator.restore(:run, 'save') || ' ' || state_of(:run, 'save') || ' ' || state_of(:run, 'b'), 'waiting completed pending', 'restore() goes back to it');
SELECT is(context_of(:run), '{"draft": "A", "before": "old"}', 'with the context that it was made with');
SELECT orchestrator.rerun_from(:run, 'a'), claim(5, role => 'context_app');
SELECT is(state_of(:run, 'save'), 'waiting', 'it can be reset');
SELECT settle_completed(step_of(:run, 'a'), '"A2"');
SELECT is((SELECT context ->> 'draft' FROM orchestrator.checkpoint WHERE task_id = :run), 'A2', 'and is then made anew');
SELECT is(error_of(format($$SELECT orchestrator.add_steps(%s, ARRAY[orchestrator.step('later', kind => 'checkpoint')], '1 s')$$, :run)), '22023: a step of kind checkpoint cannot be delayed [Let it need a step that sleeps.]', 'it cannot be delayed');
SELECT orchestrator.cancel(:run);
SELECT enqueued('points') AS run \gset
SELECT claim(5, role => 'context_app');
SET LOCAL orchestrator.max_input_size = '1kB';
SELECT is(error_of(format('SELECT orchestrator.set_context(%s, %L)', :run, to_jsonb(words(1100)))), '54000: input is larger than 1024 bytes [Give the step a template that takes only what it needs, or raise orchestrator.max_input_size.]', 'a context is one row, of bounded size');
SELECT settle_completed(step_of(:run, 'a'), to_jsonb(words(1100)));
RESET orchestrator.max_input_size;
SELECT is((task(step_of(:run, 'save'))).error ->> 'message', format('the context of task %s would be larger than orchestrator.max_input_size', :run), 'also if a step makes it');
SELECT is(state_of(:run), 'failed', 'which is that step''s error');

-- Conversations ----------------------------------------------------------------
SET ROLE context_app;
SELECT orchestrator.define_workflow('talk', ARRAY[
  asks('one', request => '{"system": "be brief", "prompt": "$.input.q", "conversation": true}'),
  asks('two', '{one}', '{"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "and then?"}], "conversation": true}'),
  asks('three', '{two}', '{"prompt": "$.context.messages[0].content"}')]);
SELECT orchestrator.define('own', NULL, 'llm', endpoint => 'gpt', request => '{"model": "m", "prompt": "$.context"}');
RESET ROLE;
SELECT enqueued('talk', '{"q": "who?"}') AS run \gset
SELECT claimed();
SELECT is(told('one'), 'user who?', 'a conversation begins');
SELECT is((SELECT request -> 'body' ? 'conversation' FROM asked), false, 'what it is called is not sent');
SELECT is(answer('one', 'me'), 'completed', 'is answered');
SELECT is(context_of(:run), '{"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]}', 'and kept, without the system''s part');
SELECT claimed();
SELECT is(told('two'), 'user who? | assistant me | user and then?', 'the next step goes on with it');
SELECT is((SELECT request #>> '{body,messages,0,role}' FROM asked WHERE NOT done), 'system', 'after what the system says');
SELECT orchestrator.set_context(:run, context_of(:run) || '{"k": 1}');
SELECT answer('two', 'nothing');
SELECT is(jsonb_array_length(context_of(:run) -> 'messages') || ' ' || (context_of(:run) ->> 'k'), '4 1', 'what else is in the context stays');
SELECT claimed();
SELECT is(told('three'), 'user who?', 'a path sees the context as it is when the call is made');
SELECT answer('three', 'x');
SELECT is(jsonb_array_length(context_of(:run) -> 'messages'), 4, 'and adds nothing to it');
SELECT enqueued('own', '{"context": "mine"}') AS own \gset
SELECT claimed();
SELECT is((SELECT request #>> '{body,messages,0,content}' FROM asked WHERE task_id = :own), 'mine', 'an input that has the name comes first');
SELECT answered(:own, completion('x'));

-- Summaries -----------------------------------------------------------------
SET ROLE context_app;
SELECT orchestrator.define_workflow('long', ARRAY[asks('a'), asks('b')], context => '{"limit": 1000, "endpoint": "claude", "model": "small", "part": "$.context.notes"}');
RESET ROLE;
SELECT enqueued('long', metadata => '{"budget": {"max_tokens": 100000}}') AS run \gset
SELECT jsonb_build_object('notes', words(9000), 'k', 1) AS long \gset
SELECT orchestrator.set_context(:run, :'long');
SELECT is(claimed(), 'summary of a, summary of a, summary of a', 'a context of 2250 tokens is summarised in 3 pieces before it is told');
SELECT is((SELECT string_agg(DISTINCT endpoint || ' ' || (request #>> '{body,model}'), ',') FROM asked WHERE NOT done), 'claude small', 'by the endpoint and model of the workflow');
SELECT ok(max(length(request #>> '{body,messages,0,content,0,text}')) BETWEEN 2500 AND 3000, 'each piece has room for what is asked about it') FROM asked WHERE NOT done;
SELECT is((SELECT string_agg(request #>> '{body,messages,0,content,0,text}', '' ORDER BY task_id) FROM asked WHERE NOT done), words(9000), 'together they are all of it');
SELECT ok((SELECT request #>> '{body,system}' FROM asked WHERE NOT done LIMIT 1) LIKE 'Summarise the text, %in 83 words at most.', 'with an instruction');
SELECT is((SELECT string_agg(name || ' ' || coalesce(state_of(id), ''), ', ' ORDER BY id) FROM orchestrator.task WHERE parent_id = :run), 'a waiting, b scheduled', 'one step waits for the summary, the other for that');
CREATE FUNCTION summed(VARIADIC contents text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_n     int := 0;
  v_task  bigint;
BEGIN
  FOR v_task IN SELECT a.task_id FROM asked a WHERE NOT a.done AND (task(a.task_id)).item IS NOT NULL ORDER BY a.task_id LOOP
    v_n := v_n + 1;
    PERFORM answered(v_task, CASE (SELECT endpoint FROM asked a WHERE a.task_id = v_task LIMIT 1) WHEN 'gpt' THEN completion($1[least(v_n, cardinality($1))])
      ELSE jsonb_build_object('model', 'small', 'content', jsonb_build_array(jsonb_build_object('type', 'text', 'text', $1[least(v_n, cardinality($1))])), 'stop_reason', 'end_turn',
                              'usage', '{"input_tokens": 700, "output_tokens": 70}'::jsonb) END);
  END LOOP;
  RETURN claimed();
END $$;
SELECT is(summed('first', 'second', 'third'), 'summary of a', 'the summaries are summarised');
SELECT is((SELECT request #>> '{body,messages,0,content,0,text}' FROM asked WHERE NOT done), E'first\n\nsecond\n\nthird', 'together');
SELECT is(context_of(:run), :'long'::jsonb, 'until then nothing has changed');
SELECT is(summed('all in all'), 'a', 'then the call is made');
SELECT is(context_of(:run), '{"notes": "all in all", "k": 1}', 'the summary is in the place of what it is of');
SELECT is(told('a')::text, 'user {"k": 1, "notes": "all in all"}', 'and is told');
SELECT ok(state_of(:run, 'b') = 'scheduled' AND (task(step_of(:run, 'b'))).run_at <= orchestrator._now(), 'the other step is due at once');
SELECT orchestrator._promote_due(10);
SELECT is(claimed(), 'b', 'and makes no summary of its own');
SELECT is((SELECT string_agg(name || ' ' || (context = :'long'::jsonb), ', ') FROM orchestrator.checkpoint WHERE task_id = :run), 'before summary 1 true', 'a checkpoint has the original');
SELECT is((detail_of(:run, 'summarized')) - 'characters'::text, '{"step": "a", "levels": 2, "checkpoint": "before summary 1"}', 'which the trace tells');
SELECT is((task(:run)).resources -> 'tokens_in', '2800', 'what summaries use counts');
SELECT is((task(step_of(:run, 'a'))).resources - 'cost'::text, '{"tokens_in": 2800, "tokens_out": 280}', 'for the step, too');
SELECT is((task(step_of(:run, 'a'))).attempt, 1, 'a summary is no attempt of the step');
UPDATE asked SET done = false WHERE task_id IN (step_of(:run, 'a'), step_of(:run, 'b'));
SELECT answer('a', 'A'), answer('b', 'B');
SELECT is(state_of(:run), 'completed', 'the run ends as ever');

-- Back
SELECT is(orchestrator.restore(:run, 'before summary 1') || ' ' || (context_of(:run) = :'long'::jsonb), 'waiting true', 'restore() gives the original back');
SELECT is(claimed(), 'summary of a, summary of a, summary of a', 'which is summarised again for a step that runs again');
SELECT summed('1', '2', '3'), summed('again');
SELECT is((SELECT string_agg(name, ', ' ORDER BY id) FROM orchestrator.checkpoint WHERE task_id = :run), 'before summary 1, before summary 2', 'and kept again');
SELECT orchestrator.cancel(:run);

-- What may go wrong
SELECT enqueued('long') AS run \gset
SELECT orchestrator.set_context(:run, :'long'), claimed();
SELECT is(summed(words(1001)), 'summary of a, summary of a, summary of a', 'a summary that is too long is asked for again');
SELECT ok((SELECT request #>> '{body,messages}' FROM asked WHERE NOT done LIMIT 1) LIKE '%This answer cannot be used: the answer is no summary: it is longer than 1000 characters. Answer again.%', 'and the model told why');
SELECT summed(''), summed('');
SELECT is((task(:run)).error ->> 'message', 'step "a" failed: the context could not be summarised: the answer is no summary: it is empty', 'after as many attempts as the step has it fails');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE root_id = :run AND live), 0::bigint, 'and nothing is left behind');
SELECT is(context_of(:run), :'long'::jsonb, 'the context is as it was');
SELECT orchestrator.retry(:run);
SELECT is(claimed(), 'summary of a, summary of a, summary of a', 'the run can be retried');
SELECT orchestrator.cancel(step_of(:run, 'a'));
SELECT is((SELECT string_agg(DISTINCT state::text, ',') FROM orchestrator.task WHERE root_id = :run AND item IS NOT NULL AND state <> 'failed'), 'cancelled', 'a step that is cancelled takes its summary with it');
SELECT orchestrator.retry(:run), claimed();
SELECT is(orchestrator.pause(:run) || ' ' || (SELECT string_agg(DISTINCT state_of(id), ',') FROM orchestrator.task WHERE root_id = :run AND item IS NOT NULL AND live), 'paused running (paused)', 'pause() of the run reaches it');
SELECT summed('x');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE root_id = :run AND item IS NOT NULL AND state = 'paused'), 1::bigint, 'the next level is held');
SELECT orchestrator.resume(:run);
SELECT is(claimed(), 'summary of a', 'until resume()');
SELECT orchestrator.pause(step_of(:run, 'a')), summed('y');
SELECT is(state_of(:run, 'a') || ' ' || context_of(:run), 'paused (pending) {"k": 1, "notes": "y"}', 'a step that is paused meanwhile goes on after it');
SELECT orchestrator.resume(step_of(:run, 'a'));
SELECT is(claimed(), 'a', 'with its call');
SELECT orchestrator.cancel(:run);
SELECT enqueued('long') AS run \gset
SELECT orchestrator.set_context(:run, :'long'), claimed();
SELECT orchestrator.set_context(:run, '{"notes": "quite another"}');
SELECT summed('1', '2', '3');
SELECT is(summed('of what is gone'), 'a', 'a summary of what is no longer there is dropped');
SELECT is(context_of(:run), '{"notes": "quite another"}', 'and what is there stays');
SELECT orchestrator.cancel(:run);
SELECT enqueued('long', metadata => '{"budget": {"max_tokens": 1500}}') AS run \gset
SELECT orchestrator.set_context(:run, :'long'), claimed();
SELECT summed('1');
SELECT is((task(:run)).error ->> 'message', format('step "a" failed: the context could not be summarised: the budget of task %s is spent: 2310 of 1500 tokens', :run), 'a budget stops summaries');

SET ROLE context_app;
SELECT orchestrator.define_workflow('either', ARRAY[asks('a', on_failure => 'continue'), asks('b', on_failure => 'continue')], context => '{"limit": 1000, "part": "$.context.notes"}');
SELECT orchestrator.define_workflow('inner', ARRAY[asks('a', request => '{"prompt": "$.context"}')]);
SELECT orchestrator.define_workflow('outer', ARRAY[asks('each', each => '$.input.n'), orchestrator.step('sub', definition => 'inner', needs => '{each}')], context => '{"limit": 1000, "part": "$.context.notes"}');
RESET ROLE;
SELECT enqueued('either') AS run \gset
SELECT orchestrator.set_context(:run, :'long'), claimed();
SELECT is((SELECT state || ' ' || progress FROM orchestrator.step_status WHERE run_id = :run AND step = 'a'), 'running 0', 'a step that waits for its summary is under way');
SELECT orchestrator.cancel(step_of(:run, 'a'));
SELECT is(claimed(), NULL, 'who waited for a summary that was cancelled');
SELECT later(11), orchestrator._promote_due(10);
SELECT is(claimed(), 'summary of b, summary of b, summary of b', 'makes one after 10 seconds');
SELECT orchestrator.skip_step(:run, 'b');
SELECT is(state_of(:run) || ' ' || (SELECT count(*) FROM orchestrator.task WHERE root_id = :run AND live), 'completed 0', 'a step that is skipped leaves nothing of its summary');
SELECT enqueued('either') AS run \gset
SELECT orchestrator.checkpoint(:run, 'early', NULL), orchestrator.set_context(:run, :'long'), claimed();
SELECT orchestrator.restore(:run, 'early');
SELECT is(claimed(), 'a, b', 'restore() in the middle of a summary forgets it');
SELECT orchestrator.cancel(:run);
SELECT value_of($$SELECT orchestrator.enqueue('either', deadline => orchestrator._now() + interval '1 hour')$$, 'context_app') AS run \gset
SELECT orchestrator.set_context(:run, :'long'), claimed(), later(3601), orchestrator._expire(10);
SELECT is(state_of(:run) || ' ' || (SELECT string_agg(DISTINCT state::text, ' ') FROM orchestrator.task WHERE root_id = :run), 'failed cancelled', 'a deadline ends summaries, too');
SELECT orchestrator.retry(:run);
SELECT is(claimed(), 'summary of a, summary of a, summary of a', 'which retry() begins anew');
SELECT is(error_of(format('SELECT orchestrator.retry(%s)', (SELECT min(id) FROM orchestrator.task WHERE root_id = :run AND item IS NOT NULL AND state = 'cancelled'))) LIKE '55000: cannot retry task %: it is cancelled [It is a step: use orchestrator.retry(%', true, 'but not a piece by itself');
SELECT orchestrator.cancel(:run);
SELECT enqueued('outer', '{"n": [1, 2, 3]}') AS run \gset
SELECT orchestrator.set_context(:run, :'long'), claimed();
SELECT is((SELECT count(DISTINCT parent_id) || ' ' || count(*) FROM orchestrator.task WHERE root_id = :run AND iteration IS NOT NULL AND item IS NOT NULL), '1 3', 'of the items of a map one has the summary made');
SELECT summed('1', '2', '3'), summed('all'), orchestrator._promote_due(10);
SELECT answered(id, completion('x')) FROM orchestrator.task WHERE root_id = :run AND name = 'each' AND item IS NOT NULL AND state = 'running';
SELECT is(claimed(), 'each, each', 'for the others');
SELECT answered(id, completion('x')) FROM orchestrator.task WHERE root_id = :run AND name = 'each' AND item IS NOT NULL AND state = 'running';
SELECT orchestrator.set_context(:run, :'long');
SELECT is(claimed(), 'summary of a, summary of a, summary of a', 'a workflow that is a step has the limit of that at the top');
SELECT orchestrator.cancel(:run);

-- Conversations that grow too long, and the estimate
SET ROLE context_app;
SELECT orchestrator.define_workflow('chat', ARRAY[asks('one', request => '{"prompt": "$.input.q", "conversation": true}'), asks('two', '{one}', '{"prompt": "go on", "conversation": true}')], context => '{"limit": 1000.0}');
RESET ROLE;
SELECT enqueued('chat', jsonb_build_object('q', words(1500))) AS run \gset
SELECT claimed(), answer('one', words(500));
SELECT is(claimed(), 'two', 'a conversation of 500 tokens is told');
SELECT answered(step_of(:run, 'two'), completion('x', tokens => 1100));
SELECT is((SELECT round(ratio) FROM orchestrator.run_context WHERE task_id = :run), 2::numeric, 'a call that used twice as many corrects the estimate');
SELECT orchestrator.rerun_from(:run, 'two');
SELECT is(claimed(), 'summary of two, summary of two, summary of two', 'then it is summarised, in pieces of half the characters');
SELECT is((SELECT string_agg(DISTINCT endpoint || ' ' || (request #>> '{body,model}'), ',') FROM asked WHERE NOT done), 'gpt m', 'by the step''s own endpoint and model');
SELECT orchestrator.set_context(:run, jsonb_set(context_of(:run), '{messages}', (context_of(:run) -> 'messages') || '{"role": "user", "content": "meanwhile"}'));
SELECT summed('p', 'q');
SELECT is(summed('it was said'), 'two', 'and the call is made');
SELECT is(told('two'), 'user What was done so far: it was said | user meanwhile | user go on', 'what was added meanwhile stays');
SELECT orchestrator.cancel(:run);

-- Kind summarize
SET ROLE context_app;
SELECT orchestrator.define_workflow('sums', ARRAY[
  orchestrator.step('part', kind => 'summarize', endpoint => 'gpt', request => '{"model": "$.input.model", "part": "$.context.a.b", "temperature": 0}'),
  orchestrator.step('whole', kind => 'summarize', endpoint => 'gpt', needs => '{part}', request => '{"model": "m"}'),
  orchestrator.step('nothing', kind => 'summarize', endpoint => 'gpt', needs => '{whole}', request => '{"model": "m", "part": "$.context.none"}')]);
RESET ROLE;
SELECT enqueued('sums', '{"model": "$x"}') AS run \gset
SELECT orchestrator.set_context(:run, '{"a": {"b": ["x", "y"], "c": 1}}');
SELECT is(claimed(), 'summary of part', 'a step of kind summarize is a call');
SELECT is((SELECT request #>> '{body,model}' || ' ' || (request #>> '{body,temperature}') || ' ' || (request #>> '{body,messages,1,content}') FROM asked WHERE NOT done), '$x 0 ["x", "y"]', 'about a part of the context');
SELECT is(summed('x and y'), 'summary of whole', 'is done when it is answered');
SELECT is((task(step_of(:run, 'part'))).output, '{"content": "x and y", "checkpoint": "before summary 1"}', 'gives the summary');
SELECT is((task(step_of(:run, 'part'))).resources -> 'tokens_in', '10', 'with what that used');
SELECT is(context_of(:run), '{"a": {"b": "x and y", "c": 1}}', 'and puts it there');
SELECT summed('all');
SELECT is(context_of(:run), '{"summary": "all"}', 'or in the place of all');
SELECT is(state_of(:run, 'nothing') || (task(step_of(:run, 'nothing'))).output, 'completed{"content": null}', 'of nothing there is none to make');
SELECT is((task(:run)).state::text, 'completed', 'its run ends');
SELECT is(orchestrator.restore(:run, 'before summary 1') || ' ' || context_of(:run), 'waiting {"a": {"b": ["x", "y"], "c": 1}}', 'restore() gives back what it was of');
SELECT orchestrator.cancel(:run);

-- With tools
SET ROLE context_app;
SELECT orchestrator.define('look', 'SELECT 1', 'sql'), orchestrator.define_tool('look');
SELECT orchestrator.define_workflow('clerk', ARRAY[asks('ask', request => '{"prompt": "where?", "conversation": true, "tools": ["look"]}')], context => '{"limit": 1000}');
RESET ROLE;
SELECT enqueued('clerk') AS run \gset
SELECT orchestrator.set_context(:run, jsonb_build_object('messages', jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'before'))));
SELECT claimed();
SELECT answered(step_of(:run, 'ask'), jsonb_set(completion(NULL, tokens => 100), '{choices,0,message,tool_calls}', '[{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]'));
SELECT orchestrator.set_context(:run, jsonb_set(context_of(:run), '{messages,0,content}', to_jsonb(words(5000)))), claim(5, role => 'context_app');
SELECT settle_completed(step_of(step_of(:run, 'ask'), 'call 1.1'), '"here"');
SELECT ok(claimed() ~ '^summary of round 2(, summary of round 2)+$', 'a round with tools is told a summary, too');
SELECT summed('x', 'y');
SELECT is(summed('z'), 'round 2', 'and then asked');
SELECT is((SELECT string_agg(m ->> 'role', ' ' ORDER BY n) || ' ' || (request #>> '{body,messages,0,content}') FROM asked, jsonb_array_elements(request #> '{body,messages}') WITH ORDINALITY e(m, n) WHERE NOT done GROUP BY request), 'user user assistant tool What was done so far: z', 'what it called comes last');
SELECT answer('round 2', 'there');
SELECT is(state_of(:run), 'completed', 'its answer is that of the step');
SELECT is(context_of(:run) -> 'messages' #>> '{1,content}' || ' ' || (context_of(:run) -> 'messages' #>> '{2,content}') || jsonb_array_length(context_of(:run) -> 'messages'), 'where? there3', 'and the conversation has it, without the calls');

-- An agent
SELECT value_of($$SELECT orchestrator.orchestrate('find it', '{}', 'gpt', 'm', context_limit => 1000)$$, 'context_app') AS run \gset
SELECT claimed();
SELECT answer('plan', jsonb_build_object('decision', 'continue', 'reason', 'r', 'answer', '', 'steps',
  jsonb_build_array(jsonb_build_object('name', 's', 'description', words(6000), 'tool', '', 'arguments', '{}'::jsonb, 'needs', '[]'::jsonb)))::text);
SELECT claimed(), answer('s', 'seen');
SELECT is(claimed(), 'summary of evaluate 1, summary of evaluate 1, summary of evaluate 1', 'what an agent said is summarised the same way');
SELECT summed('a', 'b', 'c');
SELECT is(summed('it thought'), 'evaluate 1', 'before its next decision');
SELECT is(told('evaluate 1'), E'user Goal: find it | user What was done so far: it thought | user What the steps gave:\n- s: seen\nDecide how to go on.', 'but for its goal');
SELECT is((task(:run)).remaining, 1, 'and no step was added for it');

SELECT * FROM finish();
ROLLBACK;
