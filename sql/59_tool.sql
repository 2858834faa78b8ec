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

CREATE FUNCTION orchestrator.define_tool(definition text, parameters jsonb DEFAULT '{"type": "object"}', description text DEFAULT NULL,
    needs_approval boolean DEFAULT false, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.define_tool(text, jsonb, text, boolean, text) IS
  'Lets agents run a definition: parameters is the JSON schema of its input, description tells models what it does (default: that of the definition); with needs_approval each call waits for approve()';

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
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._check_role($1);
  d.owner := orchestrator._owner($1);
  d.name := orchestrator._hidden_name('tools', $2, '');
  d.kind := 'tool';
  d.endpoint := $2;
  d.request := '{"list": true}';
  d := orchestrator._policy(d, '{}');
  PERFORM orchestrator._check_call($1, d);
  d.id := (orchestrator._put_definition(d, false)).id;
  PERFORM orchestrator._invalidate();
  RETURN orchestrator._place_root(orchestrator._optioned($1, 'import_tools ' || $2, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
                                  d.owner, d.id, jsonb_build_object('prefix', coalesce($3, '')), NULL);
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

CREATE FUNCTION orchestrator._check_tool_request(request jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_key text;
BEGIN
  PERFORM orchestrator._require(jsonb_typeof($1) = 'object', 'request is not an object');
  SELECT k INTO v_key FROM jsonb_object_keys($1) k WHERE k NOT IN ('tool', 'arguments', 'list') ORDER BY k LIMIT 1;
  PERFORM orchestrator._require(v_key IS NULL, format('request: unknown key "%s"', v_key), 'The keys of a request of kind tool are tool and arguments.');
  PERFORM orchestrator._require($1 ? 'list' OR jsonb_typeof($1 -> 'tool') IS NOT DISTINCT FROM 'string', 'request, key "tool": is not a string',
                                'Give the name that the server has for it.');
  PERFORM orchestrator._check_templates($1 - 'tool'::text);
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
  v_headers jsonb := '{"Accept": "application/json, text/event-stream"}';
BEGIN
  IF s.endpoint IS NULL THEN
    v_body := jsonb_build_object('method', 'initialize', 'id', t.id, 'params', jsonb_build_object('protocolVersion', '2025-06-18', 'capabilities', '{}'::jsonb,
      'clientInfo', jsonb_build_object('name', 'orchestrator', 'version', (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'orchestrator'))));
  ELSE
    v_headers := v_headers || jsonb_build_object('MCP-Protocol-Version', s.protocol)
      || CASE WHEN s.session IS NULL THEN '{}' ELSE jsonb_build_object('Mcp-Session-Id', s.session) END;
    IF NOT s.is_ready THEN
      v_body := '{"method": "notifications/initialized"}';
    ELSIF d.request ? 'list' THEN
      v_body := jsonb_build_object('method', 'tools/list', 'id', t.id, 'params', jsonb_strip_nulls(jsonb_build_object('cursor', t.input -> 'cursor')));
    ELSE
      v_body := jsonb_build_object('method', 'tools/call', 'id', t.id, 'params', jsonb_build_object('name', d.request -> 'tool',
        'arguments', CASE WHEN d.request ? 'arguments' THEN orchestrator._render(d.request -> 'arguments', t.input) ELSE t.input END));
    END IF;
  END IF;
  RETURN jsonb_build_object('method', 'POST', 'headers', v_headers, 'body', v_body || '{"jsonrpc": "2.0"}');
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
