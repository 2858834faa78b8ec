-- grant_usage(), revoke_usage(), activate(); who sees and reaches what.
\ir lib/setup.psql
SELECT plan(98);

CREATE ROLE access_producer LOGIN;
CREATE ROLE access_worker LOGIN;
CREATE ROLE access_viewer LOGIN;
CREATE ROLE access_admin LOGIN;
CREATE ROLE access_stranger LOGIN;
CREATE ROLE access_group;
CREATE ROLE access_member LOGIN IN ROLE access_group;
CREATE ROLE access_loner LOGIN NOINHERIT IN ROLE access_group;
SELECT orchestrator.grant_usage('access_producer'), orchestrator.grant_usage('access_worker', 'worker'), orchestrator.grant_usage('access_viewer', 'viewer'),
       orchestrator.grant_usage('access_admin', 'admin'), orchestrator.grant_usage('access_group');

-- Levels
SELECT results_eq($$SELECT o.name::text COLLATE "default", g.level FROM orchestrator.usage_grant g JOIN orchestrator.owner o ON o.id = g.grantee ORDER BY 1$$,
  $$VALUES ('access_admin', 'admin'), ('access_group', 'producer'), ('access_producer', 'producer'), ('access_viewer', 'viewer'), ('access_worker', 'worker')$$, 'what was granted is kept');
-- The public routines that a role may execute, less those that everybody with a level may.
CREATE FUNCTION reaches(role text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(DISTINCT p.proname::text, ' ' ORDER BY p.proname::text) FROM pg_proc p
  WHERE p.pronamespace = 'orchestrator'::regnamespace AND has_function_privilege($1, p.oid, 'EXECUTE');
$$;
SELECT is(reaches('access_stranger'), NULL, 'a role without usage reaches nothing');
SELECT is(reaches('access_viewer'), '_estimated_start _jobs_ahead _limit_id _live_stats _may_fire _now _percentile _permits _run_progress _run_started _run_steps _run_traces _sketch _slots _visible_owners graph llm_stream queue_position', 'a viewer reaches what the views and policies call, graph() and queue_position()');
SELECT is(reaches('access_producer'), '_estimated_start _jobs_ahead _limit_id _live_stats _may_fire _now _percentile _permits _run_progress _run_started _run_steps _run_traces _sketch _slots _visible_owners add_steps agent_status approve archive_with await cancel cancel_many checkpoint context current_batch current_task define define_queue define_tool define_workflow definition_graph definition_json drop_definition drop_tool '
  'enqueue enqueue_batch enqueue_many enqueue_workflow fork graph import_tools item_error llm_stream on_completion orchestrate pause pause_many pause_queue pause_schedule progress purge purge_definition queue_position reject rerun_from restore resume resume_many resume_queue resume_schedule retry retry_many run run_now schedule schedule_times set_context share_definition share_queue should_orchestrate signal skip_step sleep_until step step_once to_embedding unschedule unshare_definition unshare_queue wait wait_batch wait_signal', 'a producer reaches what makes and controls tasks');
SELECT is(reaches('access_worker'), (SELECT string_agg(f, ' ' ORDER BY f) FROM unnest(string_to_array(reaches('access_producer'), ' ') || '{await_work,claim,complete,complete_many,fail,heartbeat,heartbeat_many,log,release}') f), 'a worker what claims and reports as well');
SELECT is(reaches('access_admin'), (SELECT string_agg(f, ' ' ORDER BY f) FROM unnest(string_to_array(reaches('access_worker'), ' ') || '{activate,grant_usage,revoke_usage,set_budget,set_price,set_quota,tick}') f), 'an administrator reaches the rest');
SELECT is(reaches('access_member'), reaches('access_producer'), 'a member has what its group has');
SELECT is((SELECT string_agg(c.relname || ' ' || p, ', ') FROM pg_class c, unnest('{INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p, unnest('{access_producer,access_worker,access_viewer,access_admin}'::name[]) r
           WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND has_table_privilege(r, c.oid, p)), NULL, 'no level may write a table');
SELECT is((SELECT string_agg(c.relname, ', ') FROM pg_class c, unnest('{access_producer,access_worker,access_viewer,access_admin}'::name[]) r
           WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind = 'S' AND has_sequence_privilege(r, c.oid, 'USAGE,SELECT,UPDATE')), NULL, 'nor touch a sequence');
SELECT is((SELECT string_agg(c.relname, ' ' ORDER BY c.relname) FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND has_table_privilege('access_viewer', c.oid, 'SELECT')),
          'added_step alert alert_status archive_hook archive_run batch_status checkpoint definition definition_share definition_stats definition_status model_budget model_price model_usage owner partition_state queue queue_decision queue_decisions queue_share queue_stats queue_status quota_status retention_status role_quota run_context schedule schedule_status schedule_tick signal stats stats_by_period step_memo step_status task task_key task_status tool trace trace_log usage_grant usage_status worker_status workflow_status', 'what a viewer may read');
SELECT is((SELECT array_agg(DISTINCT x) FROM unnest('{access_producer,access_worker,access_admin}'::name[]) r,
           LATERAL (SELECT string_agg(c.relname, ' ' ORDER BY c.relname) AS x FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND has_table_privilege(r, c.oid, 'SELECT')) y),
          array['added_step alert alert_status archive_hook archive_run batch_status checkpoint definition definition_share definition_stats definition_status model_budget model_price model_usage owner partition_state queue queue_decision queue_decisions queue_share queue_stats queue_status quota_status retention_status role_quota run_context schedule schedule_status schedule_tick signal stats stats_by_period step_memo step_status task task_key task_status tool trace trace_log usage_grant usage_status worker_status workflow_status'], 'is what every level may read');
SELECT is(error_of('SELECT orchestrator._cancel(0::oid, 1, NULL)', role), '42501: permission denied for function _cancel', role || ' reaches no internal twin')
FROM unnest('{access_producer,access_worker,access_viewer,access_admin}'::text[]) role;
SELECT matches(error_of(command, 'access_admin'), '^42501: permission denied for (table|sequence)', 'even an administrator: ' || command)
FROM unnest(array['INSERT INTO orchestrator.owner VALUES (99, 10, ''x'')', 'UPDATE orchestrator.task SET owner = 0', 'DELETE FROM orchestrator.trace_log', 'SELECT * FROM orchestrator.task_live',
  'SELECT * FROM orchestrator.task_finished', 'SELECT nextval(''orchestrator.task_id_seq'')', 'SELECT * FROM orchestrator.database_identity', 'TRUNCATE orchestrator.task']) command;

-- Granting
SELECT written() AS before \gset
SELECT is(error_of(call), message, call)
FROM (VALUES
  ($$SELECT orchestrator.grant_usage('access_stranger', 'owner')$$, '22023: unknown level "owner" [Levels are producer, worker, viewer and admin.]'),
  ($$SELECT orchestrator.grant_usage('access_stranger', NULL)$$, '22023: unknown level "" [Levels are producer, worker, viewer and admin.]'),
  ($$SELECT orchestrator.grant_usage('public')$$, '22023: usage is not granted to everybody [Grant it to a role that its users are members of.]'),
  ($$SELECT orchestrator.grant_usage('PUBLIC')$$, '22023: usage is not granted to everybody [Grant it to a role that its users are members of.]'),
  ($$SELECT orchestrator.grant_usage('access_nobody')$$, '42704: role "access_nobody" does not exist'),
  ($$SELECT orchestrator.grant_usage(NULL)$$, '42704: role "null" does not exist'),
  ($$SELECT orchestrator.revoke_usage('access_nobody')$$, '42704: role "access_nobody" does not exist')
) bad(call, message);
SELECT is(error_of('SELECT orchestrator.' || call, role), '42501: permission denied for function ' || split_part(call, '(', 1), role || ' may not ' || call)
FROM unnest(array['grant_usage(''access_stranger'')', 'revoke_usage(''access_admin'')', 'activate()']) call, unnest('{access_producer,access_worker,access_viewer}'::text[]) role;
SELECT is(error_of($$SELECT orchestrator.grant_usage('access_stranger')$$, 'access_stranger'), '42501: permission denied for schema orchestrator', 'a stranger does not help itself');
GRANT USAGE ON SCHEMA orchestrator TO access_stranger;
GRANT EXECUTE ON FUNCTION orchestrator.grant_usage TO access_stranger;
SELECT is(error_of($$SELECT orchestrator.grant_usage('access_stranger', 'admin')$$, 'access_stranger'),
          '42501: only a superuser or an administrator may do this [An administrator is made by orchestrator.grant_usage(role, ''admin'').]', 'not even when it may execute the function');
REVOKE ALL ON FUNCTION orchestrator.grant_usage FROM access_stranger;
REVOKE ALL ON SCHEMA orchestrator FROM access_stranger;
SELECT is(written(), :'before', 'what was refused leaves nothing');
SELECT is(error_of($$SELECT orchestrator.grant_usage('access_stranger', 'admin')$$, 'access_admin'), 'no error', 'an administrator makes another');
SELECT is(reaches('access_stranger'), reaches('access_admin'), 'with its rights');
SELECT is(error_of($$SELECT orchestrator.grant_usage('access_stranger', 'viewer')$$, 'access_admin'), 'no error', 'another level');
SELECT is(reaches('access_stranger'), reaches('access_viewer'), 'replaces the one before');
SELECT is((SELECT count(*) FROM orchestrator.usage_grant WHERE grantee = owner_id('access_stranger')), 1::bigint, 'in the table, too');
SELECT is(error_of($$SELECT orchestrator.revoke_usage('access_stranger')$$, 'access_admin'), 'no error', 'and takes it back');
SELECT is(reaches('access_stranger'), NULL, 'nothing is left');
SELECT is((SELECT string_agg(c.relname, ' ') FROM pg_class c WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND has_table_privilege('access_stranger', c.oid, 'SELECT')), NULL, 'no table');
SELECT is(has_schema_privilege('access_stranger', 'orchestrator', 'USAGE') OR has_type_privilege('access_stranger', 'orchestrator.task_state', 'USAGE'), false, 'neither schema nor type');
SELECT is((SELECT count(*) FROM orchestrator.usage_grant WHERE grantee = owner_id('access_stranger')), 0::bigint, 'nor a row');
SELECT is(error_of($$SELECT orchestrator.revoke_usage('access_stranger')$$, 'access_admin'), 'no error', 'taking back nothing is no error');

-- Rows, both ways
SELECT value_of($$SELECT orchestrator.define('mine', 'SELECT 1', 'sql')$$, r), value_of($$SELECT orchestrator.define_queue('mine')$$, r)
FROM unnest('{access_producer,access_worker,access_member}'::text[]) r;
SELECT value_of($$SELECT orchestrator.enqueue('mine', '{"secret": 1}', key => 'k', queue => 'mine')$$, 'access_producer') AS theirs \gset
SELECT value_of($$SELECT orchestrator.enqueue('mine', '{"secret": 2}', key => 'k', queue => 'mine')$$, 'access_worker') AS ours \gset
SELECT value_of(format('SELECT orchestrator.pause(%s)', t), r) FROM (VALUES (:theirs, 'access_producer'), (:ours, 'access_worker')) v(t, r);
CREATE FUNCTION sees(role text, query text) RETURNS text LANGUAGE sql AS $$SELECT value_of(format('SELECT string_agg(x::text, '','' ORDER BY x::text) FROM (%s) y(x)', $2), $1)$$;
SELECT is(sees('access_producer', 'SELECT id FROM orchestrator.task'), :'theirs', 'a role sees its own tasks');
SELECT is(sees('access_worker', 'SELECT id FROM orchestrator.task'), :'ours', 'and no other''s');
SELECT is(sees('access_member', 'SELECT id FROM orchestrator.task'), NULL, 'nor does one that has none');
SELECT is(sees(role, 'SELECT id FROM orchestrator.task'), :'theirs' || ',' || :'ours', role || ' sees all') FROM unnest('{access_viewer,access_admin}'::text[]) role;
SELECT is(sees('access_producer', format('SELECT %s FROM orchestrator.%s', col, rel)), :'theirs', format('only its own in %s', rel))
FROM (VALUES ('task_id', 'task_status'), ('DISTINCT task_id', 'trace'), ('DISTINCT task_id', 'trace_log'), ('task_id', 'task_key')) v(col, rel);
SELECT is(sees('access_producer', $$SELECT name FROM orchestrator.queue$$), 'default,mine', 'its queues, and everybody''s');
SELECT is(sees('access_producer', $$SELECT owner FROM orchestrator.queue_status WHERE queue = 'mine'$$), 'access_producer', 'queue_status');
SELECT is(sees('access_producer', $$SELECT owner FROM orchestrator.definition_status WHERE definition = 'mine'$$), 'access_producer', 'definition_status');
SELECT is(sees('access_producer', $$SELECT pending + held FROM orchestrator.queue_status WHERE queue = 'mine'$$), '1', 'counts are of what it sees');
SELECT is(sees('access_producer', 'SELECT name FROM orchestrator.owner WHERE id <> 0'), 'access_producer', 'nor does it see who else there is');
SELECT is(sees('access_producer', 'SELECT level FROM orchestrator.usage_grant'), 'producer', 'nor what others may');
SELECT is(sees('access_viewer', $$SELECT owner FROM orchestrator.queue_status WHERE queue = 'mine'$$), 'access_member,access_producer,access_worker', 'a viewer sees queues');
SELECT is(sees('access_viewer', 'SELECT count(*) FROM orchestrator.usage_grant'), '5', 'and grants');
SELECT is(sees('access_producer', format('SELECT input FROM orchestrator.task_status WHERE task_id = %s', :ours)), NULL, 'asking for an id shows nothing');
SELECT matches(error_of(format('SELECT orchestrator.wait(%s, ''0'')', :ours), 'access_producer'), '^42704: task \d+ does not exist', 'nor does waiting for it');
CREATE FUNCTION leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$BEGIN RAISE EXCEPTION 'leaked %', $1; END$$;
SELECT is(error_of($$SELECT FROM orchestrator.task WHERE leak(input::text) AND owner = -1$$, 'access_member'), 'no error', 'a cheap function in a filter does not see them either');
SELECT is(error_of($$SELECT FROM orchestrator.task_status WHERE leak(input::text)$$, 'access_member'), 'no error', 'nor through a view');
SELECT value_of($$SELECT orchestrator.share_queue('mine', 'access_member')$$, 'access_worker'), value_of($$SELECT orchestrator.share_definition('mine', 'access_member')$$, 'access_worker');
SELECT is(sees('access_member', $$SELECT owner FROM orchestrator.queue_status WHERE queue = 'mine'$$), 'access_member,access_worker', 'a shared queue is seen');
SELECT is(sees('access_member', $$SELECT owner FROM orchestrator.definition_status WHERE definition = 'mine'$$), 'access_member,access_worker', 'and a shared definition');
SELECT is(sees('access_producer', $$SELECT owner FROM orchestrator.definition_status WHERE definition = 'mine'$$), 'access_producer', 'by those it is shared with');
SELECT is(sees('access_member', 'SELECT id FROM orchestrator.task'), NULL, 'but not the tasks in it');

-- Membership
GRANT access_producer TO access_member;
SELECT is(sees('access_member', 'SELECT id FROM orchestrator.task'), :'theirs', 'a member sees the tasks of its role');
REVOKE access_producer FROM access_member;
SELECT is(sees('access_member', 'SELECT id FROM orchestrator.task'), NULL, 'until it is none');
GRANT access_producer TO access_loner;
SELECT is(reaches('access_loner'), NULL, 'one that does not inherit has nothing by itself');

-- Roles that change
ALTER ROLE access_worker RENAME TO access_renamed;
SELECT is(sees('access_renamed', 'SELECT id FROM orchestrator.task'), NULL, 'a renamed role is another owner');
SELECT matches(error_of(format('SELECT orchestrator.cancel(%s)', :ours), 'access_renamed'), '^42704', 'and has no tasks');
ALTER ROLE access_renamed RENAME TO access_worker;
SELECT is(sees('access_worker', 'SELECT id FROM orchestrator.task'), :'ours', 'named as before, it has');
ALTER ROLE access_admin RENAME TO access_old;
CREATE ROLE access_admin LOGIN;
SELECT is(orchestrator._is_admin('access_admin'::regrole), false, 'a new role of an old name is no administrator');
SELECT is(orchestrator._is_admin('access_old'::regrole), false, 'nor is the old one by its new name');
DROP OWNED BY access_producer;
DROP ROLE access_producer;
CREATE ROLE access_producer LOGIN;
SELECT orchestrator.grant_usage('access_producer');
SELECT is(sees('access_producer', 'SELECT id FROM orchestrator.task'), NULL, 'a role made again does not have the tasks of the one before');
SELECT is((SELECT array_agg(DISTINCT x) FROM unnest(orchestrator._visible_owners_of('access_producer'::regrole)) x WHERE x NOT IN (0, owner_id('access_producer'))), NULL, 'nor anything of it');

-- activate(): this database is where its tasks run
SELECT is(orchestrator._may_fire(), true, 'tasks run where they were enqueued');
SELECT is((SELECT count(*) FROM orchestrator.database_identity), 1::bigint, 'which is written down');
UPDATE orchestrator.database_identity SET database = 1;
SELECT is(orchestrator._may_fire(), false, 'in a copy within the server they do not');
SELECT is(error_of('SELECT orchestrator.activate()'), 'no error', 'until it is activated');
SELECT is(orchestrator._may_fire(), true, 'then they do');
SELECT is((SELECT count(*) FROM orchestrator.database_identity), 1::bigint, 'and the other database is forgotten');
UPDATE orchestrator.database_identity SET system_identifier = 1;
SELECT is(orchestrator._may_fire(), false, 'in a copy on another server they do not');
UPDATE orchestrator.owner SET role = 1 WHERE name = 'access_worker';
SELECT setval('orchestrator.task_id_seq', 1), setval('orchestrator.owner_id_seq', 1), setval('orchestrator.queue_id_seq', 2), setval('orchestrator.definition_id_seq', 1);
SELECT orchestrator.activate();
SELECT is(orchestrator._may_fire(), true, 'until it is activated');
SELECT is((SELECT role FROM orchestrator.owner WHERE name = 'access_worker'), 'access_worker'::regrole::oid, 'roles of another server are found by their names');
SELECT is((SELECT array_agg(s.last >= s.used) FROM (VALUES
  ((SELECT last_value FROM orchestrator.task_id_seq), (SELECT max(id) FROM orchestrator.task)),
  ((SELECT last_value FROM orchestrator.owner_id_seq), (SELECT max(id) FROM orchestrator.owner)),
  ((SELECT last_value FROM orchestrator.queue_id_seq), (SELECT max(id) FROM orchestrator.queue)),
  ((SELECT last_value FROM orchestrator.definition_id_seq), (SELECT max(id) FROM orchestrator.definition))) s(last, used)), '{true,true,true,true}', 'and the sequences go on where the rows end');

SELECT * FROM finish();
ROLLBACK;
