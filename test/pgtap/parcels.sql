-- Calls that go together in one request, by the courier's SQL functions: which
-- do, how an answer is shared out, and what define() refuses.
\ir lib/setup.psql
SELECT plan(33);

CREATE ROLE parcels_app LOGIN;
SELECT orchestrator.grant_usage('parcels_app');
CREATE SERVER gpt FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://gpt.example/v1', provider 'openai', timeout '20 s');
GRANT USAGE ON FOREIGN SERVER gpt TO parcels_app;

-- Definitions
CREATE FUNCTION refused(more text, request jsonb DEFAULT '{"model": "m", "input": "$.text"}', kind text DEFAULT 'embedding') RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.define(''x'', NULL, %L, endpoint => ''gpt'', request => %L, %s)', $3, $2, $1), 'parcels_app');
$$;
SELECT is(refused('batch_size => 2', '{"model": "m", "prompt": "x"}', 'llm'),
  '22023: batch_size with kind "llm" [Only a function can take many inputs, one with an argument of type jsonb[]; and a call of kind embedding.]', 'of other calls none takes many');
SELECT is(refused('batch_size => 2', '{"model": "$.model", "input": "$.text"}'),
  '22023: batch_size with a path elsewhere than in the input of the request [Calls that go together differ in their input only.]', 'nor one whose model is not known');
SELECT is(refused('batch_size => 2', '{"model": "m", "options": {"user": "$$x"}, "input": "$.text"}'), 'no error', 'a $ that is no path is none');
SELECT is(refused('batch_size => 201'), '22023: batch_size must be between 1 and 200', 'how many');
SELECT is(refused('batch_wait => ''1 s'''), '22023: batch_wait without batch_size [Give the number of tasks to wait for.]', 'a wait for nothing');

SET ROLE parcels_app;
SELECT orchestrator.define_queue('q');
SELECT orchestrator.define('three', NULL, 'embedding', 'q', endpoint => 'gpt', batch_size => 3, request => '{"model": "m", "input": "$.text"}'),
       orchestrator.define('wait', NULL, 'embedding', 'q', endpoint => 'gpt', batch_size => 3, batch_wait => '30 s', request => '{"model": "m", "input": "$.text"}'),
       orchestrator.define('one', NULL, 'embedding', 'q', endpoint => 'gpt', request => '{"model": "m", "input": "$.text"}'),
       orchestrator.define('brief', NULL, 'embedding', 'q', endpoint => 'gpt', batch_size => 3, timeout => '5 s', request => '{"model": "m", "input": "$.text"}');
RESET ROLE;

-- A task of ours, pending in its lane
CREATE FUNCTION add_call(name text, text text DEFAULT 'a', left_s int DEFAULT NULL) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_task bigint;
BEGIN
  SET LOCAL ROLE parcels_app;
  v_task := orchestrator.enqueue(name, jsonb_build_object('text', $2), deadline => orchestrator._now() + make_interval(secs => $3));
  RESET ROLE;
  RETURN v_task;
END $$;
-- Claim as the courier; the definitions claimed, by parcel, each parcel in brackets.
CREATE FUNCTION claimed(max_rows int DEFAULT 100) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_all text;
BEGIN
  PERFORM orchestrator._claim_call_rows(4711, 0, 0, 1);   -- a session remembers where its last lane went on
  SELECT string_agg(CASE WHEN parcel = 0 THEN names ELSE '[' || names || ']' END, ' ' ORDER BY first) INTO v_all FROM (
    SELECT c.parcel, string_agg(d.name, ' ' ORDER BY c.task_id) AS names, min(c.task_id) AS first
    FROM courier_claims($1) c JOIN orchestrator.task_live l ON l.id = c.task_id JOIN orchestrator.definition d ON d.id = l.definition
    GROUP BY c.parcel, CASE WHEN c.parcel = 0 THEN c.task_id END) p;
  RETURN v_all;
END $$;
CREATE FUNCTION left_over() RETURNS bigint LANGUAGE sql AS $$SELECT count(*) FROM orchestrator.task_live WHERE state = 'pending'$$;
CREATE FUNCTION clear() RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM orchestrator.cancel(id) FROM orchestrator.task_live; END$$;

-- What goes together
SELECT add_call('three') FROM generate_series(1, 7);
SELECT is(claimed(), '[three three three] [three three three] [three]', 'calls of a definition go together, so many at most');
SELECT clear(), add_call('three'), add_call('one'), add_call('three'), add_call('one'), add_call('three');
SELECT is(claimed(), '[three three three] one one', 'also past others');
SELECT clear(), add_call('three'), add_call('brief'), add_call('three'), add_call('brief');
SELECT is(claimed(), '[three three] [brief brief]', 'those of each definition by themselves');
SELECT clear();
SELECT add_call('three') FROM generate_series(1, 8);
SELECT is(claimed(4), '[three three three] [three three three]', 'a claim fills the parcel that it has begun');
SELECT is(left_over(), 2::bigint, 'and leaves the others');
SELECT is(claimed(1), '[three three]', 'to the next');
SELECT clear();
SELECT add_call('three', repeat('x', 100000)) FROM generate_series(1, 4);
SELECT is(claimed(), '[three three] [three three]', 'large inputs make smaller parcels');
SELECT clear(), add_call('three'), add_call('three', left_s => 10), add_call('three', left_s => 60), add_call('brief', left_s => 10), add_call('brief');
SELECT is(claimed(), '[three three] three [brief brief]', 'a deadline within the time of the call goes alone');

-- What waits
SELECT clear(), add_call('wait'), add_call('wait');
SELECT is(claimed(), NULL, 'two of three wait');
SELECT add_call('one');
SELECT is(claimed(), 'one', 'others are not held up');
SELECT add_call('wait'), add_call('wait');
SELECT is(claimed(), '[wait wait wait]', 'three do not wait');
SELECT is(left_over(), 1::bigint, 'the next one does');
SELECT later(31);
SELECT add_call('wait');
SELECT is(claimed(), '[wait wait]', 'one that has waited long enough takes along who is there');
SELECT clear(), add_call('wait', repeat('x', 150000)), add_call('wait', repeat('x', 150000));
SELECT is(claimed(), '[wait]', 'so much that no more has room is enough');
SELECT add_call('wait', left_s => 10);
SELECT is(claimed(), 'wait', 'a deadline does not wait');
SELECT clear();

-- What comes back
SELECT '{"body": {"model": "m", "data": [{"index": 3, "embedding": [4]}, {"index": 0, "embedding": [1]}, {"index": 2, "embedding": [3]}, {"index": 1, "embedding": [2]}], "usage": {"prompt_tokens": 10}}}' AS answer \gset
CREATE FUNCTION shared(answer jsonb, texts int[], weights int[], provider text DEFAULT 'openai') RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(format('%s %s %s', s -> 'calls', s #> '{body,usage,prompt_tokens}', e), '; ' ORDER BY n)
  FROM unnest(orchestrator._share_answer($4, $1, $2, $3)) WITH ORDINALITY x(s, n), LATERAL (SELECT orchestrator._read_embedding($4, s -> 'body', true)) y(r), LATERAL (SELECT r -> 'embedding') z(e);
$$;
SELECT is(shared(:'answer', '{1,1,1,1}', '{1,1,1,1}'), '1 2 [1]; 0 3 [2]; 0 2 [3]; 0 3 [4]', 'each gets its own, and the sum of the tokens is right');
SELECT is(shared(:'answer', '{1,2,1}', '{8,1,1}'), '1 8 [1]; 0 1 [2]; 0 1 [4]', 'by their sizes');
SELECT is(shared(:'answer', '{1,1,1,1}', '{0,1,0,1}'), '0 0 [1]; 1 5 [2]; 0 0 [3]; 0 5 [4]', 'who has left pays nothing');
SELECT is((SELECT sum((s #>> '{body,usage,prompt_tokens}')::int) FROM unnest(orchestrator._share_answer('openai', jsonb_set(:'answer', '{body,usage,prompt_tokens}', '999999'), '{1,1,1,1}', '{3,7,11,13}')) s), 999999::bigint, 'whatever the numbers');
SELECT is((SELECT jsonb_path_query_array(s -> 'body' -> 'data', '$[*].embedding') FROM unnest(orchestrator._share_answer('openai', :'answer', '{1,2,1}', '{1,1,1}')) WITH ORDINALITY x(s, n) WHERE n = 2), '[[2], [3]]', 'a call with several texts has several');
SELECT is(shared('{"body": {"model": "m", "embeddings": [[1], [2]], "prompt_eval_count": 7}}', '{1,1}', '{2,5}', 'ollama'), '1 2 [1]; 0 5 [2]', 'Ollama''s form');
SELECT is(shared('{"body": {"model": "m", "embeddings": [[1], [2]]}}', '{1,1}', '{1,1}', 'ollama'), '1 0 [1]; 0 0 [2]', 'without tokens');
SELECT ok(orchestrator._share_answer('openai', a::jsonb, '{1,1}', '{1,1}') IS NULL, format('not so many vectors: %s', a)) FROM (VALUES
  ('{"body": {"data": [{"index": 0, "embedding": [1]}]}}'), ('{"body": {"data": "x"}}'), ('{"body": null}'), ('{"body": {"data": [{"index": "x"}, {"index": 99999999999}]}}')) x(a);
SELECT is(orchestrator._model_cost('m', 3, 0), 0::numeric, 'no price, no cost');
SELECT orchestrator.set_price('m', 0.0213, 1);
SELECT is(orchestrator._model_cost('m', 3, 1), 0.0000010639, 'a cost is not rounded, so that the sums are right');

SELECT * FROM finish();
ROLLBACK;
