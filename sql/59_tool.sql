-- Tools: definitions that a model may have run.
--
-- Any definition is made a tool by define_tool(), which says what its input must
-- be. Those of a server that speaks MCP are definitions of kind tool. Who asks
-- for a tool by what a model said goes through _tool_refusal(): the tool is on
-- the list that the asker keeps, and its arguments fit. What then runs is a task
-- like any other, as the role of the task.
--
-- A call of kind tool needs a session with its server, one for each endpoint and
-- role. The task that finds none opens it: it is given back between initialize,
-- notifications/initialized and its own call, without a charge.
--
-- A definition may keep a list of tools: one of kind tool that has no endpoint,
-- whose tasks name one of them, and one of kind llm, whose model may. What is
-- called are steps of that task, which is completed when they are:
--
--   tool: call
--   llm:  call 1.1, call 1.2, ... -> round 2 -> call 2.1, ... -> round 3
--
-- A round is a task of the same definition, and asks the model again; the last
-- one's answer is the task's.

CREATE FUNCTION orchestrator.define_tool(definition text, parameters jsonb DEFAULT '{"type": "object"}', description text DEFAULT NULL,
    needs_approval boolean DEFAULT false, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.define_tool(text, jsonb, text, boolean, text) IS
  'Lets models have a definition run: parameters is the JSON schema of its input, description tells models what it does (default: that of the definition); with needs_approval each call waits for approve()';

CREATE FUNCTION orchestrator.drop_tool(definition text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.drop_tool(text, text) IS 'Takes back define_tool(); the definition stays';

CREATE FUNCTION orchestrator.import_tools(endpoint text, prefix text DEFAULT '') RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.import_tools(text, text) IS
  'Enqueues a task that asks an MCP server for its tools, and makes each a definition of kind tool, named prefix and its name, of the caller; its output is their names. A definition that is another is left as it is';

CREATE FUNCTION orchestrator._define_tool(caller oid, definition text, parameters jsonb, description text, needs_approval boolean, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int := orchestrator._owner_for($1, $6);
  v_bad   text;
BEGIN
  IF NOT EXISTS (SELECT FROM orchestrator.definition d WHERE d.owner = v_owner AND d.name = $2 AND d.is_current AND d.name NOT LIKE 'orchestrator.%') THEN
    RAISE EXCEPTION 'definition "%" does not exist', coalesce($2, 'null') USING ERRCODE = 'undefined_object', HINT = 'Make it with orchestrator.define().';
  END IF;
  PERFORM orchestrator._require(jsonb_typeof($3) IS NOT DISTINCT FROM 'object', 'parameters is not an object', 'Give a JSON schema.');
  v_bad := orchestrator._schema_refusal($3, 'parameters');
  PERFORM orchestrator._require(v_bad IS NULL, v_bad);
  PERFORM orchestrator._keep_tool(v_owner, $2, $3, $4, coalesce($5, false));
END
$$;

CREATE FUNCTION orchestrator._keep_tool(owner int, name text, parameters jsonb, description text, needs_approval boolean) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO orchestrator.tool (owner, name, parameters, description, needs_approval) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT ON CONSTRAINT tool_pkey
    DO UPDATE SET parameters = excluded.parameters, description = excluded.description, needs_approval = excluded.needs_approval;
END
$$;

CREATE FUNCTION orchestrator._drop_tool(caller oid, definition text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM orchestrator.tool x WHERE x.owner = orchestrator._owner_for($1, $3) AND x.name = $2;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'tool "%" does not exist', coalesce($2, 'null') USING ERRCODE = 'undefined_object', HINT = 'Make it with orchestrator.define_tool().';
  END IF;
END
$$;

CREATE FUNCTION orchestrator._import_tools(caller oid, endpoint text, prefix text) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d orchestrator.definition;
BEGIN
  d.name := orchestrator._hidden_name('tools', $2, '');
  d.kind := 'tool';
  d.endpoint := $2;
  d.request := '{"list": true}';
  RETURN orchestrator._place_call($1, d, 'import_tools ' || $2, jsonb_build_object('prefix', coalesce($3, '')));
END
$$;

-- Enqueue a call of a definition that nobody sees.
CREATE FUNCTION orchestrator._place_call(caller oid, d orchestrator.definition, name text, input jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t orchestrator.task;
BEGIN
  PERFORM orchestrator._initialize();
  t := orchestrator._optioned($1, $3, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
  d.owner := orchestrator._owner($1);
  d := orchestrator._policy(d, '{}');
  PERFORM orchestrator._check_call($1, d);
  d.id := orchestrator._keep_hidden(d);
  t.run_at := orchestrator._admit(d.owner, 1, 1);
  t.id := orchestrator._place_root(t, d.owner, d.id, $4, NULL);
  PERFORM orchestrator._admitted(false);
  RETURN t.id;
END
$$;

-- A tool as a role may use it: what models are told of it. Raises when there is
-- none.
CREATE FUNCTION orchestrator._find_tool(caller oid, name text) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d orchestrator.definition := orchestrator._find_definition($1, $2);
  x orchestrator.tool;
BEGIN
  SELECT t.* INTO x FROM orchestrator.tool t WHERE t.owner = d.owner AND t.name = d.name;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'definition "%" is no tool', $2 USING ERRCODE = 'undefined_object', HINT = 'Say what its input is with orchestrator.define_tool().';
  END IF;
  RETURN jsonb_build_object('name', d.name, 'description', coalesce(x.description, d.description, ''), 'parameters', x.parameters, 'needs_approval', x.needs_approval);
END
$$;

-- Why a tool may not be called so, by a list of them; null: it may.
CREATE FUNCTION orchestrator._tool_refusal(tools jsonb, name text, arguments jsonb) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_tool jsonb := (SELECT e FROM jsonb_array_elements($1) e WHERE e ->> 'name' = $2);
BEGIN
  IF v_tool IS NULL THEN
    RETURN format('there is no tool "%s"', left($2, 100));
  END IF;
  RETURN format('the arguments of tool "%s" do not fit: %s', $2, orchestrator._schema_error($3, v_tool -> 'parameters', NULL, 'arguments'))
    WHERE orchestrator._schema_error($3, v_tool -> 'parameters', NULL, 'arguments') IS NOT NULL;
END
$$;

-- Kind tool ------------------------------------------------------------------

CREATE FUNCTION orchestrator._check_tool_request(d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_keys text[] := CASE WHEN d.endpoint IS NULL THEN '{tools,name,arguments}' WHEN d.request ? 'list' THEN '{list}' ELSE '{tool,arguments}' END;
BEGIN
  PERFORM orchestrator._require_keys('request', d.request, v_keys,
                                     'The keys of a request of kind tool are tool and arguments; without endpoint, tools, name and arguments.');
  IF d.endpoint IS NULL THEN
    PERFORM orchestrator._require(orchestrator._named_tools(d.request) IS NOT NULL, 'request, key "tools": is no array of names');
  ELSE
    PERFORM orchestrator._require(d.request ? 'list' OR jsonb_typeof(d.request -> 'tool') IS NOT DISTINCT FROM 'string', 'request, key "tool": is not a string',
                                  'Give the name that the server has for it.');
  END IF;
  PERFORM orchestrator._check_templates(d.request - '{tool,tools}'::text[]);
END
$$;

-- Why the arguments of a call do not fit what define_tool() says of its
-- definition: the error of its task, or null.
CREATE FUNCTION orchestrator._arguments_refusal(d orchestrator.definition, t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_bad text := (SELECT orchestrator._schema_error(orchestrator._arguments(d, t), x.parameters, NULL, 'arguments')
                 FROM orchestrator.tool x WHERE x.owner = d.owner AND x.name = d.name);
BEGIN
  RETURN CASE WHEN v_bad IS NOT NULL THEN orchestrator._tool_error('22023', format('the arguments of tool "%s" do not fit: %s', d.name, v_bad)) END;
END
$$;

CREATE FUNCTION orchestrator._arguments(d orchestrator.definition, t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE WHEN d.request ? 'arguments' THEN orchestrator._render(d.request -> 'arguments', t.input) ELSE t.input END;
END
$$;

-- Sessions that nobody has used for a day.
CREATE FUNCTION orchestrator._forget_sessions() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM orchestrator.tool_session s WHERE s.used_at < orchestrator._now() - interval '1 day';
END
$$;

-- The session that a call is to use; null: it is to open one.
CREATE FUNCTION orchestrator._use_session(endpoint text, owner int) RETURNS orchestrator.tool_session
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
  s     orchestrator.tool_session;
BEGIN
  SELECT x.* INTO s FROM orchestrator.tool_session x WHERE x.endpoint = $1 AND x.owner = $2 AND x.used_at >= v_now - interval '1 day';
  IF s.used_at < v_now - interval '1 hour' THEN
    UPDATE orchestrator.tool_session x SET used_at = v_now WHERE x.endpoint = $1 AND x.owner = $2;
  END IF;
  RETURN s;
END
$$;

-- The next call to a server of tools for a task: to open a session, or its own.
CREATE FUNCTION orchestrator._tool_call(d orchestrator.definition, t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s         orchestrator.tool_session := orchestrator._use_session(d.endpoint, t.owner);
  v_body    jsonb;
  v_part    text;
  v_headers jsonb := '{"Accept": "application/json, text/event-stream"}';
BEGIN
  IF s.endpoint IS NULL THEN
    v_part := 'initialize';
    v_body := jsonb_build_object('method', 'initialize', 'id', t.id, 'params', jsonb_build_object('protocolVersion', '2025-06-18', 'capabilities', '{}'::jsonb,
      'clientInfo', jsonb_build_object('name', 'orchestrator', 'version', (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'orchestrator'))));
  ELSE
    v_headers := v_headers || jsonb_build_object('MCP-Protocol-Version', s.protocol)
      || CASE WHEN s.session IS NULL THEN '{}' ELSE jsonb_build_object('Mcp-Session-Id', s.session) END;
    IF NOT s.is_ready THEN
      v_part := 'initialized';
      v_body := '{"method": "notifications/initialized"}';
    ELSIF d.request ? 'list' THEN
      v_part := 'list-' || coalesce(jsonb_array_length(t.input -> 'names'), 0);
      v_body := jsonb_build_object('method', 'tools/list', 'id', t.id, 'params', jsonb_strip_nulls(jsonb_build_object('cursor', t.input -> 'cursor')));
    ELSE
      v_body := jsonb_build_object('method', 'tools/call', 'id', t.id, 'params', jsonb_build_object('name', d.request -> 'tool', 'arguments', orchestrator._arguments(d, t)));
    END IF;
  END IF;
  RETURN jsonb_build_object('method', 'POST', 'headers', v_headers, 'body', v_body || '{"jsonrpc": "2.0"}', 'part', v_part);
END
$$;

-- The message in an answer: its JSON, or among its events the one that answers.
CREATE FUNCTION orchestrator._tool_message(answer jsonb) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF jsonb_typeof($1 -> 'body') IS DISTINCT FROM 'string' THEN
    RETURN $1 -> 'body';
  END IF;
  RETURN (SELECT m.message FROM regexp_split_to_table(replace($1 ->> 'body', E'\r\n', E'\n'), E'\n\n+') WITH ORDINALITY e(event, n)
          CROSS JOIN LATERAL (SELECT string_agg(regexp_replace(l, '^data: ?', ''), E'\n') FROM regexp_split_to_table(e.event, E'\n') l WHERE l LIKE 'data:%') x(data)
          CROSS JOIN LATERAL (SELECT x.data::jsonb) m(message)
          WHERE x.data IS NOT NULL AND m.message ? 'id' AND m.message ?| '{result,error}' ORDER BY e.n LIMIT 1);
END
$$;

-- What an answer of a server of tools means for a locked task: again is true
-- when its session moved on, and the task makes its next call.
CREATE FUNCTION orchestrator._read_tool(t orchestrator.task, d orchestrator.definition, answer jsonb,
    OUT output jsonb, OUT error jsonb, OUT again boolean)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m        jsonb;
  v_result jsonb;
BEGIN
  again := false;
  m := orchestrator._tool_message($3);
  v_result := m -> 'result';
  IF m IS NULL OR jsonb_typeof(m) = 'null' THEN
    UPDATE orchestrator.tool_session s SET is_ready = true WHERE s.endpoint = d.endpoint AND s.owner = t.owner;
    again := FOUND;
  ELSIF m ? 'error' THEN
    error := jsonb_build_object('sqlstate', 'OR015', 'message', format('the server of the tool answered: %s', left(m #>> '{error,message}', 500)),
                                'retry', CASE WHEN m #>> '{error,code}' IN ('-32600', '-32601', '-32602') THEN false END);
  ELSIF v_result ? 'protocolVersion' THEN
    PERFORM orchestrator._forget_sessions();
    INSERT INTO orchestrator.tool_session (endpoint, owner, session, protocol, is_ready, used_at)
      VALUES (d.endpoint, t.owner, left($3 #>> '{headers,mcp-session-id}', 500), left(v_result ->> 'protocolVersion', 20), false, orchestrator._now())
      ON CONFLICT DO NOTHING;
    again := true;
  ELSIF d.request ? 'list' AND jsonb_typeof(v_result -> 'tools') = 'array' THEN
    SELECT l.output, l.again INTO output, again FROM orchestrator._keep_tools(t, d, v_result) l;
  ELSIF v_result ->> 'isError' = 'true' THEN
    error := jsonb_build_object('sqlstate', 'OR015', 'message', left('the tool failed: ' || coalesce(orchestrator._content_text(v_result -> 'content'), ''), 1000));
  ELSIF jsonb_typeof(v_result) = 'object' THEN
    output := v_result || jsonb_build_object('text', orchestrator._content_text(v_result -> 'content'));
    RETURN;
  END IF;
  IF NOT again AND output IS NULL AND error IS NULL THEN
    error := '{"sqlstate": "OR013", "message": "the answer is not of the form of provider mcp"}';
  END IF;
END
$$;

-- A page of the tools of a server; with more to come the task goes on.
CREATE FUNCTION orchestrator._keep_tools(t orchestrator.task, d orchestrator.definition, result jsonb, OUT output jsonb, OUT again boolean)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  x       orchestrator.definition;
  v_tool  jsonb;
  v_names jsonb := coalesce(t.input -> 'names', '[]');
BEGIN
  FOR v_tool IN SELECT e FROM jsonb_array_elements($3 -> 'tools') e WHERE jsonb_typeof(e -> 'name') = 'string' LOOP
    x := NULL;
    x.owner := t.owner;
    x.name := left((t.input ->> 'prefix') || (v_tool ->> 'name'), 200);
    -- a server must not replace what is not its own
    CONTINUE WHEN x.name LIKE 'orchestrator.%' OR x.name = '' OR octet_length(x.name) > 200
      OR EXISTS (SELECT FROM orchestrator.definition e WHERE e.owner = t.owner AND e.name = x.name AND e.is_current
                                                         AND (e.kind <> 'tool' OR e.endpoint <> d.endpoint));
    x.kind := 'tool';
    x.endpoint := d.endpoint;
    x.request := jsonb_build_object('tool', v_tool -> 'name');
    x.description := left(v_tool ->> 'description', 4000);
    x := orchestrator._policy(x, '{}');
    PERFORM orchestrator._put_definition(x, true);
    PERFORM orchestrator._keep_tool(t.owner, x.name, CASE jsonb_typeof(v_tool -> 'inputSchema') WHEN 'object' THEN v_tool -> 'inputSchema' ELSE '{"type": "object"}' END,
                                    x.description, false);
    v_names := v_names || to_jsonb(x.name);
  END LOOP;
  PERFORM orchestrator._invalidate();
  again := jsonb_typeof($3 -> 'nextCursor') = 'string' AND jsonb_array_length(v_names) < 1000;
  IF again THEN
    UPDATE orchestrator.task_live l SET input = l.input || jsonb_build_object('names', v_names, 'cursor', $3 -> 'nextCursor') WHERE l.id = t.id;
  ELSE
    output := v_names;
  END IF;
END
$$;

-- A session that its server does not know any more is opened anew. True: it was
-- forgotten.
CREATE FUNCTION orchestrator._forget_session(t orchestrator.task, d orchestrator.definition, error jsonb) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF coalesce($3 ->> 'status', '') NOT IN ('400', '404') THEN
    RETURN false;
  END IF;
  DELETE FROM orchestrator.tool_session s WHERE s.endpoint = d.endpoint AND s.owner = t.owner;
  RETURN FOUND;
END
$$;

-- Lists of tools -------------------------------------------------------------

-- The names of tools that a request lists; null: it lists none.
CREATE FUNCTION orchestrator._named_tools(request jsonb) RETURNS text[]
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE WHEN jsonb_typeof($1 -> 'tools') = 'array' AND $1 -> 'tools' @? '$[*] ? (@.type() == "string")'
              THEN ARRAY(SELECT jsonb_array_elements_text($1 -> 'tools')) END;
END
$$;

-- The list of a definition, checked for a role: all of it are tools that the
-- role may use.
CREATE FUNCTION orchestrator._check_tools(role oid, d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_names text[] := orchestrator._named_tools(d.request);
  v_name  text;
BEGIN
  IF v_names IS NULL THEN
    PERFORM orchestrator._require(NOT coalesce(d.request ? 'max_tool_rounds', false), 'request: max_tool_rounds without tools by name', 'Give the names of tools, by define_tool().');
    RETURN;
  END IF;
  PERFORM orchestrator._require(NOT d.request -> 'tools' @? '$[*] ? (@.type() != "string")', 'request, key "tools": has names and others', 'Give names of tools alone.');
  FOREACH v_name IN ARRAY v_names LOOP
    PERFORM orchestrator._require(cardinality(array_positions(v_names, v_name)) = 1, format('request, key "tools": names "%s" twice', v_name));
    PERFORM orchestrator._require(d.kind <> 'llm' OR v_name ~ '^[A-Za-z0-9_-]{1,64}$', format('request, key "tools": models do not take the name "%s"', v_name),
                                  'They take letters, digits, _ and -, 64 at most. Define the same under such a name.');
    PERFORM orchestrator._find_tool($1, v_name);
  END LOOP;
END
$$;

-- An error of a task that another attempt does not mend.
CREATE FUNCTION orchestrator._tool_error(sqlstate text, message text, hint text DEFAULT 'The table orchestrator.tool has what each tool takes.') RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN jsonb_build_object('sqlstate', $1, 'message', $2, 'hint', $3, 'retry', false);
END
$$;

-- A task that names a tool of its definition's list: the call is a step of its
-- own, or it fails.
CREATE FUNCTION orchestrator._settle_choice(t orchestrator.task, d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  r record;
BEGIN
  SELECT c.error, c.steps INTO r FROM orchestrator._choose_tool(t, d) c;
  IF r.error IS NOT NULL THEN
    PERFORM orchestrator._settle_failed(t.id, t.epoch, 'error', r.error, NULL, NULL);
  ELSE
    PERFORM orchestrator._settle_completed(t.id, t.epoch, NULL, NULL, NULL, orchestrator._call_request(r.steps));
  END IF;
END
$$;

CREATE FUNCTION orchestrator._choose_tool(t orchestrator.task, d orchestrator.definition, OUT steps jsonb, OUT error jsonb)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $_$
DECLARE
  v_role      oid := (SELECT o.role FROM orchestrator.owner o WHERE o.id = t.owner);
  v_names     text[] := orchestrator._named_tools(d.request);
  v_name      jsonb := orchestrator._render(coalesce(d.request -> 'name', '"$.name"'), t.input);
  v_arguments jsonb := orchestrator._render(coalesce(d.request -> 'arguments', '"$.arguments"'), t.input);
  v_tool      jsonb;
  v_bad       text;
BEGIN
  IF jsonb_typeof(v_name) <> 'string' THEN
    error := orchestrator._tool_error('22023', 'the name of the tool is not a string', 'Give name and arguments.');
  ELSIF v_name #>> '{}' <> ALL (v_names) THEN
    error := orchestrator._tool_error('42704', format('tool "%s" is not on the list of definition "%s"', left(v_name #>> '{}', 100), d.name),
                                      format('Its tools are %s.', array_to_string(v_names, ', ')));
  ELSE
    v_tool := orchestrator._find_tool(v_role, v_name #>> '{}');
    v_arguments := CASE v_arguments WHEN 'null' THEN '{}' ELSE v_arguments END;
    v_bad := orchestrator._tool_refusal(jsonb_build_array(v_tool), v_name #>> '{}', v_arguments);
    IF v_bad IS NOT NULL THEN
      error := orchestrator._tool_error('22023', v_bad);
    ELSE
      steps := orchestrator._call_steps(v_role, v_tool, 'call', v_arguments, '[]', 1);
    END IF;
  END IF;
EXCEPTION WHEN undefined_object OR ambiguous_alias OR data_exception OR program_limit_exceeded OR statement_too_complex THEN
  GET STACKED DIAGNOSTICS v_bad = PG_EXCEPTION_HINT;
  error := orchestrator._tool_error(SQLSTATE, SQLERRM, v_bad);
END
$_$;

-- The compiled steps of a call that fits: the call, after its approval where the
-- tool wants one. first is the number that the first of them gets.
CREATE FUNCTION orchestrator._call_steps(caller oid, tool jsonb, name text, arguments jsonb, needs jsonb, first int) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d      orchestrator.definition := orchestrator._find_definition($1, $2 ->> 'name');
  v_call jsonb := jsonb_build_object('name', $3, 'description', left(format('%s %s', $2 ->> 'name', $4), 1000), 'needs', $5);
BEGIN
  RETURN CASE WHEN $2 -> 'needs_approval' = 'true' THEN jsonb_build_array(v_call || jsonb_build_object('name', $3 || ' approval', 'kind', 'wait', 'wait_for', 'approval'))
              ELSE '[]' END
    || (v_call || jsonb_build_object('kind', CASE d.kind WHEN 'workflow' THEN 'workflow' ELSE 'task' END, 'definition', d.id, 'input', orchestrator._literal($4))
        || CASE WHEN $2 -> 'needs_approval' = 'true' THEN jsonb_build_object('needs', jsonb_build_array($6)) ELSE '{}' END
        || CASE d.priority WHEN 0 THEN '{}' ELSE jsonb_build_object('priority', d.priority) END);
END
$$;

CREATE FUNCTION orchestrator._call_request(steps jsonb) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN jsonb_build_array(jsonb_build_object('verb', 'call', 'steps', $1));
END
$$;

-- Add compiled steps to a locked task that has or becomes a run by them; of a
-- round, to the task whose round it is. That is returned.
CREATE FUNCTION orchestrator._add_calls(t orchestrator.task, steps jsonb) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p       orchestrator.task := orchestrator._asked(t);
  v_known int := orchestrator._step_count(p);
BEGIN
  PERFORM orchestrator._check_depth(p, 0);
  INSERT INTO orchestrator.added_step (task_id, step, owner, spec)
    SELECT p.id, v_known + e.place, p.owner, e.spec FROM jsonb_array_elements($2) WITH ORDINALITY e(spec, place);
  UPDATE orchestrator.task_live l SET remaining = coalesce(l.remaining, 0) + jsonb_array_length($2) WHERE l.id = p.id RETURNING l.remaining INTO p.remaining;
  PERFORM orchestrator._trace(p, NULL, p.attempt, 'steps_added', jsonb_build_object('steps', jsonb_path_query_array($2, '$[*].name')));
  RETURN p;
END
$$;

-- What a task with calls gives: what the call gave, or the answer of the last
-- round.
CREATE FUNCTION orchestrator._answer_of(p orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT r.output FROM orchestrator._step_rows(p.id, NULL) r
                   WHERE CASE orchestrator._kind(p.definition) WHEN 'tool' THEN r.name = 'call' ELSE orchestrator._is_round(r) END
                   ORDER BY r.step DESC LIMIT 1), p.output);
END
$$;

-- Rounds ---------------------------------------------------------------------

-- Whether a step asks a model again: only the engine makes steps of an llm task
-- that have its definition and such a name.
CREATE FUNCTION orchestrator._is_round(t orchestrator.task) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce(t.step > 0 AND t.name ~ E'^round \\d+$' AND orchestrator._kind(t.definition) = 'llm' AND (orchestrator._task(t.parent_id)).definition = t.definition, false);
END
$$;

-- The task whose round a task is: perhaps itself.
CREATE FUNCTION orchestrator._asked(t orchestrator.task) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE WHEN orchestrator._is_round(t) THEN orchestrator._task(t.parent_id) ELSE t END;
END
$$;

-- The document of a call of a model that has a list of tools: what they are, and
-- after the first round what was called and what it gave.
CREATE FUNCTION orchestrator._with_tools(document jsonb, d orchestrator.definition, t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_tools jsonb := (SELECT jsonb_agg(jsonb_build_object('type', 'function', 'function', e - 'needs_approval'::text)) FROM jsonb_array_elements(orchestrator._list_tools(d, t)) e);
  v_doc   jsonb := $1 - 'max_tool_rounds'::text || jsonb_build_object('tools', v_tools);
BEGIN
  IF NOT orchestrator._is_round(t) THEN
    RETURN v_doc;
  END IF;
  -- a choice is about the first answer: else there is no last one
  RETURN v_doc - 'tool_choice'::text || jsonb_build_object('messages', (v_doc -> 'messages') || orchestrator._round_messages(orchestrator._asked(t), t.step));
END
$$;

-- The list of a definition, as the role of a task may use it.
CREATE FUNCTION orchestrator._list_tools(d orchestrator.definition, t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_role oid := (SELECT o.role FROM orchestrator.owner o WHERE o.id = t.owner);
BEGIN
  RETURN (SELECT jsonb_agg(orchestrator._find_tool(v_role, u.name) ORDER BY u.n) FROM unnest(orchestrator._named_tools(d.request)) WITH ORDINALITY u(name, n));
END
$$;

-- What was said in the rounds before a step.
CREATE FUNCTION orchestrator._round_messages(p orchestrator.task, upto int) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_messages jsonb := '[]';
  v_answer   jsonb;
BEGIN
  FOR v_answer IN
    SELECT x.output FROM (SELECT 0 AS step, p.output UNION ALL
                          SELECT r.step, r.output FROM orchestrator._step_rows(p.id, NULL) r WHERE r.step < $2 AND orchestrator._is_round(r)) x
    WHERE x.output ? 'tool_calls' ORDER BY x.step
  LOOP
    v_messages := v_messages
      || jsonb_build_object('role', 'assistant', 'content', v_answer -> 'content', 'tool_calls',
           (SELECT jsonb_agg(jsonb_build_object('id', c ->> 'id', 'type', 'function', 'function', jsonb_build_object('name', c ->> 'name', 'arguments', (c -> 'arguments')::text)) ORDER BY n)
            FROM jsonb_array_elements(v_answer -> 'tool_calls') WITH ORDINALITY e(c, n)))
      || (SELECT jsonb_agg(jsonb_build_object('role', 'tool', 'tool_call_id', c ->> 'id', 'name', c ->> 'name', 'content', orchestrator._call_result(p, c)) ORDER BY n)
          FROM jsonb_array_elements(v_answer -> 'tool_calls') WITH ORDINALITY e(c, n));
  END LOOP;
  RETURN v_messages;
END
$$;

-- What a model is told of a call.
CREATE FUNCTION orchestrator._call_result(p orchestrator.task, call jsonb) RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  r orchestrator.task;
BEGIN
  IF $2 ? 'error' THEN
    RETURN 'error: ' || ($2 ->> 'error');
  END IF;
  SELECT x.* INTO r FROM orchestrator._step_rows(p.id, ARRAY[($2 ->> 'step')::int]) x;
  RETURN left(CASE WHEN r.state IN ('failed', 'cancelled') THEN 'error: ' || coalesce(r.error ->> 'message', 'the call was cancelled')
                   ELSE coalesce(orchestrator._as_text(coalesce(r.output -> (CASE orchestrator._kind(r.definition) WHEN 'tool' THEN 'text' WHEN 'llm' THEN 'content' END), r.output)), '') END, 100000);
END
$$;

-- An answer that asks for tools: its calls with the steps that make them, or why
-- they are not made, which the model is told in the next round.
CREATE FUNCTION orchestrator._tool_round(t orchestrator.task, d orchestrator.definition, answer jsonb, OUT output jsonb, OUT error jsonb, OUT requests jsonb)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p       orchestrator.task := orchestrator._asked(t);
  v_role  oid := (SELECT o.role FROM orchestrator.owner o WHERE o.id = t.owner);
  v_tools jsonb;
  v_round int := CASE p.id WHEN t.id THEN 1 ELSE substr(t.name, 7)::int END;
  v_limit int := coalesce((d.request ->> 'max_tool_rounds')::numeric::int, 10);
  v_after jsonb := CASE p.id WHEN t.id THEN '[]' ELSE jsonb_build_array(t.step) END;
  v_known int := orchestrator._step_count(p);
  v_steps jsonb := '[]';
  v_needs jsonb := '[]';
  v_calls jsonb := '[]';
  v_call  jsonb;
  v_bad   text;
BEGIN
  IF v_round > v_limit THEN
    error := orchestrator._tool_error('OR007', format('the model asked for tools %s times, more than max_tool_rounds, %s', v_round, v_limit),
                                      'Raise max_tool_rounds of the request, 50 at most, or see in its steps what it asks for.');
    RETURN;
  ELSIF jsonb_array_length($3 -> 'tool_calls') > 50 THEN
    error := jsonb_build_object('sqlstate', 'OR013', 'message', format('the model asked for %s calls at once, more than 50', jsonb_array_length($3 -> 'tool_calls')));
    RETURN;
  END IF;
  v_tools := orchestrator._list_tools(d, t);
  FOR v_call IN SELECT e.value FROM jsonb_array_elements($3 -> 'tool_calls') WITH ORDINALITY e(value, n) ORDER BY e.n LOOP
    v_bad := orchestrator._tool_refusal(v_tools, v_call ->> 'name', v_call -> 'arguments');
    IF v_bad IS NULL THEN
      v_steps := v_steps || (SELECT jsonb_agg(s || CASE s ->> 'kind' WHEN 'wait' THEN '{}' ELSE '{"on_failure": "continue"}'::jsonb END ORDER BY n)
        FROM jsonb_array_elements(orchestrator._call_steps(v_role, jsonb_path_query_first(v_tools, '$[*] ? (@.name == $name)', jsonb_build_object('name', v_call -> 'name')),
               format('call %s.%s', v_round, jsonb_array_length(v_calls) + 1), v_call -> 'arguments', v_after, v_known + jsonb_array_length(v_steps) + 1)) WITH ORDINALITY e(s, n));
      v_call := v_call || jsonb_build_object('step', v_known + jsonb_array_length(v_steps));
      v_needs := v_needs || (v_call -> 'step');
    ELSE
      v_call := v_call || jsonb_build_object('error', v_bad);
    END IF;
    v_calls := v_calls || v_call;
  END LOOP;
  PERFORM orchestrator._trace(p, NULL, p.attempt, 'tools_called', jsonb_build_object('round', v_round, 'said', left($3 ->> 'content', 2000),
    'calls', (SELECT jsonb_agg(c - '{id,arguments}'::text[]) FROM jsonb_array_elements(v_calls) c)));
  output := $3 || jsonb_build_object('tool_calls', v_calls);
  requests := orchestrator._call_request(v_steps || jsonb_build_object('name', 'round ' || v_round + 1, 'kind', 'task', 'definition', d.id, 'queue', t.queue,
    'needs', CASE v_needs WHEN '[]' THEN v_after ELSE v_needs END, 'input', '$.input'));
EXCEPTION WHEN undefined_object OR ambiguous_alias THEN   -- one of the list is gone
  GET STACKED DIAGNOSTICS v_bad = PG_EXCEPTION_HINT;
  error := orchestrator._tool_error(SQLSTATE, SQLERRM, v_bad);
END
$$;
