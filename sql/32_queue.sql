-- Queues, and sharing definitions and queues with other roles.

CREATE FUNCTION orchestrator.define_queue(name text, description text DEFAULT NULL, metadata jsonb DEFAULT NULL,
    owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.define_queue(text, text, jsonb, text) IS
  'Makes a queue of the caller, or changes its description';

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

CREATE FUNCTION orchestrator.share_queue(name text, role text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.share_queue(text, text, text) IS
  'Lets a role and its members, or everybody (''public''), enqueue into a queue';

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

CREATE FUNCTION orchestrator._define_queue(caller oid, name text, description text, metadata jsonb, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int := orchestrator._owner_for($1, $5);
  v_id    int := 1;
BEGIN
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._require_name('queue', $2);
  IF $2 = 'default' THEN
    v_id := orchestrator._own_queue($1, $2, NULL);
  ELSE
    INSERT INTO orchestrator.queue AS q (owner, name, description, metadata, created_at)
      VALUES (v_owner, $2, $3, $4, orchestrator._now())
      ON CONFLICT ON CONSTRAINT queue_owner_name_key DO UPDATE SET created_at = q.created_at
      RETURNING q.id INTO v_id;
  END IF;
  UPDATE orchestrator.queue q SET description = $3, metadata = $4
    WHERE q.id = v_id AND (q.description, q.metadata) IS DISTINCT FROM ($3, $4);
  PERFORM orchestrator._invalidate();
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

-- Tells of the oldest ready task of each owner: claims look from there on.
CREATE FUNCTION orchestrator._resume_queue(caller oid, queue text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_id int;
BEGIN
  PERFORM orchestrator._initialize();
  v_id := orchestrator._own_queue($1, $2, $3);
  UPDATE orchestrator.queue q SET paused = false, paused_at = NULL WHERE q.id = v_id AND q.paused;
  PERFORM orchestrator._invalidate();
  PERFORM orchestrator._ready(o.id, v_id, r.sort_key)
    FROM orchestrator.owner o
    CROSS JOIN LATERAL (SELECT l.sort_key FROM orchestrator.task_live l
                        WHERE l.owner = o.id AND l.queue = v_id AND l.state = 'pending'
                        ORDER BY l.sort_key LIMIT 1) r;
END
$$;

-- owner.id of who something is shared with; 0 for everybody.
CREATE FUNCTION orchestrator._grantee(role text) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF lower($1) = 'public' THEN
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

CREATE FUNCTION orchestrator._share_queue(caller oid, name text, role text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._initialize();
  INSERT INTO orchestrator.queue_share (queue, grantee)
    VALUES (orchestrator._own_queue($1, $2, $4), orchestrator._grantee($3))
    ON CONFLICT DO NOTHING;
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
