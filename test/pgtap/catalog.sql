-- The catalog against rules R1 to R4 and R9 of the security chapter, and what is documented.
\ir lib/setup.psql
SELECT plan(54);

-- Every member of the extension, by kind.
CREATE VIEW member AS
  SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
  WHERE e.extname = 'orchestrator' AND d.deptype = 'e';
CREATE VIEW routine AS
  SELECT p.*, l.lanname FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.oid IN (SELECT objid FROM member WHERE classid = 'pg_proc'::regclass);
CREATE VIEW relation AS
  SELECT c.* FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S');
-- Finished partitions are made at run time: have some.
SELECT orchestrator._make_partitions(3000000);

SELECT cmp_ok((SELECT count(*) FROM routine), '>', 80::bigint, 'these tests see the functions');
SELECT cmp_ok((SELECT count(*) FROM relation), '>', 20::bigint, 'and the tables');

-- R1: where it is, and whose
SELECT is((SELECT extnamespace::regnamespace::text || extrelocatable FROM pg_extension WHERE extname = 'orchestrator'), 'orchestratorfalse', 'the schema is fixed');
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE pronamespace <> 'orchestrator'::regnamespace$$, 'no function stands elsewhere');
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE proowner <> (SELECT extowner FROM pg_extension WHERE extname = 'orchestrator')$$, 'no function is owned by another');
SELECT is_empty($$SELECT oid::regclass FROM relation WHERE relowner <> (SELECT extowner FROM pg_extension WHERE extname = 'orchestrator')$$, 'no table, view or sequence is');
SELECT is_empty($$SELECT oid::regclass FROM pg_class WHERE relnamespace <> 'orchestrator'::regnamespace AND oid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)$$, 'no table stands elsewhere');
SELECT is_empty($$SELECT oid::regclass FROM relation c WHERE relname ~ '^(task_finished|trace_log)_\d+$' AND oid IN (SELECT objid FROM member)$$, 'partitions are no members: they are dumped with their rows');

-- R2: search_path
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE lanname <> 'c' AND prokind <> 'a' AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)$$, 'every function that is not C sets its search_path');
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE lanname NOT IN ('c', 'plpgsql') AND prokind <> 'a'$$, 'there is no other language');
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE lanname = 'plpgsql' AND proname NOT LIKE '\_%'$$, 'PL/pgSQL is internal');
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE array_to_string(proconfig, ',') ~ 'enable_' AND NOT 'jit=off' = ANY (proconfig)$$, 'where plans are turned off, so is jit: it would take longer than the work');

-- R3: definers
SELECT is((SELECT array_agg(proname::text) FROM routine WHERE prosecdef), '{_guard_handlers}', 'the only SECURITY DEFINER function is the event trigger');
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE lanname = 'plpgsql' AND prosrc ~* '(^|[;\n])\s*execute\s+(?!format\()'$$, 'dynamic SQL is made with format()');
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE lanname = 'plpgsql' AND prosrc ~ 'EXECUTE[^;]*\|\|'$$, 'and not strung together');

-- R4: nothing is PUBLIC's
SELECT is_empty($$SELECT oid::regprocedure FROM routine, aclexplode(coalesce(proacl, acldefault('f', proowner))) a WHERE a.grantee = 0$$, 'no function is executable by PUBLIC');
SELECT is_empty($$SELECT oid::regclass FROM relation, aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, relowner))) a WHERE a.grantee = 0$$, 'no table, view or sequence is readable by PUBLIC');
SELECT is_empty($$SELECT t.oid::regtype FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid, aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) a
  WHERE t.typnamespace = 'orchestrator'::regnamespace AND (t.typtype = 'e' OR c.relkind = 'c') AND a.grantee = 0$$, 'no type is usable by PUBLIC');
SELECT is_empty($$SELECT nspname FROM pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) a WHERE nspname = 'orchestrator' AND a.grantee = 0$$, 'nor the schema');
SELECT is_empty($$SELECT attrelid::regclass, attname FROM pg_attribute WHERE attrelid IN (SELECT oid FROM relation) AND attacl IS NOT NULL$$, 'no column has rights of its own');
SELECT is_empty($$SELECT defaclnamespace FROM pg_default_acl WHERE defaclnamespace = 'orchestrator'::regnamespace$$, 'no default privileges add to that');

-- R9: row-level security
SELECT is_empty($$SELECT oid::regclass FROM relation WHERE relkind IN ('r', 'p') AND NOT (relrowsecurity AND relforcerowsecurity)$$, 'every table has row-level security, forced');
SELECT is_empty($$SELECT oid::regclass FROM relation WHERE relkind = 'v' AND NOT coalesce('security_invoker=true' = ANY (reloptions), false)$$, 'every view is read with the reader''s rights');
SELECT is_empty($$SELECT tablename, policyname FROM pg_policies WHERE schemaname = 'orchestrator' AND (cmd <> 'SELECT' OR permissive <> 'PERMISSIVE' OR with_check IS NOT NULL)$$, 'policies are for reading');
SELECT results_eq($$SELECT tablename::text COLLATE "default" FROM pg_policies WHERE schemaname = 'orchestrator' ORDER BY 1$$,
  $$VALUES ('added_step'), ('alert'), ('archive_hook'), ('archive_run'), ('checkpoint'), ('definition'), ('definition_share'), ('lease'), ('model_budget'), ('model_price'), ('model_usage'), ('owner'), ('partition_state'), ('queue'), ('queue_decision'), ('queue_share'), ('role_quota'), ('run_context'), ('schedule'), ('schedule_tick'), ('signal'), ('stats'), ('step_memo'), ('task'), ('task_key'), ('tool'), ('trace_log'), ('usage_grant')$$, 'these tables have one; the others show nothing');

-- Every public function has its twin, which is told who called
SELECT is_empty($$SELECT p.oid::regprocedure FROM routine p WHERE p.prosrc LIKE 'orchestrator\_as\_owner%'
  AND NOT EXISTS (SELECT FROM routine t WHERE t.proname = '_' || p.proname AND t.pronargs = p.pronargs + 1 AND t.proargtypes::text = concat_ws(' ', 'oid'::regtype::oid, nullif(p.proargtypes::text, ''))
                  AND t.prorettype = p.prorettype)$$, 'every public function that acts as the owner has an internal twin');
SELECT is_empty($$SELECT p.oid::regprocedure FROM routine p JOIN routine t ON t.proname = '_' || p.proname WHERE p.prosrc LIKE 'orchestrator\_as\_owner%' AND t.pronargs = p.pronargs + 1
  AND t.proargnames IS DISTINCT FROM array_prepend('caller', p.proargnames)$$, 'with the same parameters in the same order');
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE prosrc LIKE 'orchestrator\_as\_owner%' AND (proisstrict OR provolatile <> 'v' OR proparallel <> 'u')$$, 'and is called for nulls, is volatile, and not in parallel');

-- Documented
SELECT is_empty($$SELECT oid::regprocedure FROM routine WHERE proname NOT LIKE '\_%' AND obj_description(oid, 'pg_proc') IS NULL$$, 'every public function has a comment');
SELECT is_empty($$SELECT oid::regclass FROM relation WHERE relkind IN ('r', 'p', 'v') AND relname !~ '^(task_live|task_finished|(task_finished|trace_log)_\d+)$' AND obj_description(oid, 'pg_class') IS NULL$$, 'every table and view has a comment');
SELECT is_empty($$SELECT t.oid::regtype FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid WHERE t.typnamespace = 'orchestrator'::regnamespace AND (t.typtype = 'e' OR c.relkind = 'c') AND obj_description(t.oid, 'pg_type') IS NULL$$, 'every type has a comment');
SELECT is_empty($$SELECT evtname FROM pg_event_trigger WHERE oid IN (SELECT objid FROM member) AND obj_description(oid, 'pg_event_trigger') IS NULL$$, 'the event trigger has a comment');
SELECT isnt(obj_description(oid, 'pg_extension'), NULL, 'the extension has a comment') FROM pg_extension WHERE extname = 'orchestrator';
SELECT isnt(col_description(('orchestrator.' || split_part(c, '.', 1))::regclass, (SELECT attnum FROM pg_attribute WHERE attrelid = ('orchestrator.' || split_part(c, '.', 1))::regclass AND attname = split_part(c, '.', 2))), NULL, c || ' has a comment')
FROM unnest('{task.epoch,task.sort_key,task_status.state,task_status.progress,task_status.duration,task_status.updated_at,task_status.worker_pid,task_status.cpu_time,task_status.expire_at,task_status.held_state,queue_status.oldest,queue_status.held,worker_status.state,worker_status.since,worker_status.claimed,trace.event,trace.attempt}'::text[]) c;

-- Kept by a dump: tables with rows of their own are configuration, partitions are dumped as they are
SELECT is((SELECT array_agg(c::regclass::text ORDER BY c::regclass::text) FROM pg_extension, unnest(extconfig) c WHERE extname = 'orchestrator'),
  (SELECT array_agg(oid::regclass::text ORDER BY oid::regclass::text) FROM relation WHERE relkind IN ('r', 'S') AND relname !~ '^(schedule_tick|lease|tool_session|(task_finished|trace_log)_\d+)$'), 'a dump keeps every table and sequence, but neither who ticks, leases nor sessions');
SELECT is_empty($$SELECT c::regclass FROM pg_extension, unnest(extconfig, extcondition) u(c, condition) WHERE extname = 'orchestrator' AND condition <> ''$$, 'with all rows');
SELECT is_empty($$SELECT i.indexrelid::regclass FROM pg_index i JOIN relation r ON r.oid = i.indrelid WHERE r.relkind = 'p'$$, 'no partitioned table has an index: a restore would make it twice');

SELECT is((SELECT string_agg(c.relname, ', ') FROM pg_class c
           WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind = 'r' AND c.relreplident <> 'f'
             AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END)),
          NULL, 'every table has a replica identity, partitions, too: publications do not forbid changes');
SELECT * FROM finish();
ROLLBACK;
