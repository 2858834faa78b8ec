-- Language models: calls of kind llm and embedding.
--
-- A request is said once, in the form of OpenAI's chat completions, whatever the
-- provider of the endpoint: _model_call() makes the provider's own call of it,
-- _read_completion() makes one form of the answers. What a call used is in the
-- resources of its task, summed in those of the task at the top, and by the hour
-- in model_usage, which budgets are held against before each call.
--
--   _make_call -> _model_document -> _model_call -> the courier
--   the courier -> _settle_answer -> _read_model -> _count_usage

CREATE FUNCTION orchestrator.set_price(model text, per_million_in numeric, per_million_out numeric) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.set_price(text, numeric, numeric) IS
  'What a million tokens cost, read and written, of models whose name begins so; the longest name that fits counts. Nulls: forget it';

CREATE FUNCTION orchestrator.set_budget(role text, max_tokens bigint DEFAULT NULL, max_cost numeric DEFAULT NULL, period interval DEFAULT '1 day') RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.set_budget(text, bigint, numeric, interval) IS
  'What a role may spend on models within a period, in whole hours: then its calls fail with SQLSTATE OR014. Role public: every role that has none of its own. Without limits: forget it';

CREATE FUNCTION orchestrator._set_price(caller oid, model text, per_million_in numeric, per_million_out numeric) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require_admin($1);
  PERFORM orchestrator._require(coalesce($2, '') <> '', 'model must not be empty');
  PERFORM orchestrator._require($3 >= 0 AND $4 >= 0, 'a price must not be negative');
  PERFORM orchestrator._require(($3 IS NULL) = ($4 IS NULL), 'per_million_in and per_million_out belong together');
  DELETE FROM orchestrator.model_price p WHERE p.model = $2;
  IF $3 IS NOT NULL THEN
    INSERT INTO orchestrator.model_price (model, per_million_in, per_million_out) VALUES ($2, $3, $4);
  END IF;
END
$$;

CREATE FUNCTION orchestrator._set_budget(caller oid, role text, max_tokens bigint, max_cost numeric, period interval) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int;
BEGIN
  PERFORM orchestrator._require_admin($1);
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._require($3 > 0, 'max_tokens must be positive', 'Leave it out for any number.');
  PERFORM orchestrator._require($4 > 0, 'max_cost must be positive', 'Leave it out for any sum.');
  PERFORM orchestrator._require($5 BETWEEN interval '1 hour' AND interval '400 days', 'period must be between an hour and 400 days');
  v_owner := orchestrator._grantee($2);
  DELETE FROM orchestrator.model_budget b WHERE b.owner = v_owner;
  IF num_nonnulls($3, $4) > 0 THEN
    INSERT INTO orchestrator.model_budget (owner, max_tokens, max_cost, period) VALUES (v_owner, $3, $4, coalesce($5, '1 day'));
  END IF;
END
$$;

-- Definitions ----------------------------------------------------------------

-- The request of a call of a model, checked. A string that begins with $ is
-- known only when the call is made.
CREATE FUNCTION orchestrator._check_model_request(kind text, request jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
  v_known text[] := CASE $1 WHEN 'llm' THEN '{model,messages,system,prompt,temperature,top_p,max_tokens,stop,seed,tools,tool_choice,max_tool_rounds,schema,stream,options,conversation}'
                            WHEN 'summarize' THEN '{model,part,limit,temperature,top_p,max_tokens,seed,options}'
                            ELSE '{model,input,dimensions,options}' END;
  v_bad   text;
BEGIN
  IF $2 = '{"agent": true}' THEN
    RETURN;   -- of a decision (chapter 63)
  END IF;
  PERFORM orchestrator._require_keys('request', $2, v_known, format('The keys of a request of kind %s are %s.', $1, array_to_string(v_known, ', ')));
  PERFORM orchestrator._require(jsonb_typeof($2 -> 'model') IS NOT DISTINCT FROM 'string', 'request, key "model": is not a string', 'Give the name of a model.');
  IF $1 = 'llm' THEN
    PERFORM orchestrator._require($2 ? 'messages' <> $2 ? 'prompt', 'request: has both messages and prompt, or neither', 'Give messages, or a prompt and perhaps system.');
    PERFORM orchestrator._require(jsonb_typeof($2 -> 'messages') IN ('array', 'string'), 'request, key "messages": is not an array');
    PERFORM orchestrator._require(NOT $2 ? 'max_tool_rounds' OR coalesce($2 @? 'strict $.max_tool_rounds ? (@ >= 1 && @ <= 50 && @ % 1 == 0)', false),
                                  'request, key "max_tool_rounds": is no integer between 1 and 50');
    PERFORM orchestrator._require(jsonb_typeof($2 -> 'stream') = 'boolean', 'request, key "stream": is neither true nor false');
    v_bad := CASE WHEN jsonb_typeof($2 -> 'schema') IN ('object', 'boolean') THEN orchestrator._schema_refusal($2 -> 'schema') END;
    PERFORM orchestrator._require(v_bad IS NULL, 'request, key "schema": ' || v_bad);
    PERFORM orchestrator._require(jsonb_typeof($2 -> 'conversation') = 'boolean', 'request, key "conversation": is neither true nor false');
  ELSIF $1 = 'summarize' THEN
    PERFORM orchestrator._check_summary('request', $2);
  ELSE
    PERFORM orchestrator._require($2 ? 'input', 'request: has no input', 'Give a text, an array of texts, or a path to one.');
  END IF;
  PERFORM orchestrator._check_templates($2 - 'schema'::text);
END
$body$;

-- Answers --------------------------------------------------------------------

-- The document of a call, after its templates: with messages, however they were
-- given; and after an answer that did not fit, with that and why.
CREATE FUNCTION orchestrator._model_document(d orchestrator.definition, t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_doc jsonb := CASE WHEN d.request ? 'agent' THEN orchestrator._agent_document(t)
                      ELSE orchestrator._render(d.request - '{schema,conversation}'::text[], orchestrator._model_input(d, t)) || jsonb_strip_nulls(jsonb_build_object('schema', d.request -> 'schema')) END;
BEGIN
  IF v_doc ? 'prompt' THEN
    v_doc := v_doc - '{prompt,system}'::text[] || jsonb_build_object('messages',
      CASE WHEN v_doc ? 'system' THEN jsonb_build_array(jsonb_build_object('role', 'system', 'content', orchestrator._as_text(v_doc -> 'system'))) ELSE '[]' END
      || jsonb_build_object('role', 'user', 'content', orchestrator._as_text(v_doc -> 'prompt')));
  ELSIF v_doc ? 'system' THEN
    v_doc := v_doc - 'system'::text || jsonb_build_object('messages',
      jsonb_build_array(jsonb_build_object('role', 'system', 'content', orchestrator._as_text(v_doc -> 'system'))) || (v_doc -> 'messages'));
  END IF;
  IF d.request -> 'conversation' = 'true' THEN
    v_doc := orchestrator._with_conversation(v_doc, (orchestrator._run_context(t)).value);
  END IF;
  IF orchestrator._named_tools(d.request) IS NOT NULL THEN
    v_doc := orchestrator._with_tools(v_doc, d, t);
  END IF;
  IF d.kind = 'llm' AND t.error ->> 'sqlstate' = 'OR013' AND t.error ? 'answer' THEN
    v_doc := jsonb_set(v_doc, '{messages}', v_doc -> 'messages'
      || jsonb_build_object('role', 'assistant', 'content', t.error ->> 'answer')
      || jsonb_build_object('role', 'user', 'content', format('This answer cannot be used: %s. Answer again%s.', t.error ->> 'message', CASE WHEN v_doc ? 'schema' THEN ', with JSON that fits' END)));
  END IF;
  IF d.kind = 'llm' THEN
    PERFORM orchestrator._check_messages(v_doc -> 'messages');
  END IF;
  RETURN v_doc;
END
$$;

-- What the paths of a request are about: the input of the task, and the context
-- of its run where that is asked for.
CREATE FUNCTION orchestrator._model_input(d orchestrator.definition, t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE WHEN jsonb_typeof(t.input) = 'object' AND orchestrator._uses_context(d, t)
    THEN jsonb_build_object('context', coalesce((orchestrator._run_context(t)).value, 'null')) || t.input ELSE t.input END;
END
$$;

-- A string as it is, anything else as JSON.
CREATE FUNCTION orchestrator._as_text(value jsonb) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE jsonb_typeof($1) WHEN 'string' THEN $1 #>> '{}' ELSE $1::text END;
END
$$;

CREATE FUNCTION orchestrator._check_messages(messages jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m jsonb;
BEGIN
  PERFORM orchestrator._require(jsonb_typeof($1) = 'array', 'messages is not an array');
  FOR m IN SELECT e FROM jsonb_array_elements($1) e LOOP
    PERFORM orchestrator._require(coalesce(m ->> 'role' IN ('system', 'developer', 'user', 'assistant', 'tool'), false), 'a message has no role',
                                  'Roles are system, developer, user, assistant and tool.');
    PERFORM orchestrator._require(jsonb_typeof(m -> 'content') IN ('string', 'array', 'null') OR m ? 'tool_calls', 'the content of a message is no text');
  END LOOP;
END
$$;

-- The call of a provider for a document: path, headers, body. With stream the
-- answer is asked for in parts, which the courier puts together; its value is
-- whether llm_stream() shows them: what has to fit a schema is shown when it does.
CREATE FUNCTION orchestrator._model_call(kind text, provider text, doc jsonb) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_options jsonb := coalesce($3 -> 'options', '{}');
BEGIN
  RETURN CASE $1 || ' ' || $2
    WHEN 'llm openai' THEN jsonb_build_object('path', '/chat/completions', 'body', orchestrator._openai_body($3) || v_options)
    WHEN 'llm anthropic' THEN jsonb_build_object('path', '/messages', 'headers', '{"anthropic-version": "2023-06-01"}'::jsonb,
                                                 'body', orchestrator._anthropic_body($3) || v_options)
    WHEN 'llm ollama' THEN jsonb_build_object('path', '/api/chat', 'body', orchestrator._ollama_body($3) || v_options)
    WHEN 'embedding openai' THEN jsonb_build_object('path', '/embeddings', 'body', $3 - 'options'::text || v_options)
    WHEN 'embedding ollama' THEN jsonb_build_object('path', '/api/embed', 'body', $3 - 'options'::text || v_options)
  END || '{"method": "POST"}' || CASE WHEN $3 -> 'stream' = 'true' THEN jsonb_build_object('stream', NOT $3 ? 'schema') ELSE '{}' END;
END
$$;

CREATE FUNCTION orchestrator._openai_body(doc jsonb) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN $1 - '{schema,options,stream}'::text[]
    || CASE WHEN $1 -> 'stream' = 'true' THEN '{"stream": true, "stream_options": {"include_usage": true}}' ELSE '{}' END::jsonb || CASE WHEN $1 ? 'schema' THEN
    jsonb_build_object('response_format', jsonb_build_object('type', 'json_schema', 'json_schema', jsonb_build_object('name', 'answer', 'schema', $1 -> 'schema')))
    ELSE '{}' END;
END
$$;

-- A schema is the input of a tool that must be called.
CREATE FUNCTION orchestrator._anthropic_body(doc jsonb) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_system text := (SELECT string_agg(orchestrator._content_text(m -> 'content'), E'\n\n' ORDER BY n)
                    FROM jsonb_array_elements($1 -> 'messages') WITH ORDINALITY e(m, n) WHERE m ->> 'role' IN ('system', 'developer'));
  v_tools  jsonb := (SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object('name', f ->> 'name', 'description', f ->> 'description'))
                                      || jsonb_build_object('input_schema', coalesce(f -> 'parameters', '{"type": "object"}')) ORDER BY n)
                     FROM jsonb_array_elements($1 -> 'tools') WITH ORDINALITY e(tool, n) CROSS JOIN LATERAL (SELECT tool -> 'function') x(f));
  v_choice jsonb := CASE jsonb_typeof($1 -> 'tool_choice')
    WHEN 'string' THEN jsonb_build_object('type', CASE $1 ->> 'tool_choice' WHEN 'required' THEN 'any' ELSE $1 ->> 'tool_choice' END)
    WHEN 'object' THEN jsonb_build_object('type', 'tool', 'name', $1 -> 'tool_choice' -> 'function' ->> 'name') END;
BEGIN
  IF $1 ? 'schema' THEN
    v_choice := CASE WHEN v_tools IS NULL THEN '{"type": "tool", "name": "answer"}' ELSE '{"type": "any"}' END;
    v_tools := coalesce(v_tools, '[]') || jsonb_build_object('name', 'answer', 'description', 'Gives the answer.', 'input_schema', $1 -> 'schema');
  END IF;
  RETURN jsonb_build_object('model', $1 ->> 'model', 'max_tokens', coalesce($1 -> 'max_tokens', '4096'), 'messages', orchestrator._anthropic_messages($1 -> 'messages'))
    || jsonb_strip_nulls(jsonb_build_object('system', v_system, 'temperature', $1 -> 'temperature', 'top_p', $1 -> 'top_p', 'tool_choice', v_choice,
         'stop_sequences', CASE jsonb_typeof($1 -> 'stop') WHEN 'string' THEN jsonb_build_array($1 -> 'stop') ELSE $1 -> 'stop' END))
    || CASE WHEN v_tools IS NULL THEN '{}' ELSE jsonb_build_object('tools', v_tools) END
    || CASE WHEN $1 -> 'stream' = 'true' THEN '{"stream": true}' ELSE '{}' END::jsonb;
END
$$;

-- The text of a content, of parts or whole.
CREATE FUNCTION orchestrator._content_text(content jsonb) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE jsonb_typeof($1)
    WHEN 'array' THEN (SELECT string_agg(p ->> 'text', '' ORDER BY n) FROM jsonb_array_elements($1) WITH ORDINALITY e(p, n) WHERE p ->> 'type' = 'text')
    ELSE $1 #>> '{}' END;
END
$$;

-- Calls are blocks of the assistant, results blocks of the user. What follows
-- one another of a role is one message.
CREATE FUNCTION orchestrator._anthropic_messages(messages jsonb) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_all    jsonb := '[]';
  v_role   text;
  v_blocks jsonb;
  m        jsonb;
BEGIN
  FOR m IN SELECT e.value FROM jsonb_array_elements($1) WITH ORDINALITY e(value, n) WHERE e.value ->> 'role' NOT IN ('system', 'developer') ORDER BY e.n LOOP
    v_role := CASE m ->> 'role' WHEN 'assistant' THEN 'assistant' ELSE 'user' END;
    IF m ->> 'role' = 'tool' THEN
      v_blocks := jsonb_build_array(jsonb_build_object('type', 'tool_result', 'tool_use_id', m ->> 'tool_call_id', 'content', orchestrator._content_text(m -> 'content')));
    ELSE
      v_blocks := CASE WHEN coalesce(orchestrator._content_text(m -> 'content'), '') = '' THEN '[]'
                       ELSE jsonb_build_array(jsonb_build_object('type', 'text', 'text', orchestrator._content_text(m -> 'content'))) END
        || coalesce((SELECT jsonb_agg(jsonb_build_object('type', 'tool_use', 'id', c ->> 'id', 'name', c -> 'function' ->> 'name',
                                                         'input', orchestrator._call_arguments(c)) ORDER BY n)
                     FROM jsonb_array_elements(m -> 'tool_calls') WITH ORDINALITY e(c, n)), '[]');
    END IF;
    IF v_all -> -1 ->> 'role' = v_role THEN
      v_all := jsonb_set(v_all, '{-1,content}', (v_all -> -1 -> 'content') || v_blocks);
    ELSE
      v_all := v_all || jsonb_build_object('role', v_role, 'content', v_blocks);
    END IF;
  END LOOP;
  RETURN v_all;
END
$$;

-- The arguments of a tool call: an object, given as one or as text.
CREATE FUNCTION orchestrator._call_arguments(call jsonb) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE jsonb_typeof($1 -> 'function' -> 'arguments') WHEN 'string' THEN coalesce(nullif($1 -> 'function' ->> 'arguments', ''), '{}')::jsonb
                                                            ELSE coalesce($1 -> 'function' -> 'arguments', '{}') END;
END
$$;

-- A format is not told to the model, and keeps it from calling tools.
CREATE FUNCTION orchestrator._ollama_body(doc jsonb) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_messages jsonb := (SELECT jsonb_agg(jsonb_build_object('role', CASE m ->> 'role' WHEN 'developer' THEN 'system' ELSE m ->> 'role' END,
                                                           'content', coalesce(orchestrator._content_text(m -> 'content'), ''))
      || CASE WHEN m ->> 'role' = 'tool' AND m ? 'name' THEN jsonb_build_object('tool_name', m -> 'name') ELSE '{}' END
      || CASE WHEN m ? 'tool_calls' THEN jsonb_build_object('tool_calls',
           (SELECT jsonb_agg(jsonb_build_object('function', jsonb_build_object('name', c -> 'function' ->> 'name', 'arguments', orchestrator._call_arguments(c))))
            FROM jsonb_array_elements(m -> 'tool_calls') c)) ELSE '{}' END ORDER BY n)
    FROM jsonb_array_elements($1 -> 'messages') WITH ORDINALITY e(m, n));
  v_schema   jsonb := CASE WHEN $1 ? 'schema' THEN jsonb_build_array(jsonb_build_object('role', 'system', 'content',
                             CASE WHEN $1 ? 'tools' THEN 'When you call no tool, answer' ELSE 'Answer' END || ' with JSON that fits this schema: ' || ($1 ->> 'schema'))) ELSE '[]' END;
  v_options  jsonb := jsonb_strip_nulls(jsonb_build_object('temperature', $1 -> 'temperature', 'top_p', $1 -> 'top_p', 'num_predict', $1 -> 'max_tokens',
                                                           'seed', $1 -> 'seed', 'stop', $1 -> 'stop'));
BEGIN
  RETURN jsonb_build_object('model', $1 ->> 'model', 'messages', v_schema || v_messages, 'stream', coalesce($1 -> 'stream', 'false'))
    || CASE WHEN v_options = '{}' THEN '{}' ELSE jsonb_build_object('options', v_options) END
    || CASE WHEN $1 ? 'tools' THEN jsonb_build_object('tools', $1 -> 'tools') ELSE '{}' END
    || CASE WHEN $1 ? 'schema' AND NOT $1 ? 'tools' THEN jsonb_build_object('format', $1 -> 'schema') ELSE '{}' END;
END
$$;

-- What a provider answered, in one form: content (text, or null), tool_calls,
-- finish_reason, model, tokens_in, tokens_out. Null: it is no such answer.
CREATE FUNCTION orchestrator._read_completion(provider text, body jsonb) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m       jsonb;
  v_calls jsonb;
BEGIN
  CASE $1
    WHEN 'openai' THEN
      m := $2 #> '{choices,0,message}';
      RETURN CASE WHEN jsonb_typeof(m) = 'object' THEN orchestrator._completion(
        coalesce(m ->> 'content', m ->> 'refusal'), m -> 'tool_calls',
        coalesce($2 #>> '{choices,0,finish_reason}', 'stop'), $2, $2 #> '{usage,prompt_tokens}', $2 #> '{usage,completion_tokens}') END;
    WHEN 'ollama' THEN
      m := $2 -> 'message';
      RETURN CASE WHEN jsonb_typeof(m) = 'object' THEN orchestrator._completion(
        m ->> 'content', m -> 'tool_calls', CASE WHEN m ? 'tool_calls' THEN 'tool_calls' ELSE coalesce($2 ->> 'done_reason', 'stop') END,
        $2, $2 -> 'prompt_eval_count', $2 -> 'eval_count') END;
    WHEN 'anthropic' THEN
      IF jsonb_typeof($2 -> 'content') IS DISTINCT FROM 'array' THEN
        RETURN NULL;
      END IF;
      v_calls := (SELECT jsonb_agg(jsonb_build_object('id', b ->> 'id', 'function', jsonb_build_object('name', b ->> 'name', 'arguments', b -> 'input')) ORDER BY n)
                  FROM jsonb_array_elements($2 -> 'content') WITH ORDINALITY e(b, n) WHERE b ->> 'type' = 'tool_use');
      RETURN orchestrator._completion(orchestrator._content_text($2 -> 'content'), v_calls,
        CASE $2 ->> 'stop_reason' WHEN 'end_turn' THEN 'stop' WHEN 'stop_sequence' THEN 'stop' WHEN 'max_tokens' THEN 'length'
                                  WHEN 'tool_use' THEN 'tool_calls' ELSE $2 ->> 'stop_reason' END,
        $2, $2 #> '{usage,input_tokens}', $2 #> '{usage,output_tokens}');
  END CASE;
END
$$;

CREATE FUNCTION orchestrator._completion(content text, calls jsonb, finish_reason text, body jsonb, tokens_in jsonb, tokens_out jsonb) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_calls jsonb := (SELECT jsonb_agg(jsonb_build_object('id', coalesce(c ->> 'id', 'call_' || n), 'name', c -> 'function' ->> 'name',
                                                        'arguments', orchestrator._call_arguments(c)) ORDER BY n)
                    FROM jsonb_array_elements(CASE jsonb_typeof($2) WHEN 'array' THEN $2 ELSE '[]' END) WITH ORDINALITY e(c, n));
BEGIN
  RETURN jsonb_build_object('content', $1, 'finish_reason', $3, 'model', $4 -> 'model', 'tokens_in', coalesce($5, '0'), 'tokens_out', coalesce($6, '0'))
    || CASE WHEN v_calls IS NULL THEN '{}' ELSE jsonb_build_object('tool_calls', v_calls) END;
END
$$;

CREATE FUNCTION orchestrator._read_embedding(provider text, body jsonb, single boolean) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_all jsonb := CASE $1 WHEN 'openai' THEN (SELECT jsonb_agg(e -> 'embedding' ORDER BY (e ->> 'index')::int) FROM jsonb_array_elements($2 -> 'data') e)
                         ELSE $2 -> 'embeddings' END;
BEGIN
  IF jsonb_typeof(v_all -> 0) IS DISTINCT FROM 'array' THEN
    RETURN NULL;
  END IF;
  RETURN jsonb_build_object('model', $2 -> 'model', 'tokens_out', 0, 'tokens_in', coalesce($2 #> '{usage,prompt_tokens}', $2 -> 'prompt_eval_count', '0'))
    || CASE WHEN $3 THEN jsonb_build_object('embedding', v_all -> 0) ELSE jsonb_build_object('embeddings', v_all) END;
END
$$;

-- The answer of a request that was made for many calls (src/parcel.c), as if each
-- had been made alone: texts is how many texts each has, weights what it pays for.
-- Null: it has not a vector for each text.
CREATE FUNCTION orchestrator._share_answer(provider text, answer jsonb, texts int[], weights int[]) RETURNS jsonb[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_body   jsonb := $2 -> 'body';
  v_rest   jsonb := jsonb_build_object('model', v_body -> 'model');
  v_name   text := CASE $1 WHEN 'openai' THEN 'data' ELSE 'embeddings' END;
  v_used   text := coalesce(v_body #>> '{usage,prompt_tokens}', v_body ->> 'prompt_eval_count');
  v_tokens numeric := CASE WHEN v_used ~ E'^\\d{1,12}$' THEN v_used ELSE '0' END;
  v_all    jsonb[];
BEGIN
  v_all := ARRAY(SELECT e FROM jsonb_array_elements(v_body -> v_name) WITH ORDINALITY x(e, n) ORDER BY CASE $1 WHEN 'openai' THEN (e ->> 'index')::int END, n);
  IF cardinality(v_all) <> (SELECT sum(n) FROM unnest($3) n) THEN
    RETURN NULL;
  END IF;
  RETURN (
    SELECT array_agg(jsonb_build_object('calls', (m.paid > 0 AND m.paid = m.weight)::int, 'body', v_rest || jsonb_build_object(v_name, to_jsonb(v_all[m.last - m.n + 1 : m.last]),
                       'usage', jsonb_build_object('prompt_tokens', trunc(v_tokens * m.paid / m.whole) - trunc(v_tokens * (m.paid - m.weight) / m.whole)))) ORDER BY m.i)
    FROM (SELECT u.i, u.n, u.weight, sum(u.n) OVER (ORDER BY u.i) AS last, sum(u.weight) OVER (ORDER BY u.i) AS paid, greatest(sum(u.weight) OVER (), 1) AS whole
          FROM unnest($3, $4) WITH ORDINALITY u(n, weight, i)) m);
EXCEPTION WHEN data_exception THEN
  RETURN NULL;
END
$$;

CREATE FUNCTION orchestrator.to_embedding(output jsonb) RETURNS real[]
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.to_embedding(jsonb) IS
  'The embedding in the output of a step of kind embedding, or one of its embeddings, as real[], which pgvector casts to vector; null: none';

CREATE FUNCTION orchestrator._to_embedding(caller oid, output jsonb) RETURNS real[]
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_all jsonb := CASE jsonb_typeof($2) WHEN 'object' THEN $2 -> 'embedding' ELSE $2 END;
BEGIN
  RETURN CASE jsonb_typeof(v_all) WHEN 'array' THEN ARRAY(SELECT e::real FROM jsonb_array_elements_text(v_all) WITH ORDINALITY x(e, n) ORDER BY n) END;
END
$$;

-- An answer with a schema: its JSON, or why it does not fit.
CREATE FUNCTION orchestrator._judge_completion(INOUT answer jsonb, schema jsonb, provider text, OUT error jsonb)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_text  text := $1 ->> 'content';
  v_value jsonb;
  v_bad   text;
BEGIN
  IF $3 = 'anthropic' AND answer -> 'tool_calls' @> '[{"name": "answer"}]' THEN
    v_value := jsonb_path_query_first(answer, '$.tool_calls[*] ? (@.name == "answer").arguments');
    v_text := v_value::text;
    answer := answer - 'tool_calls'::text || '{"finish_reason": "stop"}';
  ELSIF answer ? 'tool_calls' THEN
    RETURN;
  END IF;
  IF answer ->> 'finish_reason' = 'length' THEN
    error := jsonb_build_object('sqlstate', 'OR013', 'message', 'the answer was cut off', 'hint', 'Raise max_tokens of the request.', 'retry', false);
    RETURN;
  END IF;
  BEGIN
    -- some models put it into a block of code
    v_value := coalesce(v_value, regexp_replace(v_text, E'^\\s*```(?:json)?\\s*\\n(.*)\\n\\s*```\\s*$', E'\\1')::jsonb);
    v_bad := orchestrator._schema_error(v_value, $2);
  EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
    v_bad := 'it is not JSON';
  END;
  IF v_bad IS NOT NULL OR v_value IS NULL THEN
    error := jsonb_build_object('sqlstate', 'OR013', 'message', format('the answer does not fit its schema: %s', coalesce(v_bad, 'it is empty')), 'answer', left(v_text, 8000));
  ELSE
    answer := answer || jsonb_build_object('content', v_value);
  END IF;
END
$$;

-- What was spent ---------------------------------------------------------------

-- The cost of tokens of a model; 0 where it has no price.
CREATE FUNCTION orchestrator._model_cost(model text, tokens_in bigint, tokens_out bigint) RETURNS numeric
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT trim_scale(($2 * p.per_million_in + $3 * p.per_million_out) * 0.000001) FROM orchestrator.model_price p
                   WHERE starts_with($1, p.model) ORDER BY length(p.model) DESC LIMIT 1), 0);
END
$$;

-- What tasks spent, added to what one had.
CREATE FUNCTION orchestrator._add_usage(resources jsonb, tokens_in bigint, tokens_out bigint, cost numeric) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce($1, '{}') || jsonb_build_object('tokens_in', coalesce(($1 ->> 'tokens_in')::bigint, 0) + $2,
    'tokens_out', coalesce(($1 ->> 'tokens_out')::bigint, 0) + $3, 'cost', coalesce(($1 ->> 'cost')::numeric, 0) + $4);
END
$$;

-- Count what a call of a locked task used: for its role, the top of its tree,
-- and itself: returns its resources. All attempts count. calls is 0 where another
-- task counts the call.
CREATE FUNCTION orchestrator._count_usage(t orchestrator.task, d orchestrator.definition, answer jsonb, calls int) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_model text := left(coalesce($3 ->> 'model', d.request ->> 'model', ''), 200);
  v_in    bigint := CASE WHEN $3 ->> 'tokens_in' ~ E'^\\d{1,12}$' THEN ($3 ->> 'tokens_in')::bigint ELSE 0 END;
  v_out   bigint := CASE WHEN $3 ->> 'tokens_out' ~ E'^\\d{1,12}$' THEN ($3 ->> 'tokens_out')::bigint ELSE 0 END;
  v_cost  numeric := orchestrator._model_cost(v_model, v_in, v_out);
  v_hour  timestamptz := date_trunc('hour', orchestrator._now());
  v_calls bigint;
  v_asked bigint;
BEGIN
  INSERT INTO orchestrator.model_usage AS u (owner, hour, definition, model, calls, tokens_in, tokens_out, cost)
    VALUES (t.owner, v_hour, d.name, v_model, $4, v_in, v_out, v_cost)
    ON CONFLICT ON CONSTRAINT model_usage_pkey DO UPDATE
      SET calls = u.calls + $4, tokens_in = u.tokens_in + v_in, tokens_out = u.tokens_out + v_out, cost = u.cost + v_cost
    RETURNING u.calls INTO v_calls;
  IF v_calls = 1 THEN
    DELETE FROM orchestrator.model_usage u WHERE u.owner = t.owner AND u.hour < v_hour - interval '400 days';
  END IF;
  IF t.root_id IS NOT NULL THEN
    v_asked := CASE WHEN orchestrator._is_round(t) OR orchestrator._is_piece(d) THEN t.parent_id END;
    UPDATE orchestrator.task_live l SET resources = orchestrator._add_usage(l.resources, v_in, v_out, v_cost) WHERE l.id IN (t.root_id, v_asked);
  END IF;
  RETURN orchestrator._add_usage(t.resources, v_in, v_out, v_cost);
END
$$;

-- Why a task may not call a model any more; null: it may.
CREATE FUNCTION orchestrator._budget_refusal(t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  b      orchestrator.model_budget;
  p      record;
  v_what text;
BEGIN
  SELECT l.resources, l.metadata -> 'budget' AS budget INTO p FROM orchestrator.task_live l WHERE l.id = coalesce(t.root_id, t.id);
  v_what := orchestrator._spent(coalesce((p.resources ->> 'tokens_in')::bigint, 0) + coalesce((p.resources ->> 'tokens_out')::bigint, 0),
                                coalesce((p.resources ->> 'cost')::numeric, 0),
                                CASE WHEN jsonb_typeof(p.budget -> 'max_tokens') = 'number' THEN (p.budget ->> 'max_tokens')::numeric END,
                                CASE WHEN jsonb_typeof(p.budget -> 'max_cost') = 'number' THEN (p.budget ->> 'max_cost')::numeric END);
  IF v_what IS NOT NULL THEN
    RETURN jsonb_build_object('sqlstate', 'OR014', 'message', format('the budget of task %s is spent: %s', coalesce(t.root_id, t.id), v_what), 'retry', false,
                              'hint', 'Enqueue it with more in its metadata: {"budget": {"max_tokens": n, "max_cost": n}}.');
  END IF;
  SELECT x.* INTO b FROM orchestrator.model_budget x WHERE x.owner IN (t.owner, 0) ORDER BY x.owner DESC LIMIT 1;
  IF FOUND THEN
    SELECT orchestrator._spent(coalesce(sum(u.tokens_in + u.tokens_out), 0), coalesce(sum(u.cost), 0), b.max_tokens, b.max_cost) INTO v_what
      FROM orchestrator.model_usage u WHERE u.owner = t.owner AND u.hour > orchestrator._now() - b.period;
    IF v_what IS NOT NULL THEN
      RETURN jsonb_build_object('sqlstate', 'OR014', 'message', format('the budget of role "%s" is spent: %s within %s',
          (SELECT o.name FROM orchestrator.owner o WHERE o.id = t.owner), v_what, b.period), 'retry', false,
        'hint', 'An administrator raises it with orchestrator.set_budget().');
    END IF;
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION orchestrator._spent(tokens numeric, cost numeric, max_tokens numeric, max_cost numeric) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE WHEN $1 >= $3 THEN format('%s of %s tokens', $1, $3)
              WHEN $2 >= $4 THEN format('%s of %s', round($2, 4), $4) END;
END
$$;

-- The answer of a call to a model, of a locked task: what its step gives, or
-- its error; and what it used.
CREATE FUNCTION orchestrator._read_model(t orchestrator.task, d orchestrator.definition, provider text, body jsonb, calls int,
    OUT output jsonb, OUT error jsonb, OUT resources jsonb, OUT requests jsonb)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_schema jsonb;
BEGIN
  output := CASE d.kind WHEN 'llm' THEN orchestrator._read_completion($3, $4)
                        ELSE orchestrator._read_embedding($3, $4, jsonb_typeof(orchestrator._render(d.request -> 'input', t.input)) = 'string') END;
  IF output IS NULL THEN
    error := jsonb_build_object('sqlstate', 'OR013', 'message', format('the answer is not of the form of provider %s', $3));
    RETURN;
  END IF;
  resources := orchestrator._count_usage(t, d, output, $5);
  PERFORM orchestrator._learn_ratio(d, t, output);
  v_schema := CASE WHEN d.request ? 'agent' THEN orchestrator._plan_schema() ELSE d.request -> 'schema' END;
  IF v_schema IS NOT NULL THEN
    SELECT j.answer, j.error INTO output, error FROM orchestrator._judge_completion(output, v_schema, $3) j;
  END IF;
  IF orchestrator._is_piece(d) THEN
    error := orchestrator._summary_refusal(t, output);
  ELSIF error IS NULL AND d.request ? 'agent' THEN
    SELECT g.output, g.error, g.requests INTO output, error, requests FROM orchestrator._agent_turn(t, output) g;
  ELSIF error IS NULL AND output ? 'tool_calls' AND orchestrator._named_tools(d.request) IS NOT NULL THEN
    SELECT g.output, g.error, g.requests INTO output, error, requests FROM orchestrator._tool_round(t, d, output) g;
  ELSIF error IS NULL AND d.request -> 'conversation' = 'true' THEN
    requests := orchestrator._conversation_request(d, t, output);
  END IF;
END
$$;
