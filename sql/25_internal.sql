-- Internal: the clock, owners, partitions, the trace: what every chapter uses.
--
-- Our own SQLSTATEs. They stand in the error of a task (and of its attempts):
--   OR001  the task was cancelled
--   OR002  the task expired: its deadline passed, or it was not started within queue_timeout
--   OR003  the worker process that ran the step died, or a remote worker's lease ended without a report
--   OR004  the step ran longer than the timeout of its definition
--   OR005  the task cannot run: its role is gone, was renamed, or may not log in
--   OR006  the step was rejected
--   OR007  a limit of the run was exceeded: max_steps, max_depth, max_repeats, max_tool_rounds
--   OR011  a remote worker reported that the step failed, without a code of its own
--   OR012  an outside call failed: no answer came, or one whose status says so
--   OR013  the answer of an outside call cannot be used: too large, no text, or not as expected
--   OR014  a budget is spent: of the task at the top, or of its role
--   OR015  a tool, or its server, says that it failed
--   OR016  an agent gave up
-- This is given to a remote worker, whose report changes nothing:
--   OR010  the task is no longer its own: the lease ended, or the task was cancelled, paused or taken over
-- These are given to who enqueues, and nothing is enqueued:
--   OR008  the queue is full: its max_depth
--   OR009  the role has as much as it may: a quota of set_quota()
-- What a caller did wrong is reported with PostgreSQL's own:
--   undefined_object                   no such task, definition, queue, role that the caller may use
--   object_not_in_prerequisite_state   the task is in a state that does not allow it
--   insufficient_privilege             only its owner or an administrator may
--   invalid_parameter_value, program_limit_exceeded, ...

-- Provided by the library (src/event.c, src/fair.c, src/catalog.c,
-- src/progress.c). What they tell others is told after commit.

CREATE FUNCTION orchestrator._now() RETURNS timestamptz
  LANGUAGE C VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'orchestrator_now';
COMMENT ON FUNCTION orchestrator._now() IS 'The clock of the engine: clock_timestamp(), plus an offset in tests';

CREATE FUNCTION orchestrator._sort_key(at timestamptz, priority int) RETURNS bigint
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_sort_key';
CREATE FUNCTION orchestrator._ready_key(owner int, queue int, input jsonb, at timestamptz, priority int) RETURNS bigint
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_ready_key';
COMMENT ON FUNCTION orchestrator._ready_key(int, int, jsonb, timestamptz, int) IS
  'The place in its queue of a task that becomes ready: by time and priority, or its tenant''s turn; takes it';
CREATE FUNCTION orchestrator._return_turn(owner int, queue int, input jsonb, priority int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_return_turn';
CREATE FUNCTION orchestrator._claimed(owner int, queue int, sort_key bigint, priority int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_claimed';
CREATE FUNCTION orchestrator._read_turn(owner int, queue int, input jsonb, sort_key bigint, priority int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_read_turn';
CREATE FUNCTION orchestrator._start_turns(owner int, queue int, at timestamptz) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_start_turns';
CREATE FUNCTION orchestrator._forget_turns(queue int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_forget_turns';
CREATE FUNCTION orchestrator._ready(owner int, queue int, sort_key bigint, parked_on bigint DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_ready';
COMMENT ON FUNCTION orchestrator._ready(int, int, bigint, bigint) IS
  'A task became ready: who claims from its queue is woken; of one for remote workers (parked_on below 0), they are. Does nothing without a sort_key';

-- Kinds of tasks that are outside calls.
CREATE FUNCTION orchestrator._call_kinds() RETURNS text[]
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN '{http,llm,embedding,tool,webhook,summarize}'::text[];
END
$$;

-- As ORCH_COURIER_LANE in src/shmem.h.
CREATE FUNCTION orchestrator._courier_lane(queue int) RETURNS bigint
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN -1073741824 - $1::bigint;
END
$$;

-- In the place of a limit that a row is parked on: it waits for remote workers
-- or the courier, in their lane of its queue, where no executor looks. Null: it
-- does not.
CREATE FUNCTION orchestrator._remote_lane(definition int, queue int) RETURNS bigint
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT CASE WHEN d.kind = 'remote' THEN -$2::bigint
                      WHEN d.kind = ANY (orchestrator._call_kinds()) THEN orchestrator._courier_lane($2) END
          FROM orchestrator.definition d WHERE d.id = $1);
END
$$;
-- What is taken of the limits that are in use; and the number of a limit, of
-- kind queue (by id), definition (by id of the owner and name) or role (by id of
-- the owner).
CREATE FUNCTION orchestrator._permits(OUT id bigint, OUT running int, OUT started int, OUT waiting boolean, OUT adaptive int)
  RETURNS SETOF record
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_permits';
CREATE FUNCTION orchestrator._limit_id(kind text, number int, name text) RETURNS bigint
  LANGUAGE C IMMUTABLE STRICT AS 'MODULE_PATHNAME', 'orchestrator_limit_id';

-- Limits are changed by this transaction: what sleeps for one looks again.
CREATE FUNCTION orchestrator._limits_changed() RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_limits_changed';

CREATE FUNCTION orchestrator._due(at timestamptz) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_due';
CREATE FUNCTION orchestrator._emit(task bigint, root bigint, parent bigint, event text,
    state orchestrator.task_state, progress float8, attempt int, notify boolean) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_emit';
CREATE FUNCTION orchestrator._interrupt(task bigint, epoch int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_interrupt';
CREATE FUNCTION orchestrator._yield(task bigint) RETURNS boolean
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_yield';
CREATE FUNCTION orchestrator._yield_own(task bigint) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_yield_own';
CREATE FUNCTION orchestrator._insert_items(model orchestrator.task, inputs jsonb[], first int) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_insert_items';
COMMENT ON FUNCTION orchestrator._insert_items(orchestrator.task, jsonb[], int) IS 'Inserts live rows like the model, one for each input, as items from first on';
CREATE FUNCTION orchestrator._has_partitions(id bigint) RETURNS boolean
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_has_partitions';
COMMENT ON FUNCTION orchestrator._has_partitions(bigint) IS 'Whether the finished row and the trace of a task have partitions to go to';
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
  LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'orchestrator_may_fire';

-- Warn of that, once in a session.
CREATE FUNCTION orchestrator._warn_of_copy() RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_warn_of_copy';

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
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
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
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_range bigint := $1 / 1000000;
  v_kind  text;
  v_name  text;
BEGIN
  LOCK TABLE ONLY orchestrator.task_finished, ONLY orchestrator.trace_log IN SHARE UPDATE EXCLUSIVE MODE;
  FOREACH v_kind IN ARRAY '{task_finished,trace_log}'::text[] LOOP
    v_name := format('%s_%s', v_kind, v_range);
    CONTINUE WHEN orchestrator._attached(v_name);
    IF to_regclass(format('orchestrator.%I', v_name)) IS NOT NULL THEN
      PERFORM orchestrator._require_leaving(v_name, v_range);
      PERFORM orchestrator._set_aside(v_name);
    END IF;
    PERFORM orchestrator._create_partition(v_kind, v_kind, v_range);
    PERFORM orchestrator._index_partition(v_kind, v_kind, v_range);
    PERFORM orchestrator._attach_partition(v_kind, v_range);
  END LOOP;
END
$$;

-- Whether a partition is one now. One that retention is about to detach is
-- neither: no rows can be written to its range until it is gone.
CREATE FUNCTION orchestrator._attached(partition text) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_pending boolean;
BEGIN
  SELECT i.inhdetachpending INTO v_pending FROM pg_inherits i WHERE i.inhrelid = to_regclass(format('orchestrator.%I', $1));
  IF v_pending THEN
    RAISE EXCEPTION 'partition "%" is being dropped', $1 USING ERRCODE = 'lock_not_available', HINT = 'Try again.';
  END IF;
  RETURN v_pending IS NOT NULL;
END
$$;

-- A table that bears the name of a partition is moved out of the way only when
-- retention detached it (chapter 68).
CREATE FUNCTION orchestrator._require_leaving(name text, range bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM orchestrator.partition_state s WHERE s.range = $2 AND s.leaving) THEN
    RAISE EXCEPTION 'table "%" has the name of a partition, but is none', $1
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Attach it again, or rename it.';
  ELSIF to_regclass(format('orchestrator.expired_%s', $1)) IS NOT NULL THEN
    RAISE EXCEPTION 'partition "%" is being dropped', $1 USING ERRCODE = 'lock_not_available', HINT = 'Try again.';
  END IF;
END
$$;

-- A table that will be a partition; its name is prefix and range.
CREATE FUNCTION orchestrator._create_partition(prefix text, kind text, range bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET default_tablespace = '' SET default_table_access_method = heap AS $$
BEGIN
  EXECUTE format('CREATE TABLE orchestrator.%s_%s (LIKE orchestrator.%I INCLUDING DEFAULTS)', $1, $3, $2);
  PERFORM orchestrator._close_partition(format('%s_%s', $1, $3));
END
$$;

CREATE FUNCTION orchestrator._index_partition(prefix text, kind text, range bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET default_tablespace = '' AS $$
BEGIN
  IF $2 = 'trace_log' THEN
    EXECUTE format('CREATE INDEX %1$s_%2$s_task ON orchestrator.%1$s_%2$s USING brin (task_id) WITH (autosummarize = on)', $1, $3);
    EXECUTE format('ALTER TABLE orchestrator.%1$s_%2$s REPLICA IDENTITY FULL', $1, $3);
    RETURN;
  END IF;
  EXECUTE format('CREATE UNIQUE INDEX %1$s_%2$s_id ON orchestrator.%1$s_%2$s (id)', $1, $3);
  EXECUTE format('ALTER TABLE orchestrator.%1$s_%2$s REPLICA IDENTITY USING INDEX %1$s_%2$s_id', $1, $3);
  EXECUTE format('CREATE INDEX %1$s_%2$s_parent ON orchestrator.%1$s_%2$s (parent_id, step, item) WHERE parent_id IS NOT NULL', $1, $3);
END
$$;

CREATE FUNCTION orchestrator._attach_partition(kind text, range bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  EXECUTE format('ALTER TABLE orchestrator.%1$I ATTACH PARTITION orchestrator.%1$s_%2$s FOR VALUES FROM (%3$s) TO (%4$s)',
                 $1, $2, $2 * 1000000, ($2 + 1) * 1000000);
END
$$;

-- Nobody reads a partition but through its parent, whose policies apply.
CREATE FUNCTION orchestrator._close_partition(partition text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  EXECUTE format('ALTER TABLE orchestrator.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', $1);
  PERFORM orchestrator._close_relation($1);
END
$$;

-- Take away what default privileges gave of a table or view that was just made.
CREATE FUNCTION orchestrator._close_relation(name text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_grantee text;
BEGIN
  EXECUTE format('REVOKE ALL ON orchestrator.%I FROM PUBLIC', $1);
  FOR v_grantee IN
    SELECT DISTINCT a.rolname FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) x JOIN pg_authid a ON a.oid = x.grantee
    WHERE c.oid = format('orchestrator.%I', $1)::regclass AND x.grantee <> c.relowner
  LOOP
    EXECUTE format('REVOKE ALL ON orchestrator.%I FROM %I', $1, v_grantee);
  END LOOP;
END
$$;

-- Make them when an id outran the supervisor, or outlived its range.
CREATE FUNCTION orchestrator._ensure_partition(id bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT orchestrator._has_partitions($1) THEN
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

-- Tell of a transition: the row as it is now, and what happened. What is
-- completed has a progress of 1, as in C and the views.
CREATE FUNCTION orchestrator._tell(t orchestrator.task, event text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._emit(t.id, t.root_id, t.parent_id, $2, t.state, CASE $2 WHEN 'completed' THEN 1 END, t.attempt,
                             orchestrator._notifies(t.definition));
END
$$;
