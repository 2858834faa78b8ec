-- The courier: outside calls, as steps.
--
-- A task of a kind of _call_kinds() stands in the courier's lane of its queue,
-- where no executor looks. One worker of the database (src/courier.c) claims
-- such tasks, for all roles, commits, and hands each call to a program of its
-- own; what comes back it settles, many in one transaction. Nothing of the task
-- runs in it: what is sent is made of paths over the task's input, and where it
-- goes is said by an endpoint, a server of the foreign data wrapper below, which
-- the role of the task must have USAGE on.
--
-- Calls are at least once: whatever ends the courier or its program has spent
-- an attempt of the calls that were under way.
--
--   _claim_call_lane -> src/call.c -> orchestrator-courier -> _settle_calls
--
-- Another kind is a name in _call_kinds(), what define() asks of it in
-- _check_call(), and what is sent in _make_call().

CREATE FUNCTION orchestrator._endpoint_validator(options text[], catalog oid) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_endpoint_validator';
CREATE FOREIGN DATA WRAPPER orchestrator_http VALIDATOR orchestrator._endpoint_validator;
COMMENT ON FOREIGN DATA WRAPPER orchestrator_http IS
  'Endpoints of outside calls: each server is one, and USAGE on it the right to call it';

-- Process id of the courier of this database; null: none runs.
CREATE FUNCTION orchestrator._courier_pid() RETURNS int
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_courier_pid';

-- Definitions ----------------------------------------------------------------

-- The endpoint of a call, as a role may use it: why it may not, or null.
CREATE FUNCTION orchestrator._endpoint_refusal(role oid, endpoint text) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_server oid;
BEGIN
  SELECT s.oid INTO v_server FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
    WHERE s.srvname = $2 AND w.fdwname = 'orchestrator_http';
  IF NOT FOUND THEN
    RETURN jsonb_build_object('sqlstate', '42704', 'message', format('endpoint "%s" does not exist', $2),
      'hint', format('CREATE SERVER %I FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url ''https://...'').', $2));
  ELSIF NOT coalesce(has_server_privilege($1, v_server, 'USAGE'), false) THEN
    RETURN jsonb_build_object('sqlstate', '42501', 'message', format('permission denied for endpoint "%s"', $2),
      'hint', format('GRANT USAGE ON FOREIGN SERVER %I TO %I.', $2, pg_get_userbyid($1)));
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION orchestrator._check_endpoint(role oid, endpoint text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_refusal jsonb := orchestrator._endpoint_refusal($1, $2);
BEGIN
  IF v_refusal IS NOT NULL THEN
    RAISE EXCEPTION '%', v_refusal ->> 'message' USING ERRCODE = v_refusal ->> 'sqlstate', HINT = v_refusal ->> 'hint';
  END IF;
END
$$;

-- What a definition that is a call says of it, checked for a role.
CREATE FUNCTION orchestrator._check_call(role oid, d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF d.kind <> ALL (orchestrator._call_kinds()) THEN
    PERFORM orchestrator._require(d.endpoint IS NULL AND d.request IS NULL, format('endpoint or request with kind "%s"', d.kind),
                                  format('They belong to kind %s.', array_to_string(orchestrator._call_kinds(), ', ')));
    RETURN;
  END IF;
  PERFORM orchestrator._require(d.handler IS NULL, format('handler with kind "%s"', d.kind), 'Its endpoint and request say what it does.');
  PERFORM orchestrator._require(d.endpoint IS NOT NULL OR d.kind = 'tool' AND d.request ? 'tools', format('kind "%s" without endpoint', d.kind),
                                'Give the name of a server of orchestrator_http' || CASE d.kind WHEN 'tool' THEN ', or tools in its request.' ELSE '.' END);
  PERFORM orchestrator._require(d.timeout_policy <> 'alert', format('timeout_policy alert with kind "%s"', d.kind), 'Say retry, fail or fail_workflow.');
  IF d.endpoint IS NOT NULL THEN
    PERFORM orchestrator._check_endpoint($1, d.endpoint);
    PERFORM orchestrator._check_provider(d);
  END IF;
  PERFORM orchestrator._require(octet_length(d.request::text) <= pg_size_bytes(current_setting('orchestrator.max_input_size')), 'request is larger than orchestrator.max_input_size');
  CASE d.kind
    WHEN 'http' THEN PERFORM orchestrator._check_request(d.request);
    WHEN 'tool' THEN PERFORM orchestrator._check_tool_request(d);
    WHEN 'webhook' THEN PERFORM orchestrator._check_webhook_request(d.request);
    ELSE PERFORM orchestrator._check_model_request(d.kind, d.request);
  END CASE;
  PERFORM orchestrator._check_tools($1, d);
END
$$;

-- The request of kind http. Strings in path, query, headers and body that begin
-- with $ are paths over the input.
CREATE FUNCTION orchestrator._check_request(request jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
  PERFORM orchestrator._require_keys('request', $1, '{method,path,query,headers,body,expect}', 'The keys of a request are method, path, query, headers, body and expect.');
  PERFORM orchestrator._require($1 ->> 'method' IN ('GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'),
                                format('request, key "method": unknown method "%s"', $1 ->> 'method'), 'Say GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS.');
  PERFORM orchestrator._require(jsonb_typeof($1 -> 'path') IN ('string', 'array'), 'request, key "path": is neither a string nor an array of its parts');
  PERFORM orchestrator._require(jsonb_typeof($1 -> 'query') IN ('object', 'string'), 'request, key "query": is not an object');
  PERFORM orchestrator._require(jsonb_typeof($1 -> 'headers') IN ('object', 'string'), 'request, key "headers": is not an object');
  PERFORM orchestrator._require(jsonb_typeof($1 -> 'expect') = 'string', 'request, key "expect": is not a path');
  IF $1 ? 'expect' THEN
    PERFORM orchestrator._check_path('request', 'expect', $1 ->> 'expect');
  END IF;
  PERFORM orchestrator._check_templates($1 - 'expect'::text);
END
$body$;

CREATE FUNCTION orchestrator._check_templates(template jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
  v_path text;
BEGIN
  FOR v_path IN
    SELECT p.value #>> '{}' FROM jsonb_path_query($1, 'strict $.** ? (@.type() == "string" && @ starts with "$")') p(value)
  LOOP
    IF v_path NOT LIKE '$$%' THEN
      PERFORM orchestrator._check_path('request', 'input', v_path);
    END IF;
  END LOOP;
END
$body$;

-- Of what kind of service an endpoint is.
CREATE FUNCTION orchestrator._provider(endpoint text) RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT substr(o, 10) FROM pg_foreign_server s, unnest(s.srvoptions) o WHERE s.srvname = $1 AND starts_with(o, 'provider=')), 'http');
END
$$;

-- Whether the endpoint of a definition is of a kind that it can call.
CREATE FUNCTION orchestrator._check_provider(d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_is    text := orchestrator._provider(d.endpoint);
  v_fit   text[] := CASE d.kind WHEN 'llm' THEN '{openai,anthropic,ollama}' WHEN 'summarize' THEN '{openai,anthropic,ollama}' WHEN 'embedding' THEN '{openai,ollama}' WHEN 'tool' THEN '{mcp}' WHEN 'webhook' THEN '{webhook}'
                             WHEN 'http' THEN '{http,openai,anthropic,ollama,mcp}' END;
BEGIN
  PERFORM orchestrator._require(v_is = ANY (v_fit), format('endpoint "%s" is of provider %s, which kind %s cannot call', d.endpoint, v_is, d.kind),
                                format('Its provider must be %s.', array_to_string(v_fit, ' or ')));
END
$$;

-- Claim ----------------------------------------------------------------------

-- Lanes in which calls wait, as _remote_lanes() of chapter 58 gives them. The
-- courier shares its places out over them (src/dispatch.c).
CREATE FUNCTION orchestrator._call_lanes(OUT queue int, OUT owner int) RETURNS SETOF record
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_last   constant bigint := orchestrator._courier_lane(0);
  v_owners int[] := '{}';
  v_queues int[] := '{}';
  v_owner  int := 0;
  v_lane   bigint;
BEGIN
  IF NOT orchestrator._may_fire() THEN
    RETURN;
  END IF;
  LOOP
    SELECT min(l.owner) INTO v_owner FROM orchestrator.task_live l WHERE l.owner > v_owner AND l.state = 'pending' AND l.parked_on IS NOT NULL;
    EXIT WHEN v_owner IS NULL;
    v_lane := (-9223372036854775807)::bigint;
    LOOP
      SELECT min(l.parked_on) INTO v_lane FROM orchestrator.task_live l
        WHERE l.owner = v_owner AND l.parked_on > v_lane AND l.parked_on < v_last AND l.state = 'pending' AND l.parked_on IS NOT NULL;
      EXIT WHEN v_lane IS NULL;
      v_owners := v_owners || v_owner;
      v_queues := v_queues || (v_last - v_lane)::int;
    END LOOP;
  END LOOP;
  RETURN QUERY
    SELECT q.id, u.o FROM unnest(v_owners, v_queues) u(o, n) JOIN orchestrator.queue q ON q.id = u.n
    WHERE NOT q.paused ORDER BY -ln(1 - random()) / q.weight;
END
$$;

-- Whether calls wait that could be claimed, but for limits.
CREATE FUNCTION orchestrator._calls_wait() RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (SELECT FROM orchestrator._call_lanes());
END
$$;

-- Provided by the library (src/carry.c): the oldest ready calls of one lane, and
-- completing those that nothing hangs on.
CREATE FUNCTION orchestrator._claim_call_rows(worker int, queue int, owner int, max_rows int, OUT task_id bigint, OUT epoch int,
    OUT definition int, OUT input jsonb, OUT deadline timestamptz, OUT traceparent text, OUT iteration int, OUT permits bigint[], OUT parcel int)
  RETURNS SETOF record LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_claim_call_rows';
CREATE FUNCTION orchestrator._complete_calls(tasks bigint[], epochs int[], outputs jsonb[]) RETURNS bigint[]
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_complete_calls';

-- A call that cannot be claimed in time would keep all others from it.
CREATE FUNCTION orchestrator._fail_stuck_call(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t orchestrator.task;
BEGIN
  SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = $1;
  IF t.root_id IS NULL OR orchestrator._lock_root(t.root_id, false) THEN
    SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = $1 AND l.state = 'pending' FOR UPDATE;
    IF FOUND THEN
      t.error := '{"sqlstate": "OR004", "message": "the concurrency_key of its definition took too long", "hint": "Give a path to one member of the input."}';
      PERFORM orchestrator._count(t.owner, t.queue, t.definition, 'expired');
      PERFORM orchestrator._fail(t, t.error);
    END IF;
  END IF;
END
$$;

-- What a definition says of calls, and why a role cannot make them. As a new
-- snapshot has it: the rows were claimed by one.
CREATE FUNCTION orchestrator._called(definition int, role oid, OUT id int, OUT kind text, OUT endpoint text, OUT request jsonb, OUT timeout interval, OUT silence bigint, OUT filled_in boolean, OUT refusal jsonb)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  SELECT d.kind, d.endpoint, d.request, d.timeout, (extract(epoch FROM d.response_timeout) * 1000)::bigint, strpos(d.request::text, '"$') > 0,
         CASE WHEN $2 IS NULL THEN '{"sqlstate": "OR005", "message": "the task cannot run: its role is gone, or was renamed"}'::jsonb
              WHEN d.endpoint IS NOT NULL THEN orchestrator._endpoint_refusal($2, d.endpoint) END
    INTO kind, endpoint, request, timeout, silence, filled_in, refusal FROM orchestrator.definition d WHERE d.id = $1;
  IF NOT FOUND THEN
    refusal := '{"sqlstate": "42704", "message": "its definition is gone", "retry": false}';
  END IF;
  id := $1;
END
$$;

-- Claim calls of one owner and queue for the courier, up to max_rows and those
-- that fill a parcel, and say what each is. Their role must be what it was, and
-- may use the endpoint now. Where refusal is not null a call cannot be made, and
-- is to be settled with that. Those of one parcel, unless it is 0, go in one
-- request.
CREATE FUNCTION orchestrator._claim_call_lane(worker int, queue int, owner int, max_rows int, OUT task_id bigint, OUT epoch int,
    OUT endpoint text, OUT request jsonb, OUT refusal jsonb, OUT timeout_ms bigint, OUT silence_ms bigint,
    OUT key text, OUT traceparent text, OUT permits bigint[], OUT parcel int) RETURNS SETOF record
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_now  timestamptz := orchestrator._now();
  v_here text := (SELECT i.system_identifier || '-' || i.database FROM orchestrator.database_identity i LIMIT 1);
  v_role oid := (SELECT a.oid FROM orchestrator.owner o JOIN pg_authid a ON a.oid = o.role AND a.rolname = o.name WHERE o.id = $3);
  v_most bigint := 2 * pg_size_bytes(current_setting('orchestrator.max_input_size'));
BEGIN
  RETURN QUERY
    WITH claimed AS MATERIALIZED (
      SELECT c.* FROM orchestrator._claim_call_rows($1, $2, $3, $4) c
    ), known AS MATERIALIZED (
      SELECT k.* FROM (SELECT DISTINCT c.definition FROM claimed c) u CROSS JOIN LATERAL orchestrator._called(u.definition, v_role) k
    )
    SELECT c.task_id, c.epoch, k.endpoint, coalesce(CASE WHEN m.is_large THEN '{}' ELSE m.request END, k.request),
           coalesce(k.refusal, m.refusal, CASE WHEN m.is_large THEN orchestrator._size_refusal(v_most) END),
           (extract(epoch FROM least(k.timeout, nullif(c.deadline, 'infinity') - v_now)) * 1000)::bigint, k.silence,
           v_here || '-' || c.task_id || coalesce('.' || nullif(c.iteration, 1), '') || coalesce('-' || (m.request ->> 'part'), ''), c.traceparent, c.permits, c.parcel
    FROM claimed c
    JOIN known k ON k.id = c.definition
    -- the condition within: else it is called first
    LEFT JOIN LATERAL (SELECT x.*, pg_column_size(x.request) > v_most AS is_large FROM orchestrator._make_call(k.kind, k.request, c.input, c.definition, c.task_id) x
                       WHERE k.filled_in OR k.kind <> 'http' OFFSET 0) m ON true;
END
$$;

-- All that are claimed at once are kept in memory.
CREATE FUNCTION orchestrator._size_refusal(most bigint) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN jsonb_build_object('sqlstate', '54000', 'message', format('the request is larger than %s kB', $1 / 1024), 'retry', false,
                            'hint', 'It may be twice as large as orchestrator.max_input_size.');
END
$$;

-- Provided by the library (src/duty.c): between the first two the courier follows
-- paths for one call; after a second of the processor, or with more memory than
-- orchestrator.courier_memory, that is cancelled.
-- The third: those of a role have taken so long that other roles come first.
CREATE FUNCTION orchestrator._begin_paths() RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_begin_paths';
CREATE FUNCTION orchestrator._end_paths() RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_end_paths';
CREATE FUNCTION orchestrator._paths_are_late() RETURNS boolean
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_paths_are_late';

-- What is sent for a task, or why that cannot be.
CREATE FUNCTION orchestrator._make_call(kind text, template jsonb, input jsonb, definition int, task bigint, OUT request jsonb, OUT refusal jsonb)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  IF orchestrator._paths_are_late() THEN
    refusal := '{"again": true}';
    RETURN;
  END IF;
  PERFORM orchestrator._begin_paths();
  SELECT x.request, x.refusal INTO request, refusal FROM orchestrator._fill_call($1, $2, $3, $4, $5) x;
  PERFORM orchestrator._end_paths();
EXCEPTION WHEN OTHERS OR query_canceled THEN
  PERFORM orchestrator._end_paths();
  refusal := jsonb_build_object('sqlstate', CASE SQLSTATE WHEN '57014' THEN 'OR004' ELSE SQLSTATE END, 'message', 'its request cannot be made: ' || orchestrator._path_error(SQLSTATE, SQLERRM));
END
$$;

-- Of an error of what follows paths, what to say.
CREATE FUNCTION orchestrator._path_error(state text, message text) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE $1 WHEN '57014' THEN 'its paths take too long, or too much memory' ELSE $2 END;
END
$$;

-- Its request with the templates filled in. Where it is a part of what the task
-- sends, "part" of the request sets its idempotency key apart.
CREATE FUNCTION orchestrator._fill_call(kind text, template jsonb, input jsonb, definition int, task bigint, OUT request jsonb, OUT refusal jsonb)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  d     orchestrator.definition;
  t     orchestrator.task;
  v_doc jsonb;
BEGIN
  IF $1 = 'http' THEN
    request := orchestrator._render($2 - 'expect'::text, $3);
    RETURN;
  END IF;
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = $4;
  SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = $5;
  IF d.endpoint IS NULL THEN
    refusal := '{"choose": true}';   -- of its tools: there is nothing to send
    RETURN;
  END IF;
  PERFORM orchestrator._check_provider(d);
  IF $1 = 'tool' THEN
    refusal := orchestrator._arguments_refusal(d, t);
    request := orchestrator._tool_call(d, t);
    RETURN;
  ELSIF $1 = 'webhook' THEN
    request := orchestrator._webhook_request(d, t);
    RETURN;
  END IF;
  refusal := orchestrator._budget_refusal(t);
  v_doc := CASE WHEN $1 <> 'summarize' THEN orchestrator._model_document(d, t) END;
  IF refusal IS NULL AND ($1 = 'summarize' OR orchestrator._is_over_limit(d, t, v_doc)) THEN
    refusal := '{"summarize": true}';
  ELSIF $1 <> 'summarize' THEN
    request := orchestrator._model_call(d.kind, orchestrator._provider(d.endpoint), v_doc);
  END IF;
END
$$;

-- Settle ---------------------------------------------------------------------

-- Settle calls that _complete_calls() has left: outcomes are completed, error or timeout, and lost; results the
-- outputs and errors. Returns the tasks that somebody has locked: to be settled
-- a little later, as are others of a role after one that took long. Reports that
-- are stale change nothing.
CREATE FUNCTION orchestrator._settle_calls(tasks bigint[], epochs int[], outcomes text[], results jsonb[]) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_left    bigint[] := '{}';
  v_late    int[] := '{}';   -- owners
  v_began   timestamptz;
  v_task    bigint;
  v_owner   int;
  v_epoch   int;
  v_outcome text;
  v_result  jsonb;
BEGIN
  FOR v_task, v_owner, v_epoch, v_outcome, v_result IN
    SELECT u.task, l.owner, u.epoch, u.outcome, u.result FROM unnest($1, $2, $3, $4) u(task, epoch, outcome, result)
    LEFT JOIN orchestrator.task_live l ON l.id = u.task
    ORDER BY u.task
  LOOP
    IF v_owner = ANY (v_late) THEN
      v_left := v_left || v_task;
      CONTINUE;
    END IF;
    v_began := clock_timestamp();
    BEGIN
      PERFORM orchestrator._settle_call(v_task, v_epoch, v_outcome, v_result);
    EXCEPTION
      WHEN lock_not_available OR deadlock_detected THEN
        v_left := v_left || v_task;
        PERFORM set_config('lock_timeout', '1ms', true);   -- who locked one may have locked many
      WHEN OTHERS OR query_canceled THEN
        PERFORM orchestrator._give_up(v_task, v_began, 'the call of task %s could not be settled', SQLERRM);
        v_left := v_left || v_task;
    END;
    IF clock_timestamp() - v_began > interval '500 ms' THEN
      v_late := v_late || v_owner;
    END IF;
  END LOOP;
  RETURN v_left;
END
$$;

CREATE FUNCTION orchestrator._settle_call(task bigint, epoch int, outcome text, result jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_error jsonb;
BEGIN
  IF $3 = 'error' AND $4 = '{"again": true}' THEN
    PERFORM orchestrator._settle_failed($1, $2, 'released', NULL, NULL, NULL);
    RETURN;
  END IF;
  PERFORM orchestrator._count_attempt(l) FROM orchestrator.task_live l
    WHERE l.id = $1 AND l.epoch = $2 AND l.state::text = 'running' AND $4 IS DISTINCT FROM '{"summarize": true}';
  IF orchestrator._settle_answer($1, $2, $3, $4) THEN
    RETURN;
  ELSIF $3 = 'completed' THEN
    v_error := orchestrator._judge_answer((SELECT d.request ->> 'expect' FROM orchestrator.task_live l JOIN orchestrator.definition d ON d.id = l.definition
                                           WHERE l.id = $1), $4);
  END IF;
  IF $3 = 'completed' AND v_error IS NULL THEN
    PERFORM orchestrator._settle_completed($1, $2, $4, NULL, NULL);
  ELSE
    PERFORM orchestrator._settle_failed($1, $2, CASE $3 WHEN 'completed' THEN 'error' ELSE $3 END, coalesce(v_error, $4), NULL, NULL);
  END IF;
END
$$;

-- The same of calls whose answer means something of their own. False: it does
-- not.
CREATE FUNCTION orchestrator._settle_answer(task bigint, epoch int, outcome text, result jsonb) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t       orchestrator.task;
  d       orchestrator.definition;
  r       record;
  v_again boolean := false;
BEGIN
  SELECT x.* INTO d FROM orchestrator.task_live l JOIN orchestrator.definition x ON x.id = l.definition WHERE l.id = $1;
  IF NOT FOUND OR d.kind IN ('http', 'webhook') THEN
    RETURN false;
  END IF;
  t := orchestrator._lock_running($1, $2);
  IF t.id IS NULL THEN
    RETURN true;   -- the report is stale
  ELSIF $4 ? 'choose' AND d.endpoint IS NULL THEN
    PERFORM orchestrator._settle_choice(t, d);
    RETURN true;
  ELSIF $3 = 'error' AND $4 = '{"summarize": true}' THEN
    PERFORM orchestrator._begin_summary(t, d);
    RETURN true;
  ELSIF d.kind = 'tool' THEN
    IF $3 = 'completed' THEN
      SELECT x.output, x.error, x.again, NULL::jsonb AS resources, NULL::jsonb AS requests INTO r FROM orchestrator._read_answer(t, d, $4) x;
      v_again := r.again;
    ELSE
      v_again := orchestrator._forget_session(t, d, $4);
    END IF;
    -- a server that never gets on must not keep us here
    IF v_again AND t.epoch - 2 * t.attempt < 60 THEN
      PERFORM orchestrator._settle_failed($1, $2, 'released', NULL, NULL, NULL);
      RETURN true;
    END IF;
  ELSIF $3 = 'completed' THEN
    SELECT x.output, x.error, x.resources, x.requests INTO r FROM orchestrator._read_answer(t, d, $4) x;
  END IF;
  IF $3 <> 'completed' THEN
    PERFORM orchestrator._settle_failed($1, $2, $3, $4, NULL, NULL);
  ELSIF v_again OR r.error IS NOT NULL THEN
    PERFORM orchestrator._settle_failed($1, $2, 'error', coalesce(r.error, '{"sqlstate": "OR013", "message": "the server of the tool opens no session"}'), NULL, r.resources);
  ELSE
    PERFORM orchestrator._settle_completed($1, $2, r.output, NULL, r.resources, r.requests);
  END IF;
  RETURN true;
END
$$;

-- What came back for a locked task: what its step gives, or its error. Whatever
-- is wrong with it is that step's error.
CREATE FUNCTION orchestrator._read_answer(t orchestrator.task, d orchestrator.definition, answer jsonb,
    OUT output jsonb, OUT error jsonb, OUT resources jsonb, OUT requests jsonb, OUT again boolean)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF d.kind = 'tool' THEN
    SELECT x.output, x.error, x.again INTO output, error, again FROM orchestrator._read_tool(t, d, $3) x;
  ELSE
    SELECT x.output, x.error, x.resources, x.requests INTO output, error, resources, requests
      FROM orchestrator._read_model(t, d, orchestrator._provider(d.endpoint), $3 -> 'body', coalesce(($3 ->> 'calls')::int, 1)) x;
  END IF;
EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
  error := jsonb_build_object('sqlstate', 'OR013', 'message', 'the answer cannot be read: ' || SQLERRM, 'retry', false);
END
$$;

-- Whether an answer is what a definition expects: null, or the error.
CREATE FUNCTION orchestrator._judge_answer(expect text, answer jsonb) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_holds boolean;
BEGIN
  IF $1 IS NULL THEN
    RETURN NULL;
  END IF;
  PERFORM orchestrator._begin_paths();
  v_holds := orchestrator._holds($1, $2);
  PERFORM orchestrator._end_paths();
  RETURN CASE WHEN NOT v_holds THEN
    jsonb_build_object('sqlstate', 'OR013', 'message', format('the answer is not as expected: %s does not hold', left($1, 200)), 'status', $2 -> 'status') END;
EXCEPTION WHEN OTHERS OR query_canceled THEN
  PERFORM orchestrator._end_paths();
  RETURN jsonb_build_object('sqlstate', 'OR013', 'message', 'the answer could not be judged: ' || orchestrator._path_error(SQLSTATE, SQLERRM), 'retry', false);
END
$$;

-- Of the calls that the courier makes, those that are no longer its own.
CREATE FUNCTION orchestrator._lost_calls(tasks bigint[], epochs int[]) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  RETURN ARRAY(SELECT u.task FROM unnest($1, $2) u(task, epoch)
               WHERE NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = u.task AND l.epoch = u.epoch AND l.state::text = 'running'));
END
$$;

-- Calls whose courier is gone have spent their attempt. Returns how many;
-- negative: some are locked, come again.
CREATE FUNCTION orchestrator._recover_calls() RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_tasks  bigint[];
  v_epochs int[];
BEGIN
  SELECT array_agg(l.id), array_agg(l.epoch) INTO v_tasks, v_epochs FROM orchestrator.task_live l
    WHERE l.state = 'running' AND l.worker IS NOT NULL AND l.parked_on < orchestrator._courier_lane(0)
      AND l.worker IS DISTINCT FROM orchestrator._courier_pid();
  RETURN orchestrator._recover(v_tasks, v_epochs, v_tasks);
END
$$;
