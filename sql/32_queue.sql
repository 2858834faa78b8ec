-- Queues, and sharing definitions and queues with other roles.

CREATE FUNCTION orchestrator.define_queue(name text, max_running int DEFAULT NULL, rate_limit int DEFAULT NULL,
    rate_period interval DEFAULT NULL, weight int DEFAULT NULL, max_depth int DEFAULT NULL, on_full text DEFAULT NULL,
    alert_depth int DEFAULT NULL, alert_age interval DEFAULT NULL, retention interval DEFAULT NULL,
    retention_failed interval DEFAULT NULL, tenant text DEFAULT NULL, tenant_weights jsonb DEFAULT NULL,
    adaptive boolean DEFAULT NULL, min_running int DEFAULT NULL, full_wait interval DEFAULT NULL, preset text DEFAULT NULL,
    description text DEFAULT NULL, metadata jsonb DEFAULT NULL, owner text DEFAULT NULL, alert_endpoint text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.define_queue(text, int, int, interval, int, int, text, int, interval, interval, interval, text,
    jsonb, boolean, int, interval, text, text, jsonb, text, text) IS
  'Makes a queue of the caller, or changes it: what is not given is as in a new one. Takes effect at the commit. preset ''chat'' is max_running 5 and 10 per second, where nothing else is given. alert_endpoint is where its alerts are posted, as webhooks';

CREATE FUNCTION orchestrator.pause_queue(queue text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.pause_queue(text, text) IS
  'Stops starting tasks of a queue. Tasks that run finish; tasks can be enqueued and wait';

CREATE FUNCTION orchestrator.resume_queue(queue text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.resume_queue(text, text) IS 'Starts tasks of a paused queue again';

CREATE FUNCTION orchestrator.share_definition(name text, role text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.share_definition(text, text, text) IS
  'Lets a role and its members, or everybody (''public''), enqueue tasks of a definition. They run with the rights of who enqueues';

CREATE FUNCTION orchestrator.unshare_definition(name text, role text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.unshare_definition(text, text, text) IS 'Takes back share_definition()';

CREATE FUNCTION orchestrator.share_queue(name text, role text, owner text DEFAULT NULL, claim boolean DEFAULT false) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.share_queue(text, text, text, boolean) IS
  'Lets a role and its members, or everybody (''public''), enqueue into a queue; with claim also do, as remote workers, the tasks that anybody has there';

CREATE FUNCTION orchestrator.unshare_queue(name text, role text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.unshare_queue(text, text, text) IS 'Takes back share_queue()';

-- The queue a caller may change: its own; "default" for an administrator, who
-- may also name somebody else's by its name alone when there is only one.
CREATE FUNCTION orchestrator._own_queue(caller oid, queue text, owner text) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int := orchestrator._owner_for($1, $3);
  v_id    int;
BEGIN
  IF $2 = 'default' THEN
    IF NOT orchestrator._is_admin($1) THEN
      RAISE EXCEPTION 'queue "default" is everybody''s: only an administrator may change it'
        USING ERRCODE = 'insufficient_privilege', HINT = 'Make a queue of your own with orchestrator.define_queue().';
    END IF;
    RETURN 1;
  END IF;
  SELECT q.id INTO v_id FROM orchestrator.queue q WHERE q.owner = v_owner AND q.name = $2;
  IF NOT FOUND AND $3 IS NULL AND orchestrator._is_admin($1) THEN
    SELECT min(q.id) INTO v_id FROM orchestrator.queue q WHERE q.name = $2 HAVING count(*) = 1;
  END IF;
  IF v_id IS NULL THEN
    PERFORM orchestrator._no_queue($2);
  END IF;
  RETURN v_id;
END
$$;

CREATE FUNCTION orchestrator._no_queue(queue text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'queue "%" does not exist', $1
    USING ERRCODE = 'undefined_object',
          HINT = 'Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().';
END
$$;

-- Everything about a queue that can be wrong by itself.
CREATE FUNCTION orchestrator._check_queue(q orchestrator.queue) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_what text;
  v_int  int;
  v_span interval;
BEGIN
  FOR v_what, v_int IN
    VALUES ('max_running', q.max_running), ('rate_limit', q.rate_limit), ('min_running', q.min_running), ('max_depth', q.max_depth),
           ('alert_depth', q.alert_depth)
  LOOP
    PERFORM orchestrator._require(v_int > 0, v_what || ' must be positive');
  END LOOP;
  FOR v_what, v_span IN
    VALUES ('rate_period', q.rate_period), ('alert_age', q.alert_age), ('full_wait', q.full_wait), ('retention', q.retention),
           ('retention_failed', q.retention_failed)
  LOOP
    PERFORM orchestrator._require(v_span > interval '0' AND v_span <= interval '100 years', v_what || ' must be positive, and not exceed 100 years');
  END LOOP;
  PERFORM orchestrator._require(q.alert_depth <= 1000000, 'alert_depth must not exceed 1000000', 'So many are counted when it is looked at.');
  PERFORM orchestrator._require(q.alert_endpoint IS NULL OR num_nonnulls(q.alert_depth, q.alert_age) > 0, 'alert_endpoint without alert_depth or alert_age',
                                'Say when there is an alert.');
  PERFORM orchestrator._require(q.full_wait <= CASE q.on_full WHEN 'wait' THEN interval '1 minute' WHEN 'defer' THEN interval '1 day' END,
                                'full_wait must not exceed 1 minute to wait, or 1 day to defer', 'Whoever enqueues waits in its own transaction.');
  PERFORM orchestrator._require(q.weight BETWEEN 1 AND 1000, 'weight must be between 1 and 1000');
  PERFORM orchestrator._require((q.rate_limit IS NULL) = (q.rate_period IS NULL), 'rate_limit and rate_period belong together');
  PERFORM orchestrator._require(q.on_full IN ('reject', 'wait', 'defer'), format('unknown value "%s" of on_full', q.on_full),
                                'Say reject, wait or defer.');
  PERFORM orchestrator._require(NOT q.adaptive OR q.max_running IS NOT NULL, 'adaptive needs max_running', 'It is the most that is tried.');
  PERFORM orchestrator._require(q.min_running <= q.max_running, 'min_running must not be larger than max_running');
  IF q.tenant IS NOT NULL THEN
    PERFORM orchestrator._check_path('queue', 'tenant', q.tenant);
    -- the supervisor follows it, too: it must neither fail nor take long
    PERFORM orchestrator._require(orchestrator._member_path(q.tenant) IS NOT NULL AND q.tenant !~ E'\\]\\s*$', format('tenant %s is not a plain path', q.tenant),
                                  'Write members only, like $.tenant or $.customer.id.');
  END IF;
  PERFORM orchestrator._require(q.tenant_weights IS NULL OR q.tenant IS NOT NULL, 'tenant_weights needs tenant');
  PERFORM orchestrator._require(q.tenant_weights IS NULL OR jsonb_typeof(q.tenant_weights) = 'object', 'tenant_weights is not an object');
  PERFORM orchestrator._require(jsonb_typeof(w.value) = 'number' AND w.value::float8 BETWEEN 0.001 AND 1000,
                                format('the weight of tenant "%s" must be a number between 0.001 and 1000', w.key))
    FROM jsonb_each(q.tenant_weights) w;
END
$$;

-- What a preset of queues gives, where define_queue() is not told otherwise.
CREATE FUNCTION orchestrator._queue_preset(preset text) RETURNS orchestrator.queue
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  q orchestrator.queue;
BEGIN
  PERFORM orchestrator._require($1 IN ('chat'), format('unknown preset "%s" of a queue', $1), 'The only preset is chat.');
  IF $1 = 'chat' THEN
    q.max_running := 5;
    q.rate_limit := 10;
    q.rate_period := '1 second';
  END IF;
  RETURN q;
END
$$;

-- The tenants of a queue are others than they were, or there are none any more:
-- what waits gets the places that it would have had, by its age. Turns may lie
-- years ahead of the time. Rows that somebody has locked are claimed or changed
-- anyway.
CREATE FUNCTION orchestrator._change_tenants(queue int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
  PERFORM orchestrator._forget_turns($1);
  PERFORM orchestrator._start_turns(o.id, $1, orchestrator._now()) FROM orchestrator.owner o
    WHERE EXISTS (SELECT FROM orchestrator.task_live l WHERE l.owner = o.id AND l.queue = $1 AND l.state = 'pending');
  WITH ready AS MATERIALIZED (
    SELECT l.id, l.owner, l.queue, l.input, l.priority, greatest(l.created_at, l.run_at) AS ready_at FROM orchestrator.task_live l
    WHERE l.queue = $1 AND l.state = 'pending'
    FOR UPDATE SKIP LOCKED
  ), placed AS MATERIALIZED (
    SELECT r.id, r.owner, orchestrator._ready_key(r.owner, r.queue, r.input, r.ready_at, r.priority) AS sort_key
    FROM (SELECT * FROM ready ORDER BY ready_at, id OFFSET 0) r
  ), apart AS (
    SELECT p.id, p.sort_key + row_number() OVER (PARTITION BY p.owner, p.sort_key ORDER BY p.id) - 1 AS sort_key FROM placed p
  )
  UPDATE orchestrator.task_live l SET sort_key = a.sort_key FROM apart a WHERE l.id = a.id;
END
$$;

CREATE FUNCTION orchestrator._define_queue(caller oid, name text, max_running int, rate_limit int, rate_period interval,
    weight int, max_depth int, on_full text, alert_depth int, alert_age interval, retention interval,
    retention_failed interval, tenant text, tenant_weights jsonb, adaptive boolean, min_running int, full_wait interval,
    preset text, description text, metadata jsonb, owner text, alert_endpoint text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
  v_owner  int := orchestrator._owner_for(caller, owner);
  v_preset orchestrator.queue := orchestrator._queue_preset(preset);
  v_tenant text;
  v_kept   text;
  q        orchestrator.queue;
BEGIN
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._require_name('queue', name);
  q.max_running := coalesce(max_running, v_preset.max_running);
  q.rate_limit := coalesce(rate_limit, v_preset.rate_limit);
  q.rate_period := coalesce(rate_period, v_preset.rate_period);
  q.weight := coalesce(weight, 1);
  q.tenant := tenant;
  q.tenant_weights := tenant_weights;
  q.adaptive := coalesce(adaptive, false);
  q.min_running := min_running;
  q.max_depth := max_depth;
  q.on_full := coalesce(on_full, 'reject');
  q.full_wait := full_wait;
  q.alert_depth := alert_depth;
  q.alert_age := alert_age;
  q.alert_endpoint := alert_endpoint;
  q.retention := retention;
  q.retention_failed := retention_failed;
  q.description := description;
  q.metadata := metadata;
  PERFORM orchestrator._check_queue(q);
  IF alert_endpoint IS NOT NULL THEN
    -- queue "default" has no owner: it is whoever asks
    q.alert_owner := v_owner;
    PERFORM orchestrator._check_webhook_endpoint((SELECT o.role FROM orchestrator.owner o WHERE o.id = v_owner), alert_endpoint);
  END IF;
  IF name = 'default' THEN
    q.id := orchestrator._own_queue(caller, name, NULL);
  ELSE
    INSERT INTO orchestrator.queue AS x (owner, name, created_at) VALUES (v_owner, name, orchestrator._now())
      ON CONFLICT ON CONSTRAINT queue_owner_name_key DO UPDATE SET created_at = x.created_at
      RETURNING x.id INTO q.id;
  END IF;
  SELECT x.tenant, concat_ws('/', x.retention, x.retention_failed) INTO v_tenant, v_kept FROM orchestrator.queue x WHERE x.id = q.id FOR UPDATE;
  UPDATE orchestrator.queue x
    SET (max_running, rate_limit, rate_period, weight, tenant, tenant_weights, adaptive, min_running, max_depth, on_full,
         full_wait, alert_depth, alert_age, alert_endpoint, alert_owner, retention, retention_failed, description, metadata)
      = (q.max_running, q.rate_limit, q.rate_period, q.weight, q.tenant, q.tenant_weights, q.adaptive, q.min_running, q.max_depth, q.on_full,
         q.full_wait, q.alert_depth, q.alert_age, q.alert_endpoint, q.alert_owner, q.retention, q.retention_failed, q.description, q.metadata)
    WHERE x.id = q.id;
  PERFORM orchestrator._invalidate();
  PERFORM orchestrator._limits_changed();
  IF v_tenant IS DISTINCT FROM q.tenant THEN
    PERFORM orchestrator._change_tenants(q.id);
    PERFORM orchestrator._ready_queue(q.id);
  END IF;
  IF v_kept <> concat_ws('/', q.retention, q.retention_failed) THEN
    PERFORM orchestrator._review();
  END IF;
  IF num_nonnulls(alert_depth, alert_age) > 0 OR EXISTS (SELECT FROM orchestrator.alert a WHERE a.queue = q.id AND a.cleared_at IS NULL) THEN
    PERFORM orchestrator._alert_soon(q.id);
  END IF;
  PERFORM orchestrator._check_alert_count(caller, v_owner);
END
$$;

CREATE FUNCTION orchestrator._pause_queue(caller oid, queue text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_id int;
BEGIN
  PERFORM orchestrator._initialize();
  v_id := orchestrator._own_queue($1, $2, $3);
  UPDATE orchestrator.queue q SET paused = true, paused_at = orchestrator._now() WHERE q.id = v_id AND NOT q.paused;
  PERFORM orchestrator._invalidate();
END
$$;

-- Tell of the oldest ready task of each owner in a queue: claims look from there
-- on.
CREATE FUNCTION orchestrator._ready_queue(queue int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
  PERFORM orchestrator._ready(o.id, $1, r.sort_key)
    FROM orchestrator.owner o
    CROSS JOIN LATERAL (SELECT l.sort_key FROM orchestrator.task_live l
                        WHERE l.owner = o.id AND l.queue = $1 AND l.state = 'pending' AND l.parked_on IS NULL
                        ORDER BY l.sort_key LIMIT 1) r;
  PERFORM orchestrator._ready(o.id, $1, r.sort_key, r.parked_on)
    FROM orchestrator.owner o
    CROSS JOIN LATERAL (SELECT l.sort_key, l.parked_on FROM orchestrator.task_live l
                        WHERE l.owner = o.id AND l.parked_on IN (-$1::bigint, orchestrator._courier_lane($1)) AND l.state = 'pending'
                        ORDER BY l.sort_key LIMIT 1) r;
END
$$;

CREATE FUNCTION orchestrator._resume_queue(caller oid, queue text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_id int;
BEGIN
  PERFORM orchestrator._initialize();
  v_id := orchestrator._own_queue($1, $2, $3);
  UPDATE orchestrator.queue q SET paused = false, paused_at = NULL WHERE q.id = v_id AND q.paused;
  PERFORM orchestrator._invalidate();
  PERFORM orchestrator._ready_queue(v_id);
END
$$;

-- owner.id of who something is shared with; 0 for everybody, in any spelling
-- that is not a role's.
CREATE FUNCTION orchestrator._grantee(role text) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF lower($1) = 'public' AND NOT EXISTS (SELECT FROM pg_authid a WHERE a.rolname = $1) THEN
    RETURN 0;
  END IF;
  RETURN orchestrator._owner(orchestrator._role($1));
END
$$;

CREATE FUNCTION orchestrator._share_definition(caller oid, name text, role text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int := orchestrator._owner_for($1, $4);
BEGIN
  PERFORM orchestrator._initialize();
  IF NOT EXISTS (SELECT FROM orchestrator.definition d WHERE d.owner = v_owner AND d.name = $2 AND d.is_current) THEN
    RAISE EXCEPTION 'definition "%" does not exist', $2
      USING ERRCODE = 'undefined_object', HINT = 'A definition is shared by its owner; make it with orchestrator.define().';
  END IF;
  INSERT INTO orchestrator.definition_share (owner, name, grantee) VALUES (v_owner, $2, orchestrator._grantee($3))
    ON CONFLICT DO NOTHING;
  PERFORM orchestrator._invalidate();
END
$$;

CREATE FUNCTION orchestrator._unshare_definition(caller oid, name text, role text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner   int := orchestrator._owner_for($1, $4);
  v_grantee int := orchestrator._grantee($3);
BEGIN
  DELETE FROM orchestrator.definition_share s WHERE s.owner = v_owner AND s.name = $2 AND s.grantee = v_grantee;
  PERFORM orchestrator._invalidate();
END
$$;

CREATE FUNCTION orchestrator._share_queue(caller oid, name text, role text, owner text, claim boolean) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._initialize();
  INSERT INTO orchestrator.queue_share (queue, owner, grantee, may_claim)
    SELECT q.id, q.owner, orchestrator._grantee($3), coalesce($5, false)
    FROM orchestrator.queue q WHERE q.id = orchestrator._own_queue($1, $2, $4)
    ON CONFLICT ON CONSTRAINT queue_share_pkey DO UPDATE SET may_claim = excluded.may_claim;
  PERFORM orchestrator._invalidate();
END
$$;

CREATE FUNCTION orchestrator._unshare_queue(caller oid, name text, role text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_id      int := orchestrator._own_queue($1, $2, $4);
  v_grantee int := orchestrator._grantee($3);
BEGIN
  DELETE FROM orchestrator.queue_share s WHERE s.queue = v_id AND s.grantee = v_grantee;
  PERFORM orchestrator._invalidate();
END
$$;
