-- Access: who may use the extension in this database, and what a dump keeps.
--
-- Nothing is granted to PUBLIC. grant_usage() gives a role one of four levels:
--
--   viewer     reads the views and tables, and sees the tasks of everybody
--   producer   defines, enqueues, waits, and controls its own tasks
--   worker     a producer that may also claim as a remote worker
--   admin      controls everybody's tasks and queues, grants and revokes usage
--
-- Privileges say which functions and tables a role reaches; the policies below
-- and the functions themselves say which rows.

CREATE FUNCTION orchestrator.grant_usage(role text, level text DEFAULT 'producer') RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.grant_usage(text, text) IS
  'Lets a role use the orchestrator of this database, as producer, worker, viewer or admin; replaces the level it has';

CREATE FUNCTION orchestrator.revoke_usage(role text) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.revoke_usage(text) IS 'Takes back grant_usage(). Tasks that the role enqueued still run';

CREATE FUNCTION orchestrator.activate() RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.activate() IS
  'Lets tasks run in this database after it was restored or copied from another one';

CREATE FUNCTION orchestrator._require_admin(caller oid) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT orchestrator._is_admin($1) THEN
    RAISE EXCEPTION 'only a superuser or an administrator may do this'
      USING ERRCODE = 'insufficient_privilege',
            HINT = 'An administrator is made by orchestrator.grant_usage(role, ''admin'').';
  END IF;
END
$$;

CREATE FUNCTION orchestrator._grant_usage(caller oid, role text, level text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_role oid;
BEGIN
  PERFORM orchestrator._require_admin($1);
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._require($3 IS NOT NULL AND $3 IN ('producer', 'worker', 'viewer', 'admin'),
                                format('unknown level "%s"', $3), 'Levels are producer, worker, viewer and admin.');
  PERFORM orchestrator._require(lower($2) <> 'public' OR EXISTS (SELECT FROM pg_authid a WHERE a.rolname = $2), 'usage is not granted to everybody', 'Grant it to a role that its users are members of.');
  v_role := orchestrator._role($2);
  INSERT INTO orchestrator.usage_grant (grantee, level) VALUES (orchestrator._owner(v_role), $3)
    ON CONFLICT ON CONSTRAINT usage_grant_pkey DO UPDATE SET level = excluded.level;
  PERFORM orchestrator._revoke_all($2);
  PERFORM orchestrator._grant_level($2, $3);
  PERFORM orchestrator._invalidate();
END
$$;

CREATE FUNCTION orchestrator._revoke_usage(caller oid, role text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require_admin($1);
  DELETE FROM orchestrator.usage_grant g WHERE g.grantee = orchestrator._owner(orchestrator._role($2));
  PERFORM orchestrator._revoke_all($2);
  PERFORM orchestrator._invalidate();
END
$$;

CREATE FUNCTION orchestrator._revoke_all(role text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- not while a partition is made, or another role's rights change: both write
  -- the catalog rows of the same tables
  LOCK TABLE ONLY orchestrator.task_finished, ONLY orchestrator.trace_log IN SHARE UPDATE EXCLUSIVE MODE;
  EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA orchestrator FROM %I', $1);
  EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA orchestrator FROM %I', $1);
  EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA orchestrator FROM %I', $1);
  EXECUTE format('REVOKE ALL ON TYPE orchestrator.task_state, orchestrator.task_result, orchestrator.claimed_task, orchestrator.step_spec FROM %I', $1);
  EXECUTE format('REVOKE ALL ON SCHEMA orchestrator FROM %I', $1);
END
$$;

-- Take away what default privileges of who installs gave to roles. For the
-- end of the install script, and of an upgrade that adds anything.
CREATE FUNCTION orchestrator._revoke_defaults() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._revoke_all(a.rolname)
    FROM (SELECT c.relacl AS acl, c.relowner AS owner FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace
          UNION ALL
          SELECT p.proacl, p.proowner FROM pg_proc p WHERE p.pronamespace = 'orchestrator'::regnamespace
          UNION ALL
          SELECT t.typacl, t.typowner FROM pg_type t WHERE t.typnamespace = 'orchestrator'::regnamespace
          UNION ALL
          SELECT n.nspacl, n.nspowner FROM pg_namespace n WHERE n.nspname = 'orchestrator') o
    CROSS JOIN LATERAL aclexplode(o.acl) x
    JOIN pg_authid a ON a.oid = x.grantee
    WHERE x.grantee <> o.owner
    GROUP BY a.rolname;
END
$$;

-- Give a role what its level says. An upgrade that adds functions calls this
-- again for every row of usage_grant.
CREATE FUNCTION orchestrator._grant_level(role text, level text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_administrative constant text[] := '{grant_usage,revoke_usage,activate,set_quota,set_price,set_budget,tick}';
  v_workers        constant text[] := '{claim,await_work,heartbeat,heartbeat_many,complete,complete_many,fail,release,log}';
  v_routine regprocedure;
BEGIN
  EXECUTE format('GRANT USAGE ON SCHEMA orchestrator TO %I', $1);
  EXECUTE format('GRANT USAGE ON TYPE orchestrator.task_state, orchestrator.task_result, orchestrator.claimed_task, orchestrator.step_spec TO %I', $1);
  EXECUTE format('GRANT SELECT ON orchestrator.task, orchestrator.trace_log, orchestrator.owner, orchestrator.queue,
                  orchestrator.queue_share, orchestrator.definition, orchestrator.definition_share, orchestrator.task_key,
                  orchestrator.usage_grant, orchestrator.added_step, orchestrator.signal, orchestrator.checkpoint,
                  orchestrator.run_context, orchestrator.step_memo, orchestrator.partition_state, orchestrator.archive_hook,
                  orchestrator.archive_run, orchestrator.retention_status, orchestrator.trace, orchestrator.task_status, orchestrator.step_status,
                  orchestrator.workflow_status, orchestrator.batch_status, orchestrator.queue_status,
                  orchestrator.queue_decision, orchestrator.queue_decisions,
                  orchestrator.worker_status, orchestrator.definition_status, orchestrator.stats,
                  orchestrator.stats_by_period, orchestrator.queue_stats, orchestrator.definition_stats,
                  orchestrator.role_quota, orchestrator.quota_status, orchestrator.alert, orchestrator.alert_status,
                  orchestrator.schedule, orchestrator.schedule_tick, orchestrator.schedule_status,
                  orchestrator.model_price, orchestrator.model_usage, orchestrator.model_budget, orchestrator.tool, orchestrator.usage_status TO %I', $1);
  -- but for the secret
  EXECUTE format('GRANT SELECT (task_id, epoch, worker, claimed_by, owner, queue, started_at, heartbeat_at, length, ends_at, progress, message, stage)
                  ON orchestrator.lease TO %I', $1);
  -- the policies and views call these as whoever reads; and orchestrator doctor
  EXECUTE format('GRANT EXECUTE ON FUNCTION orchestrator._visible_owners(), orchestrator._slots(), orchestrator._now(), orchestrator._may_fire(),
                  orchestrator._permits(), orchestrator._limit_id(text, int, text),
                  orchestrator._run_started(bigint), orchestrator._run_progress(bigint), orchestrator._run_steps(bigint),
                  orchestrator._run_traces(bigint, int), orchestrator.graph(bigint, text), orchestrator._jobs_ahead(int, int, bigint),
                  orchestrator._estimated_start(int, int, bigint), orchestrator._live_stats(),
                  orchestrator._sketch(bytea), orchestrator._percentile(bytea, float8), orchestrator.queue_position(bigint), orchestrator.llm_stream(bigint, bigint, int) TO %I', $1);
  FOR v_routine IN
    SELECT p.oid FROM pg_proc p
      JOIN pg_depend m ON m.classid = 'pg_catalog.pg_proc'::regclass AND m.objid = p.oid AND m.deptype = 'e'
      JOIN pg_extension e ON m.refclassid = 'pg_catalog.pg_extension'::regclass AND m.refobjid = e.oid
    WHERE e.extname = 'orchestrator' AND p.pronamespace = 'orchestrator'::regnamespace AND p.proname NOT LIKE E'\\_%'
      AND $2 <> 'viewer' AND (p.proname <> ALL (v_administrative) OR $2 = 'admin')
      AND (p.proname <> ALL (v_workers) OR $2 IN ('worker', 'admin'))
  LOOP
    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', v_routine, $1);
  END LOOP;
END
$$;

-- After a restore: this is the database whose tasks run now. Roles are found
-- again by name when they come from another server.
CREATE FUNCTION orchestrator._activate(caller oid) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require_admin($1);
  LOCK TABLE orchestrator.database_identity IN SHARE ROW EXCLUSIVE MODE;
  IF NOT EXISTS (SELECT FROM orchestrator.database_identity i JOIN pg_control_system() c ON i.system_identifier = c.system_identifier) THEN
    UPDATE orchestrator.owner o SET role = a.oid
      FROM pg_authid a
      WHERE a.rolname = o.name AND a.oid <> o.role
        AND o.id = (SELECT max(x.id) FROM orchestrator.owner x WHERE x.name = o.name);
  END IF;
  -- made by the restore, with the default privileges of this database
  PERFORM orchestrator._close_relation(c.relname)
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('orchestrator.task_finished'::regclass, 'orchestrator.trace_log'::regclass);
  DELETE FROM orchestrator.database_identity;
  PERFORM orchestrator._identify();
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._catch_up('orchestrator.owner_id_seq', (SELECT max(x.id) FROM orchestrator.owner x)),
          orchestrator._catch_up('orchestrator.queue_id_seq', (SELECT max(x.id) FROM orchestrator.queue x)),
          orchestrator._catch_up('orchestrator.definition_id_seq', (SELECT max(x.id) FROM orchestrator.definition x)),
          orchestrator._catch_up('orchestrator.alert_id_seq', (SELECT max(x.id) FROM orchestrator.alert x)),
          orchestrator._catch_up('orchestrator.signal_id_seq', (SELECT max(x.id) FROM orchestrator.signal x)),
          orchestrator._catch_up('orchestrator.checkpoint_id_seq', (SELECT max(x.id) FROM orchestrator.checkpoint x)),
          orchestrator._catch_up('orchestrator.schedule_id_seq', (SELECT max(x.id) FROM orchestrator.schedule x)),
          -- the number of the node stands above bit 41
          orchestrator._catch_up('orchestrator.task_id_seq', (SELECT max(x.id) & ((1::bigint << 42) - 1) FROM orchestrator.task x));
  PERFORM orchestrator._invalidate();
  PERFORM orchestrator._announce();
END
$$;

-- Move a sequence on when rows were restored without it.
CREATE FUNCTION orchestrator._catch_up(sequence regclass, used bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF $2 >= coalesce(pg_sequence_last_value($1), 0) THEN
    PERFORM setval($1, $2) WHERE $2 > 0;
  END IF;
END
$$;

REVOKE ALL ON ALL TABLES IN SCHEMA orchestrator FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA orchestrator FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA orchestrator FROM PUBLIC;
REVOKE ALL ON TYPE orchestrator.task_state, orchestrator.task_result, orchestrator.claimed_task, orchestrator.step_spec FROM PUBLIC;
REVOKE ALL ON SCHEMA orchestrator FROM PUBLIC;
SELECT orchestrator._revoke_defaults();

-- Row-level security. What is shared is visible to whom it is shared with, and
-- owner 0 is everybody. There is no policy but for reading: only the engine
-- writes.
ALTER TABLE orchestrator.database_identity ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.owner ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.usage_grant ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.queue ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.role_quota ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.alert ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.queue_decision ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.queue_share ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.definition ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.definition_share ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.task ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.task_live ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.task_finished ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.task_key ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.added_step ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.signal ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.checkpoint ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.run_context ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.lease ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.step_memo ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.partition_state ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.archive_hook ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.archive_run ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.trace_log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.schedule ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.schedule_tick ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.stats ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.model_price ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.model_usage ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.model_budget ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.tool ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.tool_session ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.webhook ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY visible ON orchestrator.task FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.trace_log FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.task_key FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.added_step FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.signal FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.checkpoint FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.run_context FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.step_memo FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.lease FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[])
         OR claimed_by = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.schedule FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.schedule_tick FOR SELECT
  USING (true);
CREATE POLICY visible ON orchestrator.stats FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.usage_grant FOR SELECT
  USING (grantee = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.definition_share FOR SELECT
  USING (grantee = ANY ((SELECT orchestrator._visible_owners())::int[])
         OR owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.queue_share FOR SELECT
  USING (grantee = ANY ((SELECT orchestrator._visible_owners())::int[])
         OR owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.definition FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[])
         OR EXISTS (SELECT FROM orchestrator.definition_share s
                    WHERE s.owner = definition.owner AND s.name = definition.name));
CREATE POLICY visible ON orchestrator.queue FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[])
         OR EXISTS (SELECT FROM orchestrator.queue_share s WHERE s.queue = queue.id));
CREATE POLICY visible ON orchestrator.role_quota FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.alert FOR SELECT
  USING (EXISTS (SELECT FROM orchestrator.queue q WHERE q.id = alert.queue));
CREATE POLICY visible ON orchestrator.queue_decision FOR SELECT
  USING (EXISTS (SELECT FROM orchestrator.queue q WHERE q.id = queue_decision.queue));
CREATE POLICY visible ON orchestrator.owner FOR SELECT
  USING (id = ANY ((SELECT orchestrator._visible_owners())::int[])
         OR EXISTS (SELECT FROM orchestrator.definition d WHERE d.owner = owner.id)
         OR EXISTS (SELECT FROM orchestrator.queue q WHERE q.owner = owner.id));

CREATE POLICY visible ON orchestrator.partition_state FOR SELECT USING (true);
CREATE POLICY visible ON orchestrator.archive_hook FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.model_price FOR SELECT USING (true);
CREATE POLICY visible ON orchestrator.model_usage FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.model_budget FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.tool FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));
CREATE POLICY visible ON orchestrator.archive_run FOR SELECT
  USING (owner = ANY ((SELECT orchestrator._visible_owners())::int[]));

-- A dump keeps every row. Partitions of finished tasks and of the trace are
-- ordinary tables and are dumped as such.
SELECT pg_catalog.pg_extension_config_dump('orchestrator.database_identity', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.owner', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.owner_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.usage_grant', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.queue', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.queue_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.queue_share', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.role_quota', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.alert', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.alert_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.queue_decision', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.definition', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.definition_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.definition_share', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.task_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.task_live', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.task_key', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.added_step', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.signal', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.signal_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.checkpoint', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.checkpoint_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.run_context', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.step_memo', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.schedule', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.schedule_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.stats', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.model_price', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.model_usage', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.model_budget', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.tool', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.webhook', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.partition_state', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.archive_hook', '');
SELECT pg_catalog.pg_extension_config_dump('orchestrator.archive_run', '');

SELECT orchestrator._announce();

DO $$
BEGIN
  IF NOT orchestrator._preloaded() THEN
    RAISE WARNING 'orchestrator is not preloaded: tasks can be enqueued, but no step runs in this server'
      USING HINT = 'Add shared_preload_libraries = ''orchestrator'' to postgresql.conf and restart the server.';
  END IF;
END
$$;
