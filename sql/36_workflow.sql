-- Workflows: steps, and how a graph of them is checked and compiled.
--
-- A workflow is a definition of kind workflow. It is given as one document or
-- as an array of step_spec, which is the same, and kept twice: as it was given
-- (definition.document) and compiled (steps, step_names, plan), with numbers
-- for names and with the versions of what its steps run. A step with a handler
-- of its own gets a definition that nobody sees, "orchestrator.step.<workflow>.<step>"
-- ("<workflow>+" of steps that were added to a run: not purged with it).

CREATE FUNCTION orchestrator.step(name text, handler text DEFAULT NULL, kind text DEFAULT 'function', definition text DEFAULT NULL,
    needs text[] DEFAULT '{}', input jsonb DEFAULT NULL, "when" text DEFAULT NULL, each text DEFAULT NULL,
    max_parallel int DEFAULT NULL, wait_for text DEFAULT NULL, sleep interval DEFAULT NULL, on_failure text DEFAULT 'fail',
    optional boolean DEFAULT NULL, undo text DEFAULT NULL, repeat_while text DEFAULT NULL, weight float8 DEFAULT NULL,
    description text DEFAULT NULL, estimated_duration interval DEFAULT NULL, on_timeout text DEFAULT NULL,
    timeout interval DEFAULT NULL, max_repeats int DEFAULT NULL, queue text DEFAULT NULL, priority int DEFAULT NULL,
    max_attempts int DEFAULT NULL, backoff text DEFAULT NULL, retry_delay interval DEFAULT NULL,
    max_retry_delay interval DEFAULT NULL, retry_jitter float8 DEFAULT NULL, retry_budget interval DEFAULT NULL,
    never_retry text[] DEFAULT NULL, retry_priority_step int DEFAULT NULL, queue_timeout interval DEFAULT NULL,
    response_timeout interval DEFAULT NULL, timeout_policy text DEFAULT NULL, max_running int DEFAULT NULL,
    rate_limit int DEFAULT NULL, rate_period interval DEFAULT NULL, notify text DEFAULT NULL, endpoint text DEFAULT NULL,
    request jsonb DEFAULT NULL) RETURNS orchestrator.step_spec
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.step(text, text, text, text, text[], jsonb, text, text, int, text, interval, text, boolean,
    text, text, float8, text, interval, text, interval, int, text, int, int, text, interval, interval, float8, interval,
    text[], int, interval, interval, text, int, int, interval, text, text, jsonb) IS
  'One step of a workflow, for define_workflow(), enqueue_workflow() and add_steps(): what it runs or waits for, what it needs, and how it may fail';

CREATE FUNCTION orchestrator.define_workflow(name text, steps orchestrator.step_spec[], queue text DEFAULT NULL,
    priority int DEFAULT NULL, max_attempts int DEFAULT NULL, backoff text DEFAULT 'exponential',
    retry_delay interval DEFAULT NULL, max_retry_delay interval DEFAULT NULL, retry_jitter float8 DEFAULT NULL,
    retry_budget interval DEFAULT NULL, never_retry text[] DEFAULT NULL, retry_priority_step int DEFAULT NULL,
    timeout interval DEFAULT NULL, queue_timeout interval DEFAULT NULL, response_timeout interval DEFAULT NULL,
    timeout_policy text DEFAULT NULL, max_running int DEFAULT NULL, rate_limit int DEFAULT NULL,
    rate_period interval DEFAULT NULL, notify text DEFAULT 'lifecycle', description text DEFAULT NULL,
    estimated_duration interval DEFAULT NULL, metadata jsonb DEFAULT NULL, owner text DEFAULT NULL,
    success_callback text DEFAULT NULL, failure_callback text DEFAULT NULL, checkpoint_interval int DEFAULT NULL,
    max_steps int DEFAULT NULL, max_depth int DEFAULT NULL, context jsonb DEFAULT NULL) RETURNS int
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.define_workflow(text, orchestrator.step_spec[], text, int, int, text, interval, interval, float8,
    interval, text[], int, interval, interval, interval, text, int, int, interval, text, text, interval, jsonb, text, text,
    text, int, int, int, jsonb) IS
  'Describes a workflow; returns its version, as define() does. How often and when to retry, response_timeout and notify are those of its steps that have a handler and do not say otherwise; the rest is about the run. context says when its context is summarised: {limit, endpoint, model, part}';

CREATE FUNCTION orchestrator.define_workflow(document jsonb) RETURNS int
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.define_workflow(jsonb) IS
  'The same from one document: an object with the parameters by name, and steps, an array of objects with the parameters of step()';

CREATE FUNCTION orchestrator.definition_json(name text, version int DEFAULT NULL, owner text DEFAULT NULL) RETURNS jsonb
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.definition_json(text, int, text) IS
  'A definition as a document: of a workflow the one that define_workflow() takes, else the parameters of define() by name. Without a version the current one';

CREATE FUNCTION orchestrator.purge_definition(name text, version int, force boolean DEFAULT false, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.purge_definition(text, int, boolean, text) IS
  'Deletes one version of a definition that is not the current one. Refused while tasks of it live, unless forced: then they are cancelled; and while a workflow has it as a step';

-- Only what was given, and is not the default.
CREATE FUNCTION orchestrator._step(caller oid, name text, handler text, kind text, definition text, needs text[], input jsonb,
    "when" text, each text, max_parallel int, wait_for text, sleep interval, on_failure text, optional boolean, undo text,
    repeat_while text, weight float8, description text, estimated_duration interval, on_timeout text, timeout interval,
    max_repeats int, queue text, priority int, max_attempts int, backoff text, retry_delay interval, max_retry_delay interval,
    retry_jitter float8, retry_budget interval, never_retry text[], retry_priority_step int, queue_timeout interval,
    response_timeout interval, timeout_policy text, max_running int, rate_limit int, rate_period interval, notify text,
    endpoint text, request jsonb)
  RETURNS orchestrator.step_spec
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres AS $$
BEGIN
  IF name IS NULL OR name = '' THEN
    RAISE EXCEPTION 'a step has no name' USING ERRCODE = 'invalid_parameter_value', HINT = 'Its name is how other steps need it.';
  END IF;
  RETURN jsonb_strip_nulls(jsonb_build_object(
      'name', name, 'handler', handler, 'kind', nullif(kind, 'function'), 'definition', definition,
      'needs', nullif(needs, '{}'), 'when', "when", 'each', each, 'max_parallel', max_parallel, 'wait_for', wait_for,
      'sleep', sleep, 'on_failure', nullif(on_failure, 'fail'), 'optional', optional, 'undo', undo,
      'repeat_while', repeat_while, 'weight', weight, 'description', description, 'estimated_duration', estimated_duration)
    || jsonb_build_object(
      'on_timeout', on_timeout, 'timeout', timeout, 'max_repeats', max_repeats, 'queue', queue, 'priority', priority,
      'max_attempts', max_attempts, 'backoff', backoff, 'retry_delay', retry_delay, 'max_retry_delay', max_retry_delay,
      'retry_jitter', retry_jitter, 'retry_budget', retry_budget, 'never_retry', never_retry,
      'retry_priority_step', retry_priority_step, 'queue_timeout', queue_timeout, 'response_timeout', response_timeout,
      'timeout_policy', timeout_policy, 'max_running', max_running, 'rate_limit', rate_limit, 'rate_period', rate_period,
      'notify', notify, 'endpoint', endpoint))
    || CASE WHEN request IS NULL THEN '{}' ELSE jsonb_build_object('request', request) END
    || CASE WHEN input IS NULL THEN '{}' ELSE jsonb_build_object('input', input) END;
END
$$;

-- Keys ---------------------------------------------------------------------

-- The keys of a document and the types of their values.
CREATE FUNCTION orchestrator._document_keys(part text) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN '{"name": "string", "description": "string", "queue": "string", "priority": "integer", "max_attempts": "integer",
           "backoff": "string", "retry_delay": "interval", "max_retry_delay": "interval", "retry_jitter": "number",
           "retry_budget": "interval", "never_retry": "strings", "retry_priority_step": "integer", "timeout": "interval",
           "queue_timeout": "interval", "response_timeout": "interval", "timeout_policy": "string", "max_running": "integer",
           "rate_limit": "integer", "rate_period": "interval", "notify": "string", "estimated_duration": "interval"}'::jsonb
    || CASE $1
         WHEN 'step' THEN
           '{"handler": "string", "kind": "string", "definition": "string", "needs": "strings", "input": "any", "when": "path",
             "each": "path", "max_parallel": "integer", "wait_for": "string", "sleep": "interval", "on_failure": "string",
             "optional": "boolean", "undo": "string", "repeat_while": "path", "weight": "number", "on_timeout": "string",
             "max_repeats": "integer", "endpoint": "string", "request": "any"}'::jsonb
         ELSE
           '{"metadata": "any", "owner": "string", "success_callback": "string", "failure_callback": "string",
             "checkpoint_interval": "integer", "max_steps": "integer", "max_depth": "integer", "context": "any", "steps": "any"}'::jsonb
       END;
END
$$;

-- A document with its keys and the types of their values checked: without
-- nulls, and intervals in one spelling.
CREATE FUNCTION orchestrator._check_document(what text, document jsonb, part text) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_keys jsonb := orchestrator._document_keys($3);
  v_key  text;
  v_type text;
  v_kind text;
  v      jsonb;
  v_good boolean;
  v_all  jsonb := $2;
BEGIN
  FOR v_key, v IN SELECT e.key, e.value FROM jsonb_each($2) e LOOP
    v_type := v_keys ->> v_key;
    IF v_type IS NULL THEN
      RAISE EXCEPTION '%: unknown key "%"', $1, v_key
        USING ERRCODE = 'invalid_parameter_value',
              HINT = format('The keys of a %s are %s.', $3, (SELECT string_agg(k, ', ' ORDER BY k) FROM jsonb_object_keys(v_keys) k));
    END IF;
    v_kind := jsonb_typeof(v);
    IF v_kind = 'null' THEN
      v_all := v_all - v_key;
      CONTINUE;
    END IF;
    v_good := CASE v_type
                WHEN 'any' THEN true
                WHEN 'path' THEN v_kind = 'string'
                WHEN 'interval' THEN v_kind = 'string'
                WHEN 'integer' THEN v_kind = 'number' AND v::numeric % 1 = 0 AND abs(v::numeric) <= 2147483647
                WHEN 'strings' THEN v_kind = 'array' AND NOT v @? '$[*] ? (@.type() != "string")'
                ELSE v_kind = v_type
              END;
    IF v_good AND v_type = 'interval' THEN
      BEGIN
        v_all := jsonb_set(v_all, ARRAY[v_key], to_jsonb((v #>> '{}')::interval::text));
      EXCEPTION WHEN data_exception THEN
        v_good := false;
      END;
    ELSIF v_good AND v_type = 'integer' THEN
      v_all := jsonb_set(v_all, ARRAY[v_key], to_jsonb(v::int));
    ELSIF v_good AND v_type = 'path' THEN
      PERFORM orchestrator._check_path($1, v_key, v #>> '{}');
    END IF;
    IF NOT v_good THEN
      RAISE EXCEPTION '%, key "%": % is not %', $1, v_key, left(v::text, 100),
          CASE v_type WHEN 'path' THEN 'a string' WHEN 'interval' THEN 'an interval' WHEN 'integer' THEN 'an integer'
                      WHEN 'strings' THEN 'an array of strings' ELSE 'a ' || v_type END
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
  END LOOP;
  RETURN v_all;
END
$$;

-- A path must parse, and must not name variables: there are none.
CREATE FUNCTION orchestrator._check_path(what text, key text, path text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
  v_path text;
BEGIN
  BEGIN
    v_path := $3::jsonpath::text;
  EXCEPTION WHEN syntax_error OR data_exception OR feature_not_supported THEN
    RAISE EXCEPTION '%, key "%": path % does not parse', $1, $2, left($3, 200)
      USING ERRCODE = 'invalid_parameter_value', DETAIL = sqlerrm,
            HINT = CASE WHEN $2 = 'input' THEN 'A string that begins with $ is an SQL/JSON path; write $$ for a literal $.'
                        ELSE 'Write an SQL/JSON path like $.steps.a.count > 0.' END;
  END;
  -- in this form a variable is $"name"
  IF strpos(v_path, '$"') > 0 AND regexp_replace(v_path, E'"(\\\\.|[^"\\\\])*"', '"', 'g') LIKE '%$"%' THEN
    RAISE EXCEPTION '%, key "%": path % names a variable', $1, $2, left($3, 200)
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'There are none: $.input, $.steps, $.item and so on are what a path can take'
                   || CASE WHEN $2 = 'input' THEN '; write $$ for a literal $.' ELSE '.' END;
  END IF;
END
$body$;

-- Everything about a step that can be wrong by itself. Returns it as
-- _check_document does, without what is the default anyway.
CREATE FUNCTION orchestrator._check_step(spec jsonb, place int) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
  v_policy constant text[] := '{max_attempts,backoff,retry_delay,max_retry_delay,retry_jitter,retry_budget,never_retry,retry_priority_step,timeout,queue_timeout,response_timeout,timeout_policy,max_running,rate_limit,rate_period,notify}';
  s      jsonb := $1;
  v_what text;
  v_path text;
  v_bad  text;
BEGIN
  IF jsonb_typeof(s) IS DISTINCT FROM 'object' OR coalesce(jsonb_typeof(s -> 'name') <> 'string', true) THEN
    RAISE EXCEPTION 'step number % is not an object with a name', $2
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Make it with orchestrator.step().';
  END IF;
  PERFORM orchestrator._require_name('step', s ->> 'name');
  v_what := format('step "%s"', s ->> 'name');
  s := orchestrator._check_document(v_what, s, 'step');
  -- what it does
  IF NOT s ?| '{handler,endpoint,request,definition,wait_for,sleep}' AND s ->> 'kind' IS DISTINCT FROM 'checkpoint' THEN
    PERFORM orchestrator._require(false, v_what || ' does nothing', 'Give it a handler, an endpoint, a definition, wait_for or sleep.');
  END IF;
  v_bad := CASE WHEN s ?& '{handler,definition}' THEN 'handler and definition'
                WHEN s ?& '{handler,endpoint}' THEN 'handler and endpoint'
                WHEN s ?& '{endpoint,definition}' THEN 'endpoint and definition'
                WHEN s ?& '{endpoint,wait_for}' THEN 'endpoint and wait_for'
                WHEN s ?& '{endpoint,sleep}' THEN 'endpoint and sleep'
                WHEN s ?& '{wait_for,sleep}' THEN 'wait_for and sleep'
                WHEN s ?& '{handler,wait_for}' THEN 'handler and wait_for'
                WHEN s ?& '{handler,sleep}' THEN 'handler and sleep'
                WHEN s ?& '{definition,wait_for}' THEN 'definition and wait_for'
                WHEN s ?& '{definition,sleep}' THEN 'definition and sleep'
                WHEN s ->> 'kind' = 'checkpoint' AND s ?| '{handler,endpoint,definition,wait_for,sleep}' THEN 'kind checkpoint and something else to do'
                WHEN s ?& '{each,repeat_while}' THEN 'each and repeat_while' END;
  IF v_bad IS NOT NULL THEN
    PERFORM orchestrator._require(false, format('%s has %s, which contradict each other', v_what, v_bad), 'Make two steps of it.');
  END IF;
  -- what goes only with something else
  v_bad := CASE WHEN s ? 'kind' AND NOT s ?| '{handler,endpoint,request}' AND s ->> 'kind' NOT IN ('function', 'checkpoint') THEN 'kind without handler'
                WHEN s ? 'request' AND NOT s ? 'endpoint' AND (s ?| '{handler,definition,wait_for,sleep}' OR s ->> 'kind' IS DISTINCT FROM 'tool') THEN 'request without endpoint'
                WHEN s ? 'endpoint' AND coalesce(s ->> 'kind', 'function') <> ALL (orchestrator._call_kinds()) THEN 'endpoint without kind http'
                WHEN s ? 'max_parallel' AND NOT s ? 'each' THEN 'max_parallel without each'
                WHEN s ? 'max_repeats' AND NOT s ? 'repeat_while' THEN 'max_repeats without repeat_while'
                WHEN s ? 'on_timeout' AND NOT s ?& '{wait_for,timeout}' THEN 'on_timeout without wait_for and timeout' END;
  IF v_bad IS NOT NULL THEN
    PERFORM orchestrator._require(false, format('%s has %s', v_what, v_bad), 'Leave it out, or give what it is about.');
  END IF;
  IF s ?| '{wait_for,sleep}' THEN
    SELECT k INTO v_bad
      FROM jsonb_object_keys(s) k
      WHERE k = ANY (v_policy || '{input,each,repeat_while,undo,queue,priority}'::text[]) AND NOT (k = 'timeout' AND s ? 'wait_for')
      ORDER BY k LIMIT 1;
    PERFORM orchestrator._require(v_bad IS NULL, format('%s has %s, but only waits', v_what, v_bad), 'Make two steps of it.');
  ELSIF s ->> 'kind' = 'checkpoint' THEN
    SELECT k INTO v_bad FROM jsonb_object_keys(s) k WHERE k = ANY (v_policy || '{each,repeat_while,undo,queue,priority}'::text[]) ORDER BY k LIMIT 1;
    PERFORM orchestrator._require(v_bad IS NULL, format('%s has %s, but only makes a checkpoint', v_what, v_bad), 'Make two steps of it.');
  ELSIF s ? 'definition' AND s ?| v_policy THEN
    SELECT k INTO v_bad FROM jsonb_object_keys(s) k WHERE k = ANY (v_policy) ORDER BY k LIMIT 1;
    PERFORM orchestrator._require(false, format('%s has %s, which its definition says', v_what, v_bad),
                                  'Give it to orchestrator.define(), or give the step a handler instead of a definition.');
  END IF;
  -- values
  IF s ? 'kind' AND s ->> 'kind' NOT IN ('function', 'sql', 'procedure', 'utility', 'remote', 'checkpoint') AND s ->> 'kind' <> ALL (orchestrator._call_kinds()) THEN
    PERFORM orchestrator._require(false, format('%s, key "kind": unknown kind "%s"', v_what, s ->> 'kind'),
                                  'Kinds are function, sql, procedure, utility, remote, http, llm, embedding, tool, webhook, summarize and checkpoint; a workflow is named by definition.');
  END IF;
  IF s ? 'on_failure' THEN
    PERFORM orchestrator._require(s ->> 'on_failure' IN ('fail', 'continue', 'skip_dependants'),
                                  format('%s, key "on_failure": unknown value "%s"', v_what, s ->> 'on_failure'),
                                  'Say fail, continue or skip_dependants.');
    PERFORM orchestrator._require(s ->> 'on_failure' = 'fail' OR NOT coalesce((s ->> 'optional')::boolean, false),
                                  format('%s has optional and on_failure %s, which contradict each other', v_what, s ->> 'on_failure'),
                                  'An optional step that fails is as one that was skipped.');
  END IF;
  IF s ? 'weight' THEN
    PERFORM orchestrator._require((s ->> 'weight')::numeric BETWEEN 0 AND 1e9,
                                  format('%s, key "weight": must be between 0 and 1e9', v_what));
  END IF;
  IF s ? 'max_parallel' THEN
    PERFORM orchestrator._require((s ->> 'max_parallel')::int > 0, format('%s, key "max_parallel": must be positive', v_what));
  END IF;
  IF s ? 'max_repeats' THEN
    PERFORM orchestrator._require((s ->> 'max_repeats')::int BETWEEN 1 AND 1000000,
                                  format('%s, key "max_repeats": must be between 1 and 1000000', v_what));
  END IF;
  IF s ? 'priority' THEN
    PERFORM orchestrator._require((s ->> 'priority')::int BETWEEN -1000000 AND 1000000,
                                  format('%s, key "priority": must be between -1000000 and 1000000', v_what));
  END IF;
  IF s ? 'sleep' THEN
    PERFORM orchestrator._require((s ->> 'sleep')::interval BETWEEN interval '0' AND interval '100 years',
                                  format('%s, key "sleep": must not be negative, nor exceed 100 years', v_what));
  ELSIF s ?& '{wait_for,timeout}' THEN
    PERFORM orchestrator._require((s ->> 'timeout')::interval > interval '0' AND (s ->> 'timeout')::interval <= interval '100 years',
                                  format('%s, key "timeout": must be positive, and not exceed 100 years', v_what));
  END IF;
  IF s ? 'wait_for' THEN
    PERFORM orchestrator._require(s ->> 'wait_for' <> '' AND octet_length(s ->> 'wait_for') <= 200,
                                  format('%s, key "wait_for": the name of a signal must have 1 to 200 bytes', v_what));
  END IF;
  IF s ? 'estimated_duration' THEN
    PERFORM orchestrator._require((s ->> 'estimated_duration')::interval BETWEEN interval '0' AND interval '100 years',
                                  format('%s, key "estimated_duration": must not be negative, nor exceed 100 years', v_what));
  END IF;
  IF s ? 'input' AND jsonb_typeof(s -> 'input') IN ('string', 'object', 'array') THEN
    FOR v_path IN
      SELECT p.value #>> '{}' FROM jsonb_path_query(s -> 'input', 'strict $.** ? (@.type() == "string" && @ starts with "$")') p(value)
    LOOP
      IF v_path NOT LIKE '$$%' THEN
        PERFORM orchestrator._check_path(v_what, 'input', v_path);
      END IF;
    END LOOP;
  END IF;
  -- what is the default is left out
  IF s ->> 'kind' = 'function' THEN s := s - 'kind'; END IF;
  IF s ->> 'on_failure' = 'fail' THEN s := s - 'on_failure'; END IF;
  IF s ->> 'on_timeout' = 'fail' THEN s := s - 'on_timeout'; END IF;
  IF s -> 'optional' = 'false' THEN s := s - 'optional'; END IF;
  IF s -> 'needs' = '[]' THEN s := s - 'needs'; END IF;
  RETURN s;
END
$body$;

-- Compile ------------------------------------------------------------------

-- The policy that a document says, in the columns of a definition, with the
-- defaults of define().
CREATE FUNCTION orchestrator._policy(d orchestrator.definition, document jsonb) RETURNS orchestrator.definition
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p jsonb := $2;
BEGIN
  d.priority := coalesce((p ->> 'priority')::int, 0);
  d.max_attempts := coalesce((p ->> 'max_attempts')::int, 3);
  d.backoff := coalesce(p ->> 'backoff', 'exponential');
  d.retry_delay := coalesce((p ->> 'retry_delay')::interval, '1 second');
  d.max_retry_delay := coalesce((p ->> 'max_retry_delay')::interval, greatest('1 hour', d.retry_delay));
  d.retry_jitter := coalesce((p ->> 'retry_jitter')::float8, 0.1);
  d.retry_budget := (p ->> 'retry_budget')::interval;
  d.never_retry := CASE WHEN p ? 'never_retry' THEN ARRAY(SELECT jsonb_array_elements_text(p -> 'never_retry')) ELSE '{}' END;
  d.retry_priority_step := coalesce((p ->> 'retry_priority_step')::int, 1);
  d.timeout := (p ->> 'timeout')::interval;
  d.queue_timeout := (p ->> 'queue_timeout')::interval;
  d.response_timeout := (p ->> 'response_timeout')::interval;
  d.timeout_policy := coalesce(p ->> 'timeout_policy', 'retry');
  d.max_running := (p ->> 'max_running')::int;
  d.rate_limit := (p ->> 'rate_limit')::int;
  d.rate_period := (p ->> 'rate_period')::interval;
  d.notify := coalesce(p ->> 'notify', 'lifecycle');
  RETURN d;
END
$$;

-- The name of a definition that nobody sees.
CREATE FUNCTION orchestrator._hidden_name(what text, workflow text, step text) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_name text := format('orchestrator.%s.%s.%s', $1, regexp_replace($2, E'^orchestrator\\.', ''), $3);
BEGIN
  RETURN CASE WHEN octet_length(v_name) <= 200 THEN v_name
              ELSE left(v_name, CASE WHEN octet_length(v_name) = length(v_name) THEN 167 ELSE 40 END) || '.' || md5(v_name) END;
END
$$;

-- A cycle in a graph, as text; null: there is none. The edges go from[i] -> onto[i].
CREATE FUNCTION orchestrator._find_cycle(names text[], source int[], target int[]) RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_n     int := cardinality($1);
  v_needs int[] := array_fill(0, ARRAY[v_n]);
  v_first int[] := array_fill(0, ARRAY[v_n + 1]);
  v_next  int[];
  v_todo  int[];
  v_done  int := 0;
  v_count int := 0;
  v_back  int[];
  v_seen  int[];
  v_at    int;
  v_path  text[] := '{}';
BEGIN
  -- the edges by their source: those of i are v_next[v_first[i] + 1 .. v_first[i + 1]]
  FOR i IN 1 .. cardinality($2) LOOP
    v_needs[$3[i]] := v_needs[$3[i]] + 1;
    v_first[$2[i] + 1] := v_first[$2[i] + 1] + 1;
  END LOOP;
  FOR i IN 1 .. v_n LOOP
    v_first[i + 1] := v_first[i + 1] + v_first[i];
  END LOOP;
  v_next := ARRAY(SELECT e.t FROM unnest($2, $3) e(s, t) ORDER BY e.s);
  -- take away what needs nothing, until nothing or a cycle is left
  v_todo := array_fill(0, ARRAY[v_n]);
  FOR i IN 1 .. v_n LOOP
    IF v_needs[i] = 0 THEN
      v_count := v_count + 1;
      v_todo[v_count] := i;
    END IF;
  END LOOP;
  WHILE v_done < v_count LOOP
    v_done := v_done + 1;
    v_at := v_todo[v_done];
    FOR i IN v_first[v_at] + 1 .. v_first[v_at + 1] LOOP
      v_needs[v_next[i]] := v_needs[v_next[i]] - 1;
      IF v_needs[v_next[i]] = 0 THEN
        v_count := v_count + 1;
        v_todo[v_count] := v_next[i];
      END IF;
    END LOOP;
  END LOOP;
  IF v_done = v_n THEN
    RETURN NULL;
  END IF;
  -- what is left needs something that is left: going back ends in a circle
  v_back := array_fill(0, ARRAY[v_n]);
  v_seen := array_fill(0, ARRAY[v_n]);
  FOR i IN 1 .. cardinality($2) LOOP
    IF v_needs[$2[i]] > 0 AND v_needs[$3[i]] > 0 THEN
      v_back[$3[i]] := $2[i];
      v_at := $3[i];
    END IF;
  END LOOP;
  WHILE v_seen[v_at] = 0 LOOP
    v_seen[v_at] := 1;
    v_at := v_back[v_at];
  END LOOP;
  -- tell it from its first step on
  v_count := v_at;
  v_done := v_at;
  LOOP
    v_at := v_back[v_at];
    v_done := least(v_done, v_at);
    EXIT WHEN v_at = v_count;
  END LOOP;
  v_at := v_done;
  LOOP
    v_path := $1[v_at] || v_path;
    EXIT WHEN v_at = v_done AND cardinality(v_path) > 1;
    v_at := v_back[v_at];
  END LOOP;
  IF cardinality(v_path) > 20 THEN
    v_path := v_path[1:10] || '...'::text || v_path[cardinality(v_path) - 9:];
  END IF;
  RETURN array_to_string(v_path, ' -> ');
END
$$;

-- Put together what the steps are and who needs whom.
CREATE FUNCTION orchestrator._link_steps(known int, compiled jsonb[], definitions int[], queues int[], priorities int[],
    attempts int[], flags int[], source int[], target int[], OUT steps jsonb, OUT plan int[])
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET jit = off AS $$
BEGIN
  WITH edge AS MATERIALIZED (
    SELECT DISTINCT e.s, e.t FROM unnest($8, $9) e(s, t)
  ), need AS MATERIALIZED (
    SELECT e.t, jsonb_agg(e.s ORDER BY e.s) AS needs, count(*) AS n FROM edge e GROUP BY e.t
  ), next AS MATERIALIZED (
    SELECT e.s, jsonb_agg(e.t ORDER BY e.t) AS nexts, count(*) AS n, min(e.t) AS one FROM edge e GROUP BY e.s
  )
  SELECT jsonb_agg(c.step || jsonb_build_object('needs', coalesce(need.needs, '[]'), 'next', coalesce(next.nexts, '[]')) ORDER BY c.n),
         array_agg(ARRAY[c.definition, c.queue, c.priority, c.attempts,
                         CASE WHEN next.n IS NULL THEN 0
                              WHEN next.n = 1 AND $7[next.one - $1] & 4 = 4 AND theirs.n = 1 THEN next.one
                              ELSE -1 END,
                         c.flags | CASE WHEN need.n IS NULL THEN 1 ELSE 0 END | CASE WHEN next.n IS NULL THEN 2 ELSE 0 END]
                   ORDER BY c.n)
    INTO steps, plan
    FROM unnest($2, $3, $4, $5, $6, $7) WITH ORDINALITY c(step, definition, queue, priority, attempts, flags, n)
    LEFT JOIN need ON need.t = c.n + $1
    LEFT JOIN next ON next.s = c.n + $1
    LEFT JOIN need theirs ON theirs.t = next.one;
END
$$;

-- Compile steps for a role: what they need gets its number, what they run its
-- definition. known are the names of steps that exist already, with the numbers
-- from 1; the new ones follow. defaults are the retry policy of steps with a
-- handler; judged says that the workflow looks at each step that ends. What is
-- returned is of the new steps only; document are their specs as they are kept.
CREATE FUNCTION orchestrator._compile_steps(caller oid, owner int, workflow text, specs jsonb, known text[],
    defaults jsonb DEFAULT '{}', judged boolean DEFAULT false,
    OUT steps jsonb, OUT names text[], OUT plan int[], OUT document jsonb)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_known      int := coalesce(cardinality(known), 0);
  v_n          int := 0;
  v_specs      jsonb[] := '{}';
  v_all        text[];
  v_number     jsonb;
  v_source     int[] := '{}';
  v_target     int[] := '{}';
  v_edges      int := 0;
  v_cyclic     boolean := false;
  v_branches   int[] := '{}';
  v_name       text;
  v_at         int;
  s            jsonb;
  c            jsonb;
  v_key        text;
  v_hint       text;
  v_handlers   jsonb := '{}';
  v_signature  text;
  d            orchestrator.definition;
  u            orchestrator.definition;
  v_kept       record;
  v_changed    boolean := false;
  v_compiled   jsonb[] := '{}';
  v_definition int[] := '{}';
  v_queue      int[] := '{}';
  v_priority   int[] := '{}';
  v_attempts   int[] := '{}';
  v_flags      int[] := '{}';
BEGIN
  PERFORM orchestrator._require(coalesce(jsonb_typeof(specs) = 'array', false), format('the steps of workflow "%s" are not an array', workflow));
  PERFORM orchestrator._require(specs <> '[]', format('workflow "%s" has no steps', workflow), 'Make them with orchestrator.step().');
  PERFORM orchestrator._require(jsonb_array_length(specs) + v_known <= 10000, format('workflow "%s" has more than 10000 steps', workflow),
                                'Use each for many items, and workflows as steps.');
  -- each by itself
  names := '{}';
  FOR s IN SELECT e.value FROM jsonb_array_elements(specs) WITH ORDINALITY e(value, n) ORDER BY e.n LOOP
    v_n := v_n + 1;
    v_specs[v_n] := orchestrator._check_step(s, v_n);
    names[v_n] := v_specs[v_n] ->> 'name';
  END LOOP;
  v_all := known || names;
  SELECT x.name INTO v_name FROM unnest(v_all) WITH ORDINALITY x(name, n)
    GROUP BY x.name HAVING count(*) > 1 AND max(x.n) > v_known ORDER BY max(x.n) LIMIT 1;
  PERFORM orchestrator._require(v_name IS NULL, format('workflow "%s" has two steps "%s"', workflow, v_name), 'The name of a step is unique in its workflow.');
  v_number := (SELECT jsonb_object_agg(x.name, x.n) FROM unnest(v_all) WITH ORDINALITY x(name, n));
  -- who needs whom
  FOR i IN 1 .. v_n LOOP
    FOR v_name IN SELECT x FROM jsonb_array_elements_text(v_specs[i] -> 'needs') x LOOP
      v_at := (v_number ->> v_name)::int;
      PERFORM orchestrator._require(v_at IS NOT NULL, format('step "%s", key "needs": there is no step "%s"', names[i], v_name),
                                    'A step needs others of the same workflow, by their names.');
      v_edges := v_edges + 1;
      v_source[v_edges] := v_at;
      v_target[v_edges] := i + v_known;
      v_cyclic := v_cyclic OR v_at >= i + v_known;
    END LOOP;
    IF jsonb_array_length(v_specs[i] -> 'needs') > 1 THEN
      SELECT x INTO v_name FROM jsonb_array_elements_text(v_specs[i] -> 'needs') x GROUP BY x HAVING count(*) > 1 LIMIT 1;
      PERFORM orchestrator._require(v_name IS NULL, format('step "%s", key "needs": names step "%s" twice', names[i], v_name));
    END IF;
    v_name := v_specs[i] ->> 'on_timeout';
    IF v_name IS NOT NULL AND v_name NOT IN ('fail', 'continue') THEN
      v_at := (v_number ->> v_name)::int;
      PERFORM orchestrator._require(v_at IS NOT NULL AND v_at > v_known, format('step "%s", key "on_timeout": there is no step "%s"', names[i], v_name),
                                    'Say fail, continue, or the name of a step that runs only then.');
      v_edges := v_edges + 1;
      v_source[v_edges] := i + v_known;
      v_target[v_edges] := v_at;
      v_cyclic := v_cyclic OR v_at <= i + v_known;
      v_branches := v_branches || v_at - v_known;
    END IF;
  END LOOP;
  IF v_cyclic THEN
    v_name := orchestrator._find_cycle(v_all, v_source, v_target);
    PERFORM orchestrator._require(v_name IS NULL, format('the steps of workflow "%s" need each other: %s', workflow, v_name),
                                  'An arrow leads to a step that needs the one before. Take one of them away; repeat_while repeats a step.');
  END IF;
  -- what they run
  FOR i IN 1 .. v_n LOOP
    s := v_specs[i];
    c := s - '{handler,endpoint,request,definition,kind,needs,undo,queue,on_timeout,max_attempts,backoff,retry_delay,max_retry_delay,retry_jitter,retry_budget,never_retry,retry_priority_step,queue_timeout,response_timeout,timeout_policy,max_running,rate_limit,rate_period,notify}'::text[];
    d := NULL;
    u := NULL;
    v_queue[i] := 0;
    v_key := NULL;
    BEGIN
      IF s ?| '{handler,endpoint,request}' THEN
        v_key := CASE WHEN s ? 'handler' THEN 'handler' ELSE 'endpoint' END;
        d.owner := owner;
        d.name := orchestrator._hidden_name('step', workflow, names[i]);
        d.kind := coalesce(s ->> 'kind', 'function');
        d.handler := s ->> 'handler';
        d.endpoint := s ->> 'endpoint';
        d.request := CASE WHEN s ?| '{endpoint,request}' THEN coalesce(s -> 'request', '{}') END;
        PERFORM orchestrator._require(btrim(d.handler, E' \t\r\n;') <> '', 'it is empty', 'Give the name of a function or procedure, or a command.');
        IF d.kind IN ('function', 'procedure') THEN
          v_name := d.kind || ' ' || d.handler;
          IF NOT v_handlers ? v_name THEN
            v_handlers := v_handlers || jsonb_build_object(v_name, (SELECT to_jsonb(h) FROM orchestrator._find_handler(caller, d.kind, d.handler) h));
          END IF;
          d.handler := v_handlers -> v_name ->> 'signature';
          d.handler_owner := v_handlers -> v_name ->> 'handler_owner';
          v_specs[i] := jsonb_set(s, '{handler}', to_jsonb(left(d.handler, -7)));
        END IF;
        v_key := NULL;
        d := orchestrator._policy(d, defaults || s - 'priority'::text);
        c := c - 'timeout';
        PERFORM orchestrator._check_definition(d);
        PERFORM orchestrator._check_call(caller, d);
      ELSIF s ? 'definition' THEN
        v_key := 'definition';
        -- a step that is added while it runs may: max_depth ends that
        PERFORM orchestrator._require(v_known > 0 OR s ->> 'definition' <> workflow, 'a workflow cannot be a step of itself', 'Use repeat_while, or enqueue it from a step.');
        d := orchestrator._find_definition(caller, s ->> 'definition');
        v_queue[i] := coalesce(d.queue, 0);
        IF d.priority <> 0 AND NOT s ? 'priority' THEN
          c := c || jsonb_build_object('priority', d.priority);
        END IF;
      END IF;
      IF s ? 'queue' THEN
        v_key := 'queue';
        v_queue[i] := orchestrator._resolve_queue(caller, s ->> 'queue');
      END IF;
      IF s ? 'undo' THEN
        v_key := 'undo';
        IF strpos(s ->> 'undo', '.') = 0 THEN
          u := orchestrator._find_definition(caller, s ->> 'undo');
          PERFORM orchestrator._require(u.kind <> 'workflow', format('"%s" is a workflow', u.name), 'Name a function or another definition.');
        ELSE
          u.owner := owner;
          u.name := orchestrator._hidden_name('undo', workflow, names[i]);
          u.kind := 'function';
          SELECT h.signature, h.handler_owner INTO u.handler, u.handler_owner
            FROM orchestrator._find_handler(caller, 'function', s ->> 'undo') h;
          v_specs[i] := jsonb_set(v_specs[i], '{undo}', to_jsonb(left(u.handler, -7)));
          u := orchestrator._policy(u, defaults || CASE WHEN s ?| '{handler,endpoint,request}' THEN s - 'priority'::text ELSE '{}' END);
        END IF;
      END IF;
    EXCEPTION
      WHEN invalid_parameter_value OR undefined_object OR undefined_function OR invalid_function_definition
           OR insufficient_privilege OR ambiguous_alias THEN
        GET STACKED DIAGNOSTICS v_hint = PG_EXCEPTION_HINT;
        RAISE EXCEPTION 'step "%"%: %', names[i], CASE WHEN v_key IS NULL THEN '' ELSE format(', key "%s"', v_key) END, sqlerrm
          USING ERRCODE = sqlstate, HINT = v_hint;
    END;
    IF s ?| '{handler,endpoint,request}' THEN
      v_kept := orchestrator._put_definition(d, false);
      d.id := v_kept.id;
      v_changed := v_changed OR v_kept.changed;
    END IF;
    IF u.id IS NULL AND u.name IS NOT NULL THEN
      v_kept := orchestrator._put_definition(u, false);
      u.id := v_kept.id;
      v_changed := v_changed OR v_kept.changed;
    END IF;
    v_name := s ->> 'on_timeout';
    v_compiled[i] := c || jsonb_strip_nulls(jsonb_build_object(
      'kind', CASE WHEN s ->> 'kind' = 'checkpoint' THEN 'checkpoint' WHEN d.id IS NULL THEN 'wait' WHEN d.kind = 'workflow' THEN 'workflow' ELSE 'task' END,
      'definition', d.id, 'undo', u.id, 'queue', nullif(v_queue[i], 0),
      'on_timeout', CASE WHEN v_name IN ('fail', 'continue') THEN to_jsonb(v_name) ELSE v_number -> v_name END,
      'max_repeats', CASE WHEN s ? 'repeat_while' THEN coalesce((s ->> 'max_repeats')::int, 100) END));
    v_definition[i] := coalesce(d.id, 0);
    v_priority[i] := coalesce((v_compiled[i] ->> 'priority')::int, (-2147483648)::int);
    v_attempts[i] := coalesce(d.max_attempts, 1);
    v_flags[i] := CASE WHEN d.kind IN ('function', 'sql') AND NOT s ?| '{when,each,repeat_while,input}'
                            AND d.queue_timeout IS NULL AND d.success_callback IS NULL AND d.failure_callback IS NULL THEN 4 ELSE 0 END
                  | CASE WHEN judged OR s ? 'repeat_while' THEN 8 ELSE 0 END;
  END LOOP;
  IF v_changed THEN
    PERFORM orchestrator._invalidate();
  END IF;
  -- they start when a wait ended so, and not when it ended
  FOREACH v_at IN ARRAY v_branches LOOP
    v_flags[v_at] := v_flags[v_at] & ~4;
  END LOOP;
  SELECT l.steps, l.plan INTO steps, plan
    FROM orchestrator._link_steps(v_known, v_compiled, v_definition, v_queue, v_priority, v_attempts, v_flags, v_source, v_target) l;
  document := to_jsonb(v_specs);
END
$$;

-- The definition that a document of a workflow describes, checked and compiled.
CREATE FUNCTION orchestrator._compile(role oid, document jsonb) RETURNS orchestrator.definition
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres AS $$
DECLARE
  v_steps constant text[] := '{max_attempts,backoff,retry_delay,max_retry_delay,retry_jitter,retry_budget,never_retry,retry_priority_step,response_timeout,notify}';
  v_what  text;
  v_doc   jsonb;
  v_specs jsonb;
  v_hint  text;
  v_judge boolean;
  d       orchestrator.definition;
BEGIN
  d.owner := orchestrator._owner($1);
  d.name := $2 ->> 'name';
  v_what := format('workflow "%s"', d.name);
  v_doc := orchestrator._check_document(v_what, $2 - 'steps'::text, 'workflow') - 'owner'::text;
  IF v_doc ->> 'backoff' = 'exponential' THEN v_doc := v_doc - 'backoff'; END IF;
  IF v_doc ->> 'notify' = 'lifecycle' THEN v_doc := v_doc - 'notify'; END IF;
  d := orchestrator._policy(d, v_doc);
  d.kind := 'function';
  d.success_callback := v_doc ->> 'success_callback';
  d.failure_callback := v_doc ->> 'failure_callback';
  d.checkpoint_interval := (v_doc ->> 'checkpoint_interval')::int;
  d.max_steps := (v_doc ->> 'max_steps')::int;
  d.max_depth := (v_doc ->> 'max_depth')::int;
  d.description := v_doc ->> 'description';
  d.estimated_duration := (v_doc ->> 'estimated_duration')::interval;
  d.metadata := v_doc -> 'metadata';
  BEGIN
    PERFORM orchestrator._check_definition(d);
    IF v_doc ? 'queue' THEN
      d.queue := orchestrator._resolve_queue($1, v_doc ->> 'queue');
    END IF;
    PERFORM orchestrator._check_callbacks($1, d);
    PERFORM orchestrator._check_context($1, v_doc -> 'context');
  EXCEPTION WHEN invalid_parameter_value OR undefined_object OR ambiguous_alias THEN
    GET STACKED DIAGNOSTICS v_hint = PG_EXCEPTION_HINT;
    RAISE EXCEPTION '%: %', v_what, sqlerrm USING ERRCODE = sqlstate, HINT = v_hint;
  END;
  -- a run is one attempt; how to retry is about its steps
  d := orchestrator._policy(d, v_doc - v_steps || jsonb_build_object('max_attempts', 1, 'notify', d.notify));
  d.kind := 'workflow';
  v_judge := d.checkpoint_interval IS NOT NULL;
  SELECT c.steps, c.names, c.plan, c.document INTO d.steps, d.step_names, d.plan, v_specs
    FROM orchestrator._compile_steps($1, d.owner, d.name, $2 -> 'steps', '{}', orchestrator._step_defaults(v_doc), v_judge) c;
  IF cardinality(d.step_names) > d.max_steps THEN
    RAISE EXCEPTION '% has % steps, and max_steps is %', v_what, cardinality(d.step_names), d.max_steps
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Raise max_steps.';
  END IF;
  d.document := v_doc || jsonb_build_object('steps', v_specs);
  RETURN d;
END
$$;

-- What a workflow's document says about those of its steps that have a handler.
CREATE FUNCTION orchestrator._step_defaults(document jsonb) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT coalesce(jsonb_object_agg(e.key, e.value), '{}') FROM jsonb_each($1) e
          WHERE e.key = ANY ('{max_attempts,backoff,retry_delay,max_retry_delay,retry_jitter,retry_budget,never_retry,retry_priority_step,response_timeout,notify}'));
END
$$;

CREATE FUNCTION orchestrator._define_workflow(caller oid, document jsonb) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d      orchestrator.definition;
  v_role oid;
  v_id   int;
  v_used int[];
BEGIN
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._require(coalesce(jsonb_typeof($2) = 'object', false), 'the document of a workflow is not an object',
                                'Give an object with name and steps.');
  PERFORM orchestrator._require(coalesce(jsonb_typeof($2 -> 'name') IN ('string', 'null'), true), 'the name of a workflow is not a string');
  PERFORM orchestrator._require_name('workflow', $2 ->> 'name');
  PERFORM orchestrator._require(coalesce(jsonb_typeof($2 -> 'owner') IN ('string', 'null'), true), 'the owner of a workflow is not a string');
  v_role := orchestrator._definer($1, $2 ->> 'owner');
  -- nothing of it is purged meanwhile
  v_id := orchestrator._owner(v_role);
  PERFORM FROM orchestrator.owner o WHERE o.id = v_id FOR NO KEY UPDATE;
  d := orchestrator._compile(v_role, $2);
  -- what it pins must not be purged before this is there
  v_used := ARRAY(SELECT DISTINCT p.value::int FROM jsonb_array_elements(d.steps) s(value)
                  CROSS JOIN LATERAL (VALUES (s.value -> 'definition'), (s.value -> 'undo')) p(value) WHERE p.value IS NOT NULL);
  FOR v_id IN
    SELECT x.id FROM orchestrator.definition x WHERE x.id = ANY (v_used) AND x.name NOT LIKE 'orchestrator.%' ORDER BY x.id FOR KEY SHARE
  LOOP
    v_used := array_remove(v_used, v_id);
  END LOOP;
  PERFORM orchestrator._require(NOT EXISTS (SELECT FROM unnest(v_used) u(id) LEFT JOIN orchestrator.definition x ON x.id = u.id WHERE x.id IS NULL),
                                format('a definition that workflow "%s" has as a step was purged just now', d.name), 'Try again.');
  RETURN orchestrator._keep_definition(d, true);
END
$$;

CREATE FUNCTION orchestrator._define_workflow(caller oid, name text, steps orchestrator.step_spec[], queue text,
    priority int, max_attempts int, backoff text, retry_delay interval, max_retry_delay interval, retry_jitter float8,
    retry_budget interval, never_retry text[], retry_priority_step int, timeout interval, queue_timeout interval,
    response_timeout interval, timeout_policy text, max_running int, rate_limit int, rate_period interval, notify text,
    description text, estimated_duration interval, metadata jsonb, owner text, success_callback text,
    failure_callback text, checkpoint_interval int, max_steps int, max_depth int, context jsonb) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres AS $$
BEGIN
  RETURN orchestrator._define_workflow(caller, jsonb_strip_nulls(jsonb_build_object(
      'name', name, 'queue', queue, 'priority', priority, 'max_attempts', max_attempts, 'backoff', backoff,
      'retry_delay', retry_delay, 'max_retry_delay', max_retry_delay, 'retry_jitter', retry_jitter,
      'retry_budget', retry_budget, 'never_retry', never_retry, 'retry_priority_step', retry_priority_step,
      'timeout', timeout, 'queue_timeout', queue_timeout, 'response_timeout', response_timeout,
      'timeout_policy', timeout_policy, 'max_running', max_running, 'rate_limit', rate_limit, 'rate_period', rate_period,
      'notify', notify, 'description', description, 'estimated_duration', estimated_duration, 'owner', owner,
      'success_callback', success_callback, 'failure_callback', failure_callback,
      'checkpoint_interval', checkpoint_interval, 'max_steps', max_steps, 'max_depth', max_depth, 'context', context))
    || CASE WHEN metadata IS NULL THEN '{}' ELSE jsonb_build_object('metadata', metadata) END
    || jsonb_build_object('steps', coalesce(to_jsonb(steps), '[]')));
END
$$;

-- A definition of an owner or, for the caller itself, one that was shared with
-- it; of a version when it is given.
CREATE FUNCTION orchestrator._definition_json(caller oid, name text, version int, owner text) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres AS $$
DECLARE
  v_internal constant text[] := '{id,owner,version,is_current,created_at,handler_owner,queue,metadata,document,steps,step_names,plan,checkpoint_interval,max_steps,max_depth}';
  v_default  constant jsonb := '{"kind": "function", "priority": 0, "max_attempts": 3, "backoff": "exponential", "retry_delay": "00:00:01",
                                 "max_retry_delay": "01:00:00", "retry_jitter": 0.1, "never_retry": [], "retry_priority_step": 1,
                                 "timeout_policy": "retry", "notify": "lifecycle"}';
  v_owner int := orchestrator._owner_for($1, $4);
  d       orchestrator.definition;
BEGIN
  SELECT x.* INTO d FROM orchestrator.definition x
    WHERE x.owner = v_owner AND x.name = $2 AND CASE WHEN $3 IS NULL THEN x.is_current ELSE x.version = $3 END
      AND x.name NOT LIKE 'orchestrator.%';
  IF NOT FOUND AND $4 IS NULL
     AND NOT EXISTS (SELECT FROM orchestrator.definition x WHERE x.owner = v_owner AND x.name = $2 AND x.is_current) THEN
    d := orchestrator._find_definition($1, $2);
    IF d.version <> $3 THEN
      SELECT x.* INTO d FROM orchestrator.definition x WHERE x.owner = d.owner AND x.name = $2 AND x.version = $3;
    END IF;
  END IF;
  IF d.id IS NULL THEN
    RAISE EXCEPTION 'definition "%"% does not exist', $2, coalesce(format(' version %s', $3), '')
      USING ERRCODE = 'undefined_object', HINT = 'The view orchestrator.definition_status shows what there is.';
  ELSIF d.kind = 'workflow' THEN
    RETURN d.document;
  END IF;
  RETURN (SELECT jsonb_object_agg(e.key, e.value)
          FROM jsonb_each(to_jsonb(d) - v_internal) e
          WHERE e.value <> 'null' AND e.value IS DISTINCT FROM v_default -> e.key)
      || CASE WHEN d.kind IN ('function', 'procedure') THEN jsonb_build_object('handler', regexp_replace(d.handler, E'\\(jsonb(\\[\\])?\\)$', '')) ELSE '{}' END
      || CASE WHEN d.queue IS NULL THEN '{}' ELSE (SELECT jsonb_build_object('queue', q.name) FROM orchestrator.queue q WHERE q.id = d.queue) END
      || CASE WHEN d.metadata IS NULL THEN '{}' ELSE jsonb_build_object('metadata', d.metadata) END;
END
$$;

-- What the steps of a workflow run, and undo with.
CREATE FUNCTION orchestrator._pinned(workflow int) RETURNS int[]
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN ARRAY(SELECT p.value::int FROM orchestrator.definition d
               CROSS JOIN LATERAL jsonb_array_elements(d.steps) s(value)
               CROSS JOIN LATERAL (VALUES (s.value -> 'definition'), (s.value -> 'undo')) p(value)
               WHERE d.id = $1 AND p.value IS NOT NULL);
END
$$;

-- The definition behind enqueue_workflow(): one for each graph and set of
-- options (keys of a workflow's document), owned by the caller, never current.
CREATE FUNCTION orchestrator._workflow_definition(caller oid, specs orchestrator.step_spec[], options jsonb DEFAULT '{}') RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d orchestrator.definition;
BEGIN
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._check_role($1);
  d := orchestrator._compile($1, coalesce($3, '{}') || jsonb_build_object('name', 'orchestrator.workflow',
                                                                          'steps', coalesce(to_jsonb($2), '[]')));
  -- the hash makes finding it cheap, however many there are
  d.name := 'orchestrator.workflow.' || md5(d.document::text || d.steps::text);
  RETURN orchestrator._keep_hidden(d);
END
$$;

-- The definition of the rows that the engine makes itself: of maps, waits,
-- batches, and webhooks to an endpoint. One of each kind and owner (two, if two
-- made it at once), never current.
CREATE FUNCTION orchestrator._internal_definition(owner int, kind text, endpoint text DEFAULT NULL) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d orchestrator.definition;
BEGIN
  d.name := concat_ws(' ', 'orchestrator.' || $2, $3);
  SELECT x.id INTO d.id FROM orchestrator.definition x
    WHERE x.owner = $1 AND x.name = d.name
    ORDER BY x.version LIMIT 1;
  IF NOT FOUND THEN
    d.owner := $1;
    d.kind := $2;
    d.endpoint := $3;
    d.request := CASE WHEN $3 IS NOT NULL THEN '{}'::jsonb END;
    d := orchestrator._policy(d, CASE WHEN $3 IS NULL THEN '{"max_attempts": 1}' ELSE '{"max_attempts": 12, "retry_delay": "5 s"}' END::jsonb);
    d.id := orchestrator._keep_hidden(d);
  END IF;
  RETURN d.id;
END
$$;

-- Workflows that have one of some definitions as a step; with deep, also the
-- workflows that have those.
CREATE FUNCTION orchestrator._pinning(ids int[], deep boolean DEFAULT false) RETURNS int[]
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_all int[] := '{}';
  v_new int[] := $1;
BEGIN
  LOOP
    v_new := ARRAY(SELECT DISTINCT d.id FROM orchestrator.definition d
                   CROSS JOIN LATERAL jsonb_array_elements(d.steps) s(value)
                   CROSS JOIN LATERAL (VALUES (s.value -> 'definition'), (s.value -> 'undo')) p(value)
                   WHERE d.kind = 'workflow' AND d.id <> ALL (v_all) AND p.value::int IN (SELECT unnest(v_new)));
    v_all := v_all || v_new;
    EXIT WHEN v_new = '{}' OR NOT $2;
  END LOOP;
  RETURN v_all;
END
$$;

-- One version goes, and with it what its steps alone had. Graphs that were
-- enqueued without a definition hold on to it only while they live, and so do
-- steps that were added to a task. Locks the owner, then tasks in order of id.
CREATE FUNCTION orchestrator._purge_definition(caller oid, name text, version int, force boolean, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner   int := orchestrator._owner_for($1, $5);
  d         orchestrator.definition;
  v_pinning int[];
  v_other   text;
  v_hidden  int[];
  v_used    int[];
  v_added   bigint[];
  v_live    bigint[];
  v_detail  jsonb := orchestrator._by($1, format('version %s of definition "%s" was purged', $3, $2));
BEGIN
  PERFORM FROM orchestrator.owner o WHERE o.id = v_owner FOR NO KEY UPDATE;
  SELECT x.* INTO d FROM orchestrator.definition x
    WHERE x.owner = v_owner AND x.name = $2 AND x.version = $3 AND x.name NOT LIKE 'orchestrator.%'
    FOR UPDATE;   -- whoever defines a workflow with it now comes first, or finds it gone
  IF NOT FOUND THEN
    RAISE EXCEPTION 'definition "%" version % does not exist', $2, coalesce($3::text, 'null')
      USING ERRCODE = 'undefined_object', HINT = 'The view orchestrator.definition_status shows what there is.';
  ELSIF d.is_current THEN
    RAISE EXCEPTION 'version % of definition "%" is the current one', $3, $2
      USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Define another version first, or withdraw the definition with orchestrator.drop_definition().';
  END IF;
  v_pinning := orchestrator._pinning(ARRAY[d.id]);
  SELECT format('%s of "%s"', x.version, x.name) INTO v_other FROM orchestrator.definition x
    WHERE x.id = ANY (v_pinning) AND x.name NOT LIKE 'orchestrator.%'
    ORDER BY x.name, x.version LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'version % of definition "%" is a step of version %', $3, $2, v_other
      USING ERRCODE = 'dependent_objects_still_exist', HINT = 'Define that workflow anew, and purge that version first.';
  END IF;
  -- of the hidden ones those that no other workflow has
  v_hidden := ARRAY(SELECT x.id FROM orchestrator.definition x
                    WHERE x.id = ANY (orchestrator._pinned(d.id)) AND x.name LIKE 'orchestrator.%'
                    EXCEPT
                    SELECT unnest(orchestrator._pinned(x.id)) FROM orchestrator.definition x
                    WHERE x.owner = d.owner AND x.kind = 'workflow' AND x.id <> d.id);
  v_used := d.id || v_hidden || v_pinning;
  v_added := ARRAY(SELECT DISTINCT a.task_id FROM orchestrator.added_step a
                   JOIN orchestrator.task_live l ON l.id = a.task_id
                   WHERE (a.spec ->> 'definition')::int = d.id OR (a.spec ->> 'undo')::int = d.id);
  IF $4 THEN
    v_live := orchestrator._lock_with_roots(v_added);
    IF v_live <> '{}' THEN
      PERFORM orchestrator._cancel_rows(v_live, v_detail);
    END IF;
    LOOP
      v_live := orchestrator._lock_live(v_used, 1000);
      EXIT WHEN v_live IS NULL;
      PERFORM orchestrator._cancel_rows(v_live, v_detail);
    END LOOP;
  ELSIF v_added <> '{}' OR EXISTS (SELECT FROM orchestrator.task_live l WHERE l.definition = ANY (v_used)) THEN
    RAISE EXCEPTION 'version % of definition "%" has tasks that are not finished', $3, $2
      USING ERRCODE = 'dependent_objects_still_exist',
            HINT = 'Wait for them, cancel them with orchestrator.cancel_many(), or purge with force => true.';
  END IF;
  DELETE FROM orchestrator.definition x WHERE x.id = d.id OR x.id = ANY (v_hidden);
  PERFORM orchestrator._invalidate();
END
$$;
