-- Internal: the clock, owners, partitions, the trace: what every chapter uses.
--
-- Our own SQLSTATEs. They stand in the error of a task (and of its attempts):
--   OR001  the task was cancelled
--   OR002  the task expired: its deadline passed, or it was not started within queue_timeout
--   OR003  the worker process that ran the step died
--   OR004  the step ran longer than the timeout of its definition
--   OR005  the task cannot run: its role is gone, was renamed, or may not log in
--   OR006  the step was rejected
--   OR007  a limit of the run was exceeded: max_steps, max_depth, max_repeats
-- What a caller did wrong is reported with PostgreSQL's own:
--   undefined_object                   no such task, definition, queue, role that the caller may use
--   object_not_in_prerequisite_state   the task is in a state that does not allow it
--   insufficient_privilege             only its owner or an administrator may
--   invalid_parameter_value, program_limit_exceeded, ...

-- Provided by the library (src/event.c, src/enqueue.c, src/catalog.c,
-- src/progress.c). What they tell others is told after commit.

CREATE FUNCTION orchestrator._now() RETURNS timestamptz
  LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'orchestrator_now';
COMMENT ON FUNCTION orchestrator._now() IS 'The clock of the engine: clock_timestamp(), plus an offset in tests';

CREATE FUNCTION orchestrator._sort_key(at timestamptz, priority int) RETURNS bigint
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_sort_key';
CREATE FUNCTION orchestrator._ready(owner int, queue int, sort_key bigint) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_ready';
CREATE FUNCTION orchestrator._due(at timestamptz) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_due';
CREATE FUNCTION orchestrator._emit(task bigint, root bigint, parent bigint, event text,
    state orchestrator.task_state, progress float8, attempt int, notify boolean) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_emit';
CREATE FUNCTION orchestrator._interrupt(task bigint, epoch int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_interrupt';
CREATE FUNCTION orchestrator._yield(task bigint) RETURNS boolean
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_yield';
CREATE FUNCTION orchestrator._insert_items(model orchestrator.task, inputs jsonb[], first int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_insert_items';
COMMENT ON FUNCTION orchestrator._insert_items(orchestrator.task, jsonb[], int) IS 'Inserts live rows like the model, one for each input, as items from first on';
CREATE FUNCTION orchestrator._preloaded() RETURNS boolean
  LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'orchestrator_preloaded';
CREATE FUNCTION orchestrator._invalidate() RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_invalidate';
CREATE FUNCTION orchestrator._announce() RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_announce';
CREATE FUNCTION orchestrator._visible_owners() RETURNS int[]
  LANGUAGE C STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'orchestrator_visible_owners';
COMMENT ON FUNCTION orchestrator._visible_owners() IS 'Owners whose rows the current user may see; asked once per query by the policies';

-- What the workers of this database do now, from shared memory. Everybody with
-- a right to the views may call it, so it shows only what they may see.
CREATE FUNCTION orchestrator._slots(OUT pid int, OUT kind text, OUT role oid, OUT task_id bigint, OUT epoch int,
    OUT attempt int, OUT state text, OUT since timestamptz, OUT started_at timestamptz, OUT progress float8,
    OUT message text, OUT stage text, OUT claimed int, OUT database oid, OUT item int) RETURNS SETOF record
  LANGUAGE C VOLATILE ROWS 8 AS 'MODULE_PATHNAME', 'orchestrator_slots';
COMMENT ON FUNCTION orchestrator._slots() IS 'Live state of the workers of this database, as far as the current user may see it';

-- The first call that writes makes the rows that the install script must not
-- make: in a restored database they come from the dump. An empty identity
-- means that nothing was ever enqueued here.
CREATE FUNCTION orchestrator._initialize() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF EXISTS (SELECT FROM orchestrator.queue WHERE id = 1)
     AND EXISTS (SELECT FROM orchestrator.database_identity) THEN
    RETURN;
  END IF;
  LOCK TABLE orchestrator.database_identity IN SHARE ROW EXCLUSIVE MODE;
  IF NOT EXISTS (SELECT FROM orchestrator.database_identity) THEN
    PERFORM orchestrator._identify();
  END IF;
  INSERT INTO orchestrator.owner (id, role, name) VALUES (0, 0, '') ON CONFLICT DO NOTHING;
  INSERT INTO orchestrator.queue (id, owner, name, description, created_at)
    VALUES (1, 0, 'default', 'where tasks wait that name no other queue', orchestrator._now())
    ON CONFLICT DO NOTHING;
  PERFORM orchestrator._invalidate();
  PERFORM orchestrator._announce();
END
$$;

-- Write down which server and database this is.
CREATE FUNCTION orchestrator._identify() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO orchestrator.database_identity (system_identifier, database, activated_at)
    SELECT c.system_identifier, d.oid, orchestrator._now()
    FROM pg_control_system() c, pg_database d
    WHERE d.datname = current_database()
    ON CONFLICT DO NOTHING;
END
$$;

-- Whether tasks may run here: not in a copy of the database they belong to.
CREATE FUNCTION orchestrator._may_fire() RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT bool_and(i.system_identifier = c.system_identifier AND i.database = d.oid)
                   FROM orchestrator.database_identity i, pg_control_system() c, pg_database d
                   WHERE d.datname = current_database()), false);
END
$$;

-- owner.id of a role, made when missing. A role that was renamed, or dropped
-- and made again, is another owner.
CREATE FUNCTION orchestrator._owner(role oid) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_name name;
  v_id   int;
BEGIN
  SELECT a.rolname INTO v_name FROM pg_authid a WHERE a.oid = $1;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'role with OID % does not exist', $1 USING ERRCODE = 'undefined_object';
  END IF;
  LOOP
    SELECT o.id INTO v_id FROM orchestrator.owner o WHERE o.role = $1 AND o.name = v_name;
    EXIT WHEN FOUND;
    INSERT INTO orchestrator.owner (role, name) VALUES ($1, v_name)
      ON CONFLICT DO NOTHING RETURNING id INTO v_id;
    IF FOUND THEN
      PERFORM orchestrator._invalidate();   -- nobody may remember it after a rollback
      EXIT;
    END IF;
  END LOOP;
  RETURN v_id;
END
$$;

-- OID of a role by name. PUBLIC is not a role here.
CREATE FUNCTION orchestrator._role(role text) RETURNS oid
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_oid oid;
BEGIN
  SELECT a.oid INTO v_oid FROM pg_authid a WHERE a.rolname = $1;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'role "%" does not exist', coalesce($1, 'null') USING ERRCODE = 'undefined_object';
  END IF;
  RETURN v_oid;
END
$$;

-- Owners that a role is, or is a member of: whose OID and name both still fit.
CREATE FUNCTION orchestrator._member_owners(caller oid) RETURNS int[]
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN ARRAY(SELECT o.id FROM orchestrator.owner o JOIN pg_authid a ON a.oid = o.role AND a.rolname = o.name
               WHERE pg_has_role($1, a.oid, 'USAGE'));
END
$$;

-- Whether a role has one of the levels of grant_usage(), itself or through membership.
CREATE FUNCTION orchestrator._has_level(caller oid, levels text[]) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT a.rolsuper FROM pg_authid a WHERE a.oid = $1)
    OR EXISTS (SELECT FROM orchestrator.usage_grant g
                 JOIN orchestrator.owner o ON o.id = g.grantee
                 JOIN pg_authid a ON a.oid = o.role AND a.rolname = o.name
               WHERE g.level = ANY ($2) AND pg_has_role($1, a.oid, 'USAGE'));
END
$$;

CREATE FUNCTION orchestrator._is_admin(caller oid) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN orchestrator._has_level($1, '{admin}')
    OR pg_has_role($1, (SELECT e.extowner FROM pg_extension e WHERE e.extname = 'orchestrator'), 'USAGE');
END
$$;

-- Owners whose rows a role may read. Asked by _visible_owners().
CREATE FUNCTION orchestrator._visible_owners_of(caller oid) RETURNS int[]
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF orchestrator._is_admin($1) OR orchestrator._has_level($1, '{viewer}') THEN
    RETURN ARRAY(SELECT o.id FROM orchestrator.owner o) || 0;
  END IF;
  RETURN orchestrator._member_owners($1) || 0;
END
$$;

-- Owners whose tasks, definitions and queues a role may change.
CREATE FUNCTION orchestrator._controlled_owners(caller oid) RETURNS int[]
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF orchestrator._is_admin($1) THEN
    RETURN ARRAY(SELECT o.id FROM orchestrator.owner o);
  END IF;
  RETURN orchestrator._member_owners($1);
END
$$;

-- The owner a caller acts for: itself, or one that it names and may change.
CREATE FUNCTION orchestrator._owner_for(caller oid, owner text) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_id int;
BEGIN
  IF $2 IS NULL THEN
    RETURN orchestrator._owner($1);
  END IF;
  IF NOT (pg_has_role($1, orchestrator._role($2), 'USAGE') OR orchestrator._is_admin($1)) THEN
    RAISE EXCEPTION 'must be a member of role "%", or an administrator', $2
      USING ERRCODE = 'insufficient_privilege',
            HINT = 'An administrator is made by orchestrator.grant_usage(role, ''admin'').';
  END IF;
  RETURN orchestrator._owner(orchestrator._role($2));
END
$$;

-- Make the partitions for the finished rows and the trace of a range of ids.
-- Ordinary tables, not members of the extension: dumped with their rows. They
-- are attached when they are ready, under SHARE UPDATE EXCLUSIVE on the parents.
CREATE FUNCTION orchestrator._make_partitions(first bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET default_tablespace = '' SET default_table_access_method = heap AS $$
DECLARE
  v_range bigint := $1 / 1000000;
  v_from  bigint := v_range * 1000000;
BEGIN
  LOCK TABLE ONLY orchestrator.task_finished, ONLY orchestrator.trace_log IN SHARE UPDATE EXCLUSIVE MODE;
  IF to_regclass(format('orchestrator.task_finished_%s', v_range)) IS NULL THEN
    EXECUTE format('CREATE TABLE orchestrator.task_finished_%1$s (LIKE orchestrator.task_finished INCLUDING DEFAULTS)', v_range);
    EXECUTE format('CREATE UNIQUE INDEX task_finished_%1$s_id ON orchestrator.task_finished_%1$s (id)', v_range);
    EXECUTE format('CREATE INDEX task_finished_%1$s_parent ON orchestrator.task_finished_%1$s (parent_id, step, item) WHERE parent_id IS NOT NULL', v_range);
    PERFORM orchestrator._close_partition(format('task_finished_%s', v_range));
    EXECUTE format('ALTER TABLE orchestrator.task_finished ATTACH PARTITION orchestrator.task_finished_%s FOR VALUES FROM (%s) TO (%s)',
                   v_range, v_from, v_from + 1000000);
  END IF;
  IF to_regclass(format('orchestrator.trace_log_%s', v_range)) IS NULL THEN
    EXECUTE format('CREATE TABLE orchestrator.trace_log_%1$s (LIKE orchestrator.trace_log INCLUDING DEFAULTS)', v_range);
    EXECUTE format('CREATE INDEX trace_log_%1$s_task ON orchestrator.trace_log_%1$s USING brin (task_id) WITH (autosummarize = on)', v_range);
    PERFORM orchestrator._close_partition(format('trace_log_%s', v_range));
    EXECUTE format('ALTER TABLE orchestrator.trace_log ATTACH PARTITION orchestrator.trace_log_%s FOR VALUES FROM (%s) TO (%s)',
                   v_range, v_from, v_from + 1000000);
  END IF;
END
$$;

-- Nobody reads a partition but through its parent, whose policies apply.
CREATE FUNCTION orchestrator._close_partition(partition text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  EXECUTE format('ALTER TABLE orchestrator.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', $1);
  EXECUTE format('REVOKE ALL ON orchestrator.%I FROM PUBLIC', $1);
END
$$;

-- Make them when an id outran the supervisor, or outlived its range.
CREATE FUNCTION orchestrator._ensure_partition(id bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF to_regclass(format('orchestrator.task_finished_%s', $1 / 1000000)) IS NULL
     OR to_regclass(format('orchestrator.trace_log_%s', $1 / 1000000)) IS NULL THEN
    PERFORM orchestrator._make_partitions($1);
  END IF;
END
$$;

-- Write one line of the audit trail.
CREATE FUNCTION orchestrator._trace(t orchestrator.task, at timestamptz, attempt int, event text, detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._ensure_partition(t.id);
  INSERT INTO orchestrator.trace_log (task_id, at, owner, attempt, epoch, event, detail)
    VALUES (t.id, coalesce($2, orchestrator._now()), t.owner, $3, t.epoch, $4, $5);
END
$$;

-- Something that a running step said, or that was noticed about it.
CREATE FUNCTION orchestrator._note(task bigint, owner int, attempt int, epoch int, at timestamptz, event text,
    detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._ensure_partition($1);
  INSERT INTO orchestrator.trace_log (task_id, at, owner, attempt, epoch, event, detail)
    VALUES ($1, $5, $2, $3, $4, $6, $7);
END
$$;

-- Whether LISTEN clients hear of the tasks of a definition.
CREATE FUNCTION orchestrator._notifies(definition int) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT d.notify <> 'off' FROM orchestrator.definition d WHERE d.id = $1), true);
END
$$;

-- Tell of a transition: the row as it is now, and what happened.
CREATE FUNCTION orchestrator._tell(t orchestrator.task, event text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._emit(t.id, t.root_id, t.parent_id, $2, t.state, NULL, t.attempt,
                             orchestrator._notifies(t.definition));
END
$$;
