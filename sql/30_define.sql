-- Definitions.

CREATE FUNCTION orchestrator.define(name text, handler text, kind text DEFAULT 'function', queue text DEFAULT NULL,
    priority int DEFAULT NULL, max_attempts int DEFAULT NULL, backoff text DEFAULT 'exponential',
    retry_delay interval DEFAULT NULL, max_retry_delay interval DEFAULT NULL, retry_jitter float8 DEFAULT NULL,
    retry_budget interval DEFAULT NULL, never_retry text[] DEFAULT NULL, retry_priority_step int DEFAULT NULL,
    timeout interval DEFAULT NULL, queue_timeout interval DEFAULT NULL, response_timeout interval DEFAULT NULL,
    timeout_policy text DEFAULT NULL, max_running int DEFAULT NULL, rate_limit int DEFAULT NULL,
    rate_period interval DEFAULT NULL, notify text DEFAULT 'lifecycle', description text DEFAULT NULL,
    estimated_duration interval DEFAULT NULL, metadata jsonb DEFAULT NULL, owner text DEFAULT NULL,
    success_callback text DEFAULT NULL, failure_callback text DEFAULT NULL, concurrency_key text DEFAULT NULL,
    key_max_running int DEFAULT NULL, key_rate_limit int DEFAULT NULL, key_rate_period interval DEFAULT NULL,
    batch_size int DEFAULT NULL, batch_wait interval DEFAULT NULL, preset text DEFAULT NULL, endpoint text DEFAULT NULL,
    request jsonb DEFAULT NULL) RETURNS int
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.define(text, text, text, text, int, int, text, interval, interval, float8, interval,
    text[], int, interval, interval, interval, text, int, int, interval, text, text, interval, jsonb, text, text, text,
    text, int, int, interval, int, interval, text, text, jsonb) IS
  'Describes a kind of task; returns its version. An equal definition returns the version it already has; a changed one becomes the next version, which enqueue() takes from then on. preset gives what is not given: light is max_attempts 3 and priority 5, heavy 2 and 0, bulk 1 and -10; each takes 5 off the priority at a retry. owner: a role that the caller is a member of; an administrator may name any, and change all of its definitions but what they run. Of kind http, endpoint is a server of orchestrator_http and request an object with method, path, query, headers, body and expect; the README has those of kinds llm, embedding, tool, webhook and summarize';

CREATE FUNCTION orchestrator.drop_definition(name text, force boolean DEFAULT false, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.drop_definition(text, boolean, text) IS
  'Withdraws a definition: it can no longer be enqueued. Refused while tasks of it live, unless forced: then they are cancelled';

-- Raise invalid_parameter_value unless a condition holds (null: it does).
CREATE FUNCTION orchestrator._require(condition boolean, message text, hint text DEFAULT NULL) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF $1 IS NOT FALSE THEN
    RETURN;
  ELSIF $3 IS NULL THEN
    RAISE EXCEPTION '%', $2 USING ERRCODE = 'invalid_parameter_value';
  END IF;
  RAISE EXCEPTION '%', $2 USING ERRCODE = 'invalid_parameter_value', HINT = $3;
END
$$;

-- An object that has no other keys.
CREATE FUNCTION orchestrator._require_keys(what text, value jsonb, keys text[], hint text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_key text;
BEGIN
  PERFORM orchestrator._require(jsonb_typeof($2) = 'object', $1 || ' is not an object');
  SELECT min(k) INTO v_key FROM jsonb_object_keys($2) k WHERE k <> ALL ($3);
  PERFORM orchestrator._require(v_key IS NULL, format('%s: unknown key "%s"', $1, v_key), $4);
END
$$;

-- A name of a definition or queue.
CREATE FUNCTION orchestrator._require_name(what text, name text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require($2 IS NOT NULL, format('the name of a %s must not be null', $1));
  PERFORM orchestrator._require($2 <> '' AND octet_length($2) <= 200, format('the name of a %s must have 1 to 200 bytes', $1));
  PERFORM orchestrator._require($2 NOT LIKE 'orchestrator.%', format('%s "%s" has a reserved name', $1, $2),
                                'Names that begin with "orchestrator." are the engine''s own.');
END
$$;

-- Find the function or procedure a handler names, as a role may execute it;
-- give its signature in the form it is stored, and its owner. OIDs are not
-- stored: dump and restore change them. many: it takes an array of inputs.
CREATE FUNCTION orchestrator._find_handler(role oid, kind text, handler text, many boolean DEFAULT false, OUT signature text,
    OUT handler_owner name)
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
  v_type  text := CASE WHEN $4 THEN 'jsonb[]' ELSE 'jsonb' END;
  v_parts text[];
  v_proc  pg_proc;
BEGIN
  BEGIN
    v_parts := parse_ident(regexp_replace($3, format(E'\\(\\s*(pg_catalog\\s*\\.\\s*)?jsonb%s\\s*\\)\\s*$',
                                                     CASE WHEN $4 THEN E'\\s*\\[\\s*\\]' END), ''));
  EXCEPTION WHEN invalid_parameter_value THEN
    v_parts := NULL;
  END;
  PERFORM orchestrator._require(coalesce(cardinality(v_parts), 0) = 2, format('handler "%s" is not the name of a %s', $3, $2),
                                format('Write schema.name or schema.name(%s).', v_type));
  SELECT p.* INTO v_proc FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = v_parts[1] AND p.proname = v_parts[2]
      AND p.pronargs = 1 AND p.proargtypes[0] = ('pg_catalog.' || v_type)::regtype
      AND p.prokind = CASE $2 WHEN 'procedure' THEN 'p' ELSE 'f' END;
  IF NOT FOUND THEN
    RAISE EXCEPTION '% %.%(%) does not exist', $2, quote_ident(v_parts[1]), quote_ident(v_parts[2]), v_type
      USING ERRCODE = 'undefined_function',
            HINT = CASE WHEN $4 THEN 'With batch_size a handler is a function with one argument, of type jsonb[].'
                        ELSE format('A handler of kind %s is a %1$s with one argument, of type jsonb.', $2) END;
  END IF;
  signature := format('%I.%I(%s)', v_parts[1], v_parts[2], v_type);
  IF v_parts[1] LIKE E'pg\\_temp\\_%'
     OR $2 = 'function' AND (v_proc.proretset OR v_proc.prorettype NOT IN (('pg_catalog.' || v_type)::regtype, 'pg_catalog.void'::regtype))
     OR $2 = 'procedure' AND v_proc.prorettype <> 'pg_catalog.void'::regtype THEN
    RAISE EXCEPTION '% % cannot be a handler', $2, signature
      USING ERRCODE = 'invalid_function_definition',
            HINT = format('A function must return %s or void and not a set; a procedure must have no output arguments; neither may be temporary.', v_type);
  END IF;
  IF NOT (has_schema_privilege($1, v_proc.pronamespace, 'USAGE') AND has_function_privilege($1, v_proc.oid, 'EXECUTE')) THEN
    RAISE EXCEPTION 'permission denied for % %', $2, signature
      USING ERRCODE = 'insufficient_privilege',
            HINT = format('GRANT EXECUTE ON %s %s, and USAGE on its schema.', upper($2), signature);
  END IF;
  handler_owner := pg_get_userbyid(v_proc.proowner);
END
$$;

-- Everything about a definition that can be wrong by itself.
CREATE FUNCTION orchestrator._check_definition(d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_what text;
  v_span interval;
BEGIN
  PERFORM orchestrator._require(d.kind IN ('function', 'sql', 'procedure', 'utility', 'remote') OR d.kind = ANY (orchestrator._call_kinds()),
                                format('unknown kind "%s"', d.kind), 'Kinds are function, sql, procedure, utility, remote, http, llm, embedding, tool, webhook and summarize.');
  PERFORM orchestrator._require(d.backoff IN ('exponential', 'fixed', 'linear'), format('unknown backoff "%s"', d.backoff),
                                'Say exponential, fixed or linear.');
  PERFORM orchestrator._require(d.timeout_policy IN ('retry', 'fail', 'fail_workflow', 'alert'),
                                format('unknown timeout_policy "%s"', d.timeout_policy), 'Say retry, fail, fail_workflow or alert.');
  PERFORM orchestrator._require(d.notify IN ('off', 'lifecycle', 'all'), format('unknown value "%s" of notify', d.notify),
                                'Say off, lifecycle or all.');
  PERFORM orchestrator._require(d.max_attempts BETWEEN 1 AND 10000, 'max_attempts must be between 1 and 10000');
  PERFORM orchestrator._require(d.retry_jitter BETWEEN 0 AND 1, 'retry_jitter must be between 0 and 1');
  PERFORM orchestrator._require(d.priority BETWEEN -1000000 AND 1000000, 'priority must be between -1000000 and 1000000');
  PERFORM orchestrator._require(d.retry_priority_step BETWEEN 0 AND 1000000, 'retry_priority_step must be between 0 and 1000000');
  PERFORM orchestrator._require(d.max_running > 0, 'max_running must be positive');
  PERFORM orchestrator._require(d.rate_limit > 0, 'rate_limit must be positive');
  PERFORM orchestrator._require(d.checkpoint_interval > 0, 'checkpoint_interval must be positive');
  PERFORM orchestrator._require(d.max_steps > 0, 'max_steps must be positive');
  PERFORM orchestrator._require(d.max_depth > 0, 'max_depth must be positive');
  PERFORM orchestrator._require((d.rate_limit IS NULL) = (d.rate_period IS NULL), 'rate_limit and rate_period belong together');
  PERFORM orchestrator._require((d.key_rate_limit IS NULL) = (d.key_rate_period IS NULL), 'key_rate_limit and key_rate_period belong together');
  PERFORM orchestrator._require(d.key_max_running > 0, 'key_max_running must be positive');
  PERFORM orchestrator._require(d.key_rate_limit > 0, 'key_rate_limit must be positive');
  PERFORM orchestrator._require((d.concurrency_key IS NULL) = (d.key_max_running IS NULL AND d.key_rate_limit IS NULL),
                                'concurrency_key and its limits belong together', 'Give key_max_running or key_rate_limit, or both.');
  IF d.concurrency_key IS NOT NULL THEN
    PERFORM orchestrator._check_path(format('definition "%s"', d.name), 'concurrency_key', d.concurrency_key);
  END IF;
  FOR v_what, v_span IN
    VALUES ('retry_delay', d.retry_delay), ('max_retry_delay', d.max_retry_delay), ('estimated_duration', d.estimated_duration)
  LOOP
    PERFORM orchestrator._require(v_span BETWEEN interval '0' AND interval '100 years', v_what || ' must not be negative, nor exceed 100 years');
  END LOOP;
  FOR v_what, v_span IN
    VALUES ('retry_budget', d.retry_budget), ('timeout', d.timeout), ('queue_timeout', d.queue_timeout),
           ('response_timeout', d.response_timeout), ('rate_period', d.rate_period), ('key_rate_period', d.key_rate_period)
  LOOP
    PERFORM orchestrator._require(v_span > interval '0' AND v_span <= interval '100 years', v_what || ' must be positive, and not exceed 100 years');
  END LOOP;
  PERFORM orchestrator._check_batching(d);
  PERFORM orchestrator._require(c IS NOT NULL AND c ~ '^([0-9A-Z]{2}|[0-9A-Z]{5})$', format('"%s" is neither an SQLSTATE nor a class of them', c),
                                'never_retry takes codes like 23505 and classes like 23.')
    FROM unnest(d.never_retry) c;
END
$$;

-- What batch_size and batch_wait go with. A claim takes at most 200 tasks.
CREATE FUNCTION orchestrator._check_batching(d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
  PERFORM orchestrator._require(d.batch_wait IS NULL OR d.batch_size IS NOT NULL, 'batch_wait without batch_size',
                                'Give the number of tasks to wait for.');
  IF d.batch_size IS NULL THEN
    RETURN;
  END IF;
  PERFORM orchestrator._require(d.kind IN ('function', 'embedding'), format('batch_size with kind "%s"', d.kind),
                                'Only a function can take many inputs, one with an argument of type jsonb[]; and a call of kind embedding.');
  PERFORM orchestrator._require(d.kind = 'function' OR NOT jsonb_path_exists(d.request - 'input'::text, 'strict $.** ? (@.type() == "string" && @ starts with "$" && !(@ starts with "$$"))'),
                                'batch_size with a path elsewhere than in the input of the request', 'Calls that go together differ in their input only.');
  PERFORM orchestrator._require(d.batch_size BETWEEN 1 AND 200, 'batch_size must be between 1 and 200');
  PERFORM orchestrator._require(d.batch_wait BETWEEN interval '0' AND interval '1 day', 'batch_wait must not be negative, nor exceed 1 day');
  PERFORM orchestrator._require(d.batch_wait < d.queue_timeout, 'batch_wait must be shorter than queue_timeout',
                                'A task that waited for others so long would fail.');
END
$body$;

-- The role that something is made for: the caller, or one that it is a member
-- of. An administrator is not enough: what is made runs with the rights of
-- others.
CREATE FUNCTION orchestrator._definer(caller oid, owner text) RETURNS oid
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_role oid;
BEGIN
  IF $2 IS NULL THEN
    RETURN $1;
  END IF;
  v_role := orchestrator._role($2);
  IF NOT pg_has_role($1, v_role, 'USAGE') THEN
    RAISE EXCEPTION 'must be a member of role "%"', $2 USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN v_role;
END
$$;

-- An administrator may change a definition of another role, but not what it
-- runs: that has the rights of whoever enqueues it. Locks the owner's row, so
-- that what is compared is not changed meanwhile.
CREATE FUNCTION orchestrator._check_definer(caller oid, role oid, d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF pg_has_role($1, $2, 'USAGE') THEN
    RETURN;
  END IF;
  PERFORM FROM orchestrator.owner o WHERE o.id = d.owner FOR NO KEY UPDATE;
  IF NOT EXISTS (
       SELECT FROM orchestrator.definition x
         WHERE x.owner = d.owner AND x.name = d.name AND x.is_current
           AND (x.kind, x.handler, x.handler_owner, x.endpoint, x.request, x.success_callback, x.failure_callback)
               IS NOT DISTINCT FROM (d.kind, d.handler, d.handler_owner, d.endpoint, d.request, d.success_callback, d.failure_callback)) THEN
    RAISE EXCEPTION 'must be a member of role "%" to say what its definition "%" runs', pg_get_userbyid($2), d.name
      USING ERRCODE = 'insufficient_privilege',
            HINT = 'An administrator can change the rest of a definition: give its kind, handler, endpoint, request and callbacks as they are.';
  END IF;
END
$$;

-- The callbacks of a definition are definitions that its owner may enqueue. One
-- of itself would never end.
CREATE FUNCTION orchestrator._check_callbacks(role oid, d orchestrator.definition) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_what  text;
  v_name  text;
  v_found orchestrator.definition;
BEGIN
  FOR v_what, v_name IN VALUES ('success_callback', d.success_callback), ('failure_callback', d.failure_callback) LOOP
    CONTINUE WHEN v_name IS NULL;
    PERFORM orchestrator._require(v_name <> d.name, format('%s of definition "%s" names itself', v_what, v_name), 'It would never end.');
    v_found := orchestrator._find_definition($1, v_name);
  END LOOP;
END
$$;

-- What a preset of definitions gives, where define() is not told otherwise.
CREATE FUNCTION orchestrator._definition_preset(preset text) RETURNS orchestrator.definition
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d orchestrator.definition;
BEGIN
  PERFORM orchestrator._require($1 IN ('light', 'heavy', 'bulk'), format('unknown preset "%s" of a definition', $1),
                                'Presets are light, heavy and bulk.');
  d.max_attempts := CASE $1 WHEN 'light' THEN 3 WHEN 'heavy' THEN 2 WHEN 'bulk' THEN 1 END;
  d.priority := CASE $1 WHEN 'light' THEN 5 WHEN 'heavy' THEN 0 WHEN 'bulk' THEN -10 END;
  d.retry_priority_step := CASE WHEN $1 IS NOT NULL THEN 5 END;
  RETURN d;
END
$$;

-- Locks the owner's row: two definitions of one name get two versions.
CREATE FUNCTION orchestrator._define(caller oid, name text, handler text, kind text, queue text, priority int,
    max_attempts int, backoff text, retry_delay interval, max_retry_delay interval, retry_jitter float8,
    retry_budget interval, never_retry text[], retry_priority_step int, timeout interval, queue_timeout interval,
    response_timeout interval, timeout_policy text, max_running int, rate_limit int, rate_period interval,
    notify text, description text, estimated_duration interval, metadata jsonb, owner text,
    success_callback text, failure_callback text, concurrency_key text, key_max_running int, key_rate_limit int,
    key_rate_period interval, batch_size int, batch_wait interval, preset text, endpoint text, request jsonb) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d        orchestrator.definition;
  v_preset orchestrator.definition;
  v_role   oid;
BEGIN
  PERFORM orchestrator._initialize();
  d.owner := orchestrator._owner_for(caller, owner);
  v_role := CASE WHEN owner IS NULL THEN caller ELSE orchestrator._role(owner) END;
  v_preset := orchestrator._definition_preset(preset);
  PERFORM orchestrator._require_name('definition', name);
  d.name := name;
  d.kind := coalesce(kind, 'function');
  d.handler := handler;
  d.priority := coalesce(priority, v_preset.priority, 0);
  d.max_attempts := coalesce(max_attempts, v_preset.max_attempts, 3);
  d.backoff := coalesce(backoff, 'exponential');
  d.retry_delay := coalesce(retry_delay, '1 second');
  d.max_retry_delay := coalesce(max_retry_delay, greatest('1 hour', d.retry_delay));
  d.retry_jitter := coalesce(retry_jitter, 0.1);
  d.retry_budget := retry_budget;
  d.never_retry := coalesce(never_retry, '{}');
  d.retry_priority_step := coalesce(retry_priority_step, v_preset.retry_priority_step, 1);
  d.timeout := timeout;
  d.queue_timeout := queue_timeout;
  d.response_timeout := response_timeout;
  d.timeout_policy := coalesce(timeout_policy, 'retry');
  d.max_running := max_running;
  d.rate_limit := rate_limit;
  d.rate_period := rate_period;
  d.notify := coalesce(notify, 'lifecycle');
  d.description := description;
  d.estimated_duration := estimated_duration;
  d.metadata := metadata;
  d.success_callback := success_callback;
  d.failure_callback := failure_callback;
  d.concurrency_key := concurrency_key;
  d.key_max_running := key_max_running;
  d.key_rate_limit := key_rate_limit;
  d.key_rate_period := key_rate_period;
  d.batch_size := batch_size;
  d.batch_wait := nullif(batch_wait, '0');
  d.endpoint := endpoint;
  d.request := CASE WHEN d.kind = ANY (orchestrator._call_kinds()) THEN coalesce(request, '{}') ELSE request END;
  PERFORM orchestrator._check_definition(d);
  PERFORM orchestrator._require(coalesce(btrim(handler, E' \t\r\n;'), '') <> '' OR d.kind = 'remote' AND handler IS NULL OR d.kind = ANY (orchestrator._call_kinds()),
                                format('definition "%s" has no handler', name), 'Give the name of a function or procedure, or a command.');
  PERFORM orchestrator._check_call(v_role, d);
  IF d.kind IN ('function', 'procedure') THEN
    SELECT h.signature, h.handler_owner INTO d.handler, d.handler_owner
      FROM orchestrator._find_handler(v_role, d.kind, handler, d.batch_size IS NOT NULL) h;
  END IF;
  IF queue IS NOT NULL THEN
    d.queue := orchestrator._resolve_queue(v_role, queue);
  END IF;
  PERFORM orchestrator._check_callbacks(v_role, d);
  PERFORM orchestrator._check_definer(caller, v_role, d);
  RETURN orchestrator._keep_definition(d, true);
END
$$;

-- Find the version that equals a definition (its never_retry in any order), or
-- add it; make it the current one when asked to. changed says that the caller
-- must _invalidate(): once for many, since each time costs a plan of everything
-- that reads definitions. One that is never current is made also by who holds
-- the top of a tree, and must wait for nobody: its version is its id, and two
-- may equal each other.
CREATE FUNCTION orchestrator._put_definition(d orchestrator.definition, is_current boolean, OUT id int, OUT version int,
    OUT changed boolean)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1 AS $$
DECLARE
  v_aside constant text[] := '{id,version,is_current,created_at,never_retry}';
  v_mine  jsonb := to_jsonb(d) - v_aside;
BEGIN
  IF $2 THEN
    PERFORM FROM orchestrator.owner o WHERE o.id = d.owner FOR NO KEY UPDATE;
  END IF;
  SELECT x.id, x.version, x.is_current INTO d.id, d.version, d.is_current
    FROM orchestrator.definition x
    WHERE x.owner = d.owner AND x.name = d.name AND x.kind = d.kind AND x.handler IS NOT DISTINCT FROM d.handler
      AND x.never_retry @> d.never_retry AND x.never_retry <@ d.never_retry AND to_jsonb(x) - v_aside = v_mine
    ORDER BY x.is_current DESC, x.version DESC
    LIMIT 1;
  changed := NOT FOUND OR $2 AND NOT d.is_current;
  IF changed THEN
    IF $2 THEN
      UPDATE orchestrator.definition x SET is_current = false WHERE x.owner = d.owner AND x.name = d.name AND x.is_current;
    END IF;
    IF d.id IS NOT NULL THEN
      UPDATE orchestrator.definition x SET is_current = true WHERE x.id = d.id;
    ELSE
      d.id := nextval('orchestrator.definition_id_seq');
      d.version := CASE WHEN $2 THEN 1 + coalesce((SELECT max(x.version) FROM orchestrator.definition x
                                                   WHERE x.owner = d.owner AND x.name = d.name), 0)
                        ELSE d.id END;
      d.is_current := $2;
      d.created_at := orchestrator._now();
      INSERT INTO orchestrator.definition SELECT d.*;
    END IF;
  END IF;
  id := d.id;
  version := d.version;
END
$$;

CREATE FUNCTION orchestrator._keep_definition(d orchestrator.definition, is_current boolean) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_kept record := orchestrator._put_definition($1, $2);
BEGIN
  IF v_kept.changed THEN
    PERFORM orchestrator._limits_changed();
    PERFORM orchestrator._invalidate();
  END IF;
  RETURN v_kept.version;
END
$$;

-- One of the engine's own, which is never current; its id.
CREATE FUNCTION orchestrator._keep_hidden(d orchestrator.definition) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_kept record := orchestrator._put_definition($1, false);
BEGIN
  IF v_kept.changed THEN
    PERFORM orchestrator._invalidate();
  END IF;
  RETURN v_kept.id;
END
$$;

-- Its versions stay: finished tasks name them.
CREATE FUNCTION orchestrator._drop_definition(caller oid, name text, force boolean, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int := orchestrator._owner_for(caller, owner);
  v_ids   int[];
  v_live  bigint[];
BEGIN
  PERFORM FROM orchestrator.owner o WHERE o.id = v_owner FOR NO KEY UPDATE;
  SELECT array_agg(d.id) INTO v_ids FROM orchestrator.definition d
    WHERE d.owner = v_owner AND d.name = $2 HAVING bool_or(d.is_current);
  IF v_ids IS NULL THEN
    RAISE EXCEPTION 'definition "%" does not exist', $2 USING ERRCODE = 'undefined_object';
  END IF;
  UPDATE orchestrator.definition d SET is_current = false WHERE d.id = ANY (v_ids) AND d.is_current;
  DELETE FROM orchestrator.definition_share s WHERE s.owner = v_owner AND s.name = $2;
  DELETE FROM orchestrator.tool x WHERE x.owner = v_owner AND x.name = $2;
  PERFORM orchestrator._invalidate();
  IF force THEN
    LOOP
      v_live := orchestrator._lock_live(v_ids, 1000);
      EXIT WHEN v_live IS NULL;
      PERFORM orchestrator._cancel_rows(v_live, orchestrator._by(caller, format('definition "%s" was dropped', $2)));
    END LOOP;
  ELSIF EXISTS (SELECT FROM orchestrator.task_live l WHERE l.definition = ANY (v_ids)) THEN
    RAISE EXCEPTION 'definition "%" has tasks that are not finished', $2
      USING ERRCODE = 'dependent_objects_still_exist',
            HINT = 'Wait for them, cancel them with orchestrator.cancel_many(), or drop with force => true.';
  END IF;
END
$$;

-- Event trigger: functions that handlers name, whatever takes them with it (the
-- table that a SQL function's body reads, say). Reads the engine's tables for
-- whoever drops something, hence SECURITY DEFINER; it cannot be called.
CREATE FUNCTION orchestrator._guard_handlers() RETURNS event_trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
  v_handler text;
  v_ids     int[];
  v_name    text;
BEGIN
  FOR v_handler IN
    SELECT format('%I.%I(%s)', o.address_names[1], o.address_names[2], a.type)
    FROM pg_event_trigger_dropped_objects() o
    CROSS JOIN LATERAL (SELECT replace(replace(o.address_args[1], '"', ''), 'pg_catalog.', '') AS type) a   -- quoted or not, as the session says
    WHERE o.object_type IN ('function', 'procedure') AND cardinality(o.address_args) = 1 AND a.type IN ('jsonb', 'jsonb[]')
  LOOP
    -- a stranger who may only call the function does not keep its owner from dropping it
    v_ids := ARRAY(SELECT d.id FROM orchestrator.definition d
                   WHERE d.handler = v_handler AND d.kind IN ('function', 'procedure')
                     AND EXISTS (SELECT FROM orchestrator.owner o, pg_authid a
                                 WHERE o.id = d.owner AND a.rolname = d.handler_owner AND pg_has_role(o.role, a.oid, 'USAGE')));
    -- a workflow that lives needs it for steps that have not started, too
    v_ids := v_ids || orchestrator._pinning(v_ids, true);
    SELECT d.name INTO v_name FROM orchestrator.definition d
      WHERE d.id = ANY (v_ids) AND EXISTS (SELECT FROM orchestrator.task_live l WHERE l.definition = d.id)
      ORDER BY d.name LIKE 'orchestrator.%', d.name LIMIT 1;
    IF FOUND THEN
      RAISE EXCEPTION 'cannot drop %: unfinished tasks of definition "%" use it', v_handler, v_name
        USING ERRCODE = 'dependent_objects_still_exist',
              HINT = 'Replace it with CREATE OR REPLACE, or end the tasks first with orchestrator.cancel_many() or drop_definition().';
    END IF;
    v_ids := ARRAY(SELECT d.id FROM orchestrator.definition d WHERE d.handler = v_handler AND d.kind IN ('function', 'procedure'));
    SELECT d.name INTO v_name FROM orchestrator.definition d
      WHERE d.id = ANY (v_ids || orchestrator._pinning(v_ids)) AND d.is_current
      ORDER BY d.name LIMIT 1;
    IF FOUND THEN
      RAISE WARNING 'dropped %, the handler of definition "%"', v_handler, v_name
        USING ERRCODE = '01000', HINT = 'Its tasks will fail until it is made again or orchestrator.define() names another.';
    END IF;
  END LOOP;
END
$$;
CREATE EVENT TRIGGER orchestrator_guard_handlers ON sql_drop EXECUTE FUNCTION orchestrator._guard_handlers();
COMMENT ON EVENT TRIGGER orchestrator_guard_handlers IS 'Refuses to drop a function that unfinished tasks need';
