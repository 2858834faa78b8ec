-- Enqueue: the functions are C (src/enqueue.c) and write the row directly;
-- here is what they ask for when the session does not know it yet.

CREATE FUNCTION orchestrator.enqueue(definition text, input jsonb DEFAULT '{}', name text DEFAULT NULL,
    priority int DEFAULT NULL, run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, key text DEFAULT NULL,
    key_window interval DEFAULT NULL, queue text DEFAULT NULL, metadata jsonb DEFAULT NULL,
    deadline timestamptz DEFAULT NULL, traceparent text DEFAULT NULL, debounce interval DEFAULT NULL,
    debounce_max interval DEFAULT NULL, debounce_merge boolean DEFAULT NULL, throttle interval DEFAULT NULL) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_enqueue';
COMMENT ON FUNCTION orchestrator.enqueue(text, jsonb, text, int, timestamptz, interval, text, interval, text, jsonb, timestamptz, text,
    interval, interval, boolean, interval) IS
  'Enqueues a task, which runs as the calling role after this transaction commits; returns its id. With a key that is taken, the id of the task that took it. Calls with one key that come often: debounce makes one task of them, throttle drops all but the first of each slot';

CREATE FUNCTION orchestrator.enqueue_many(definition text, inputs jsonb[], name text DEFAULT NULL,
    priority int DEFAULT NULL, run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, keys text[] DEFAULT NULL,
    key_window interval DEFAULT NULL, queue text DEFAULT NULL, metadata jsonb DEFAULT NULL,
    deadline timestamptz DEFAULT NULL, traceparent text DEFAULT NULL) RETURNS bigint[]
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_enqueue_many';
COMMENT ON FUNCTION orchestrator.enqueue_many(text, jsonb[], text, int, timestamptz, interval, text[], interval, text, jsonb, timestamptz, text) IS
  'Enqueues one task for each input; returns their ids in the same order. Priority is 10 lower than that of single tasks unless it is given';

CREATE FUNCTION orchestrator.run(sql text, input jsonb DEFAULT '{}', name text DEFAULT NULL,
    priority int DEFAULT NULL, run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, key text DEFAULT NULL,
    key_window interval DEFAULT NULL, queue text DEFAULT NULL, metadata jsonb DEFAULT NULL,
    deadline timestamptz DEFAULT NULL, traceparent text DEFAULT NULL, kind text DEFAULT 'sql',
    max_attempts int DEFAULT 1, timeout interval DEFAULT NULL) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_run';
COMMENT ON FUNCTION orchestrator.run(text, jsonb, text, int, timestamptz, interval, text, interval, text, jsonb, timestamptz, text, text, int, interval) IS
  'Runs a command once in the background, without a definition; returns the id of its task. kind => ''utility'' for commands like VACUUM';

-- Refuse a task whose role could not be started.
CREATE FUNCTION orchestrator._check_role(caller oid) RETURNS void
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_role pg_authid;
BEGIN
  SELECT a.* INTO v_role FROM pg_authid a WHERE a.oid = $1;
  IF v_role.rolsuper AND current_setting('orchestrator.superuser_tasks', true) = 'off' THEN
    RAISE EXCEPTION 'tasks of superusers are not allowed in this server'
      USING ERRCODE = 'insufficient_privilege', HINT = 'Enqueue as an ordinary role, or set orchestrator.superuser_tasks = on.';
  END IF;
  IF NOT v_role.rolcanlogin AND current_setting('server_version_num')::int < 170000 THEN
    RAISE EXCEPTION 'role "%" cannot run tasks: it may not log in', v_role.rolname
      USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('ALTER ROLE %I LOGIN, or enqueue as a role that may log in.', v_role.rolname);
  END IF;
  IF NOT has_database_privilege($1, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()), 'CONNECT') THEN
    RAISE EXCEPTION 'role "%" cannot run tasks: it may not connect to database "%"', v_role.rolname, current_database()
      USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('GRANT CONNECT ON DATABASE %I TO %I.', current_database(), v_role.rolname);
  END IF;
END
$$;

-- Queues and definitions of a name that were shared with a role.
CREATE FUNCTION orchestrator._shared_queues(caller oid, queue text) RETURNS int[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN ARRAY(SELECT DISTINCT q.id FROM orchestrator.queue q JOIN orchestrator.queue_share s ON s.queue = q.id
               WHERE q.name = $2 AND s.grantee = ANY (orchestrator._member_owners($1) || 0));
END
$$;

CREATE FUNCTION orchestrator._shared_definitions(caller oid, definition text) RETURNS orchestrator.definition[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN ARRAY(SELECT d FROM orchestrator.definition d
               WHERE d.name = $2 AND d.is_current
                 AND EXISTS (SELECT FROM orchestrator.definition_share s
                             WHERE s.owner = d.owner AND s.name = d.name
                               AND s.grantee = ANY (orchestrator._member_owners($1) || 0)));
END
$$;

-- The queue a role means: its own first, then one that was shared with it.
CREATE FUNCTION orchestrator._resolve_queue(caller oid, queue text) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_ids int[];
BEGIN
  PERFORM orchestrator._initialize();
  IF $2 = 'default' THEN
    RETURN 1;
  END IF;
  v_ids := ARRAY(SELECT q.id FROM orchestrator.queue q WHERE q.owner = orchestrator._owner($1) AND q.name = $2);
  IF v_ids = '{}' THEN
    v_ids := orchestrator._shared_queues($1, $2);
  END IF;
  IF v_ids = '{}' THEN
    PERFORM orchestrator._no_queue($2);
  ELSIF cardinality(v_ids) > 1 THEN
    RAISE EXCEPTION 'queue "%" was shared by more than one role', $2
      USING ERRCODE = 'ambiguous_alias', HINT = 'Make a queue of your own with orchestrator.define_queue().';
  END IF;
  RETURN v_ids[1];
END
$$;

-- The definition a role means by a name: its own first, then one that was
-- shared with it, never a stranger's. Two shared ones are an error: a late-comer
-- must not slip in before the other.
CREATE FUNCTION orchestrator._find_definition(caller oid, definition text) RETURNS orchestrator.definition
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int := orchestrator._owner($1);
  v_found orchestrator.definition[];
BEGIN
  v_found := ARRAY(SELECT d FROM orchestrator.definition d WHERE d.owner = v_owner AND d.name = $2 AND d.is_current);
  IF v_found = '{}' THEN
    v_found := orchestrator._shared_definitions($1, $2);
  END IF;
  IF v_found = '{}' OR $2 LIKE 'orchestrator.%' THEN
    PERFORM orchestrator._no_definition($2);
  ELSIF cardinality(v_found) > 1 THEN
    RAISE EXCEPTION 'definition "%" was shared by more than one role', $2
      USING ERRCODE = 'ambiguous_alias', HINT = 'Make a definition of your own with orchestrator.define().';
  END IF;
  RETURN v_found[1];
END
$$;

CREATE FUNCTION orchestrator._no_definition(definition text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'definition "%" does not exist', $1
    USING ERRCODE = 'undefined_object',
          HINT = 'Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().';
END
$$;

-- The same as _find_definition(), and what enqueue needs of it.
CREATE FUNCTION orchestrator._resolve_definition(caller oid, definition text, OUT definition_id int, OUT owner_id int,
    OUT kind text, OUT queue int, OUT priority int, OUT max_attempts int, OUT queue_timeout interval, OUT notify boolean)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d orchestrator.definition;
BEGIN
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._check_role($1);
  owner_id := orchestrator._owner($1);
  d := orchestrator._find_definition($1, $2);
  definition_id := d.id;
  kind := d.kind;
  queue := coalesce(d.queue, 1);
  priority := d.priority;
  max_attempts := d.max_attempts;
  queue_timeout := d.queue_timeout;
  notify := d.notify <> 'off';
END
$$;

-- The definition behind run(): one for each kind and set of options, owned by
-- the caller, never current.
CREATE FUNCTION orchestrator._run_definition(caller oid, run_kind text, attempts int, run_timeout interval,
    OUT definition_id int, OUT owner_id int, OUT kind text, OUT queue int, OUT priority int, OUT max_attempts int,
    OUT queue_timeout interval, OUT notify boolean)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d         orchestrator.definition;
  v_version int;
BEGIN
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._check_role($1);
  PERFORM orchestrator._require($2 IN ('sql', 'utility'), format('run() takes no command of kind "%s"', $2),
                                'Say sql, or utility for a command that cannot run in a transaction block.');
  d.owner := orchestrator._owner($1);
  d.name := 'orchestrator.run.' || $2;
  d.kind := $2;
  d.priority := 0;
  d.max_attempts := coalesce($3, 1);
  d.backoff := 'exponential';
  d.retry_delay := '1 second';
  d.max_retry_delay := '1 hour';
  d.retry_jitter := 0.1;
  d.never_retry := '{}';
  d.retry_priority_step := 0;
  d.timeout := $4;
  d.timeout_policy := 'retry';
  d.notify := 'lifecycle';
  PERFORM orchestrator._check_definition(d);
  LOOP
    SELECT x.id, x.owner, x.kind, 1, x.priority, x.max_attempts, NULL, true
      INTO definition_id, owner_id, kind, queue, priority, max_attempts, queue_timeout, notify
      FROM orchestrator.definition x
      WHERE x.owner = d.owner AND x.name = d.name AND x.version = v_version
         OR v_version IS NULL AND x.owner = d.owner AND x.name = d.name AND x.max_attempts = d.max_attempts
            AND x.timeout IS NOT DISTINCT FROM d.timeout
      LIMIT 1;
    EXIT WHEN FOUND;
    v_version := orchestrator._keep_definition(d, false);
  END LOOP;
END
$$;

-- Take a key for a task, or tell who holds it: race-free, for the unique index
-- waits for a concurrent taker, and takes over when that one rolls back.
CREATE FUNCTION orchestrator._take_key(owner int, queue int, key text, key_window interval, task bigint) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
BEGIN
  PERFORM orchestrator._check_keys(ARRAY[$3], $4);
  RETURN orchestrator._hold_key($1, $2, $3, v_now, v_now + $4, $5);
END
$$;

-- The same, until a time (null: for good).
CREATE FUNCTION orchestrator._hold_key(owner int, queue int, key text, at timestamptz, until timestamptz, task bigint) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_holder orchestrator.task_key;
BEGIN
  LOOP
    INSERT INTO orchestrator.task_key (owner, queue, key, task_id, expires_at) VALUES ($1, $2, $3, $6, $5)
      ON CONFLICT DO NOTHING;
    IF FOUND THEN
      RETURN $6;
    END IF;
    SELECT k.* INTO v_holder FROM orchestrator.task_key k WHERE k.owner = $1 AND k.queue = $2 AND k.key = $3;
    IF FOUND AND (v_holder.expires_at IS NULL OR v_holder.expires_at > $4) THEN
      RETURN v_holder.task_id;
    END IF;
    UPDATE orchestrator.task_key k SET task_id = $6, expires_at = $5
      WHERE k.owner = $1 AND k.queue = $2 AND k.key = $3 AND k.task_id = v_holder.task_id AND k.expires_at <= $4;
    IF FOUND THEN
      RETURN $6;
    END IF;
  END LOOP;
END
$$;

-- Throttle: a key that is held until the slot ends that we are in. Slots begin
-- at the same times for everybody, those of a day at midnight UTC.
CREATE FUNCTION orchestrator._throttle(owner int, queue int, key text, slot interval, task bigint) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
BEGIN
  PERFORM orchestrator._check_keys(ARRAY[$3], NULL);
  PERFORM orchestrator._require(extract(month FROM $4) = 0 AND extract(year FROM $4) = 0, 'throttle must not be given in months', 'They differ in length: say days.');
  PERFORM orchestrator._require($4 BETWEEN interval '1 ms' AND interval '366 days', 'throttle must be between 1 millisecond and 366 days');
  RETURN orchestrator._hold_key($1, $2, $3, v_now, date_bin($4, v_now, '2000-01-01 00:00:00+00') + $4, $5);
END
$$;

-- Debounce: the task of this key that waits for its time gets the new input,
-- and waits anew, but not longer than the maximum after it was made. Without
-- one this call's task is it. The key is held until that time: that is how the
-- task is known. One whose time has come, or that somebody has locked (it is
-- being started, cancelled, paused), is left as it is, and another one made.
-- Calls with one key wait for each other at the key.
CREATE FUNCTION orchestrator._debounce(owner int, queue int, key text, run_at timestamptz, longest interval, merged boolean,
    input jsonb, task bigint, definition int) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now  timestamptz := orchestrator._now();
  v_wait interval := $4 - v_now;
  k      orchestrator.task_key;
  t      orchestrator.task;
BEGIN
  PERFORM orchestrator._check_keys(ARRAY[$3], NULL);
  PERFORM orchestrator._require($4 IS NOT NULL AND v_wait <= interval '30 days', 'debounce must be positive, and not exceed 30 days');
  PERFORM orchestrator._require($5 BETWEEN v_wait AND interval '30 days', 'debounce_max must be between debounce and 30 days');
  LOOP
    INSERT INTO orchestrator.task_key (owner, queue, key, task_id, expires_at) VALUES ($1, $2, $3, $8, $4)
      ON CONFLICT DO NOTHING;
    IF FOUND THEN
      RETURN $8;
    END IF;
    SELECT x.* INTO k FROM orchestrator.task_key x WHERE x.owner = $1 AND x.queue = $2 AND x.key = $3 FOR UPDATE;
    EXIT WHEN FOUND;
  END LOOP;
  SELECT l.* INTO t FROM orchestrator.task_live l
    WHERE l.id = k.task_id AND l.state::text = 'scheduled' AND l.run_at = k.expires_at AND l.run_at > v_now AND l.attempt = 0
    FOR UPDATE SKIP LOCKED;
  IF FOUND THEN
    RETURN orchestrator._put_off(t, least($4, t.created_at + coalesce($5, 10 * v_wait)), CASE WHEN $6 THEN t.input || $7 ELSE $7 END, $9);
  ELSIF k.expires_at IS NULL OR k.expires_at > v_now AND NOT EXISTS (SELECT FROM orchestrator.task x
                                                                     WHERE x.id = k.task_id AND x.run_at = k.expires_at) THEN
    RETURN k.task_id;   -- held by a task that is not debounced
  END IF;
  UPDATE orchestrator.task_key x SET task_id = $8, expires_at = $4 WHERE x.owner = $1 AND x.queue = $2 AND x.key = $3;
  RETURN $8;
END
$$;

-- A locked scheduled task gets another input and another time.
CREATE FUNCTION orchestrator._put_off(t orchestrator.task, at timestamptz, input jsonb, definition int) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d orchestrator.definition;
BEGIN
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = t.definition;
  PERFORM orchestrator._require(EXISTS (SELECT FROM orchestrator.definition x WHERE x.id = $4 AND x.name = d.name),
                                format('key "%s" is that of a debounced task of another definition', t.key), 'Use a key of its own for each definition.');
  PERFORM orchestrator._check_input($3);
  t.run_at := $2;
  t.expire_at := least(t.deadline, t.run_at + CASE WHEN t.remaining IS NULL THEN d.queue_timeout ELSE d.timeout END);
  UPDATE orchestrator.task_live l SET input = $3, run_at = t.run_at, expire_at = t.expire_at, changed_at = orchestrator._now() WHERE l.id = t.id;
  UPDATE orchestrator.task_key k SET expires_at = t.run_at WHERE k.owner = t.owner AND k.queue = t.queue AND k.key = t.key;
  PERFORM orchestrator._due(t.run_at), orchestrator._due(t.expire_at);
  RETURN t.id;
END
$$;

-- The same for many, in the order of the keys: two calls cannot deadlock. A
-- null key is nobody's; of equal keys the first one's task holds it.
CREATE FUNCTION orchestrator._take_keys(owner int, queue int, keys text[], key_window interval, tasks bigint[]) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
BEGIN
  PERFORM orchestrator._check_keys($3, $4);
  INSERT INTO orchestrator.task_key AS k (owner, queue, key, task_id, expires_at)
    SELECT DISTINCT ON (n.key COLLATE "C") $1, $2, n.key, n.task, v_now + $4
    FROM unnest($3, $5) WITH ORDINALITY n(key, task, place)
    WHERE n.key IS NOT NULL
    ORDER BY n.key COLLATE "C", n.place
    ON CONFLICT ON CONSTRAINT task_key_pkey DO UPDATE SET task_id = excluded.task_id, expires_at = excluded.expires_at
      WHERE k.expires_at <= v_now;
  -- key by key: statistics of the table tell nothing of what was just inserted
  RETURN ARRAY(SELECT coalesce((SELECT k.task_id FROM orchestrator.task_key k WHERE k.owner = $1 AND k.queue = $2 AND k.key = n.key),
                               n.task)
               FROM unnest($3, $5) WITH ORDINALITY n(key, task, place)
               ORDER BY n.place);
END
$$;

CREATE FUNCTION orchestrator._check_keys(keys text[], key_window interval) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require($2 > interval '0' AND $2 <= interval '100 years', 'key_window must be positive, and not exceed 100 years');
  IF EXISTS (SELECT FROM unnest($1) k WHERE octet_length(k) > 200) THEN
    RAISE EXCEPTION 'key is longer than 200 bytes'
      USING ERRCODE = 'program_limit_exceeded', HINT = 'Use a hash of it, such as md5().';
  ELSIF '' = ANY ($1) THEN
    RAISE EXCEPTION 'key must not be empty' USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave it null for no key.';
  END IF;
END
$$;
