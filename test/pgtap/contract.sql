-- Names, parameters and defaults of the public functions, as issue 2 fixed them.
\ir lib/setup.psql
SELECT plan(100);

-- The parameters that the contract names, as the function has them; what it has beyond is not shown, but is defaulted.
CREATE FUNCTION parameters(name text, n int) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(btrim(concat_ws(' ', CASE p.proargmodes[i] WHEN 'b' THEN 'INOUT' END, p.proargnames[i], format_type((coalesce(p.proallargtypes, p.proargtypes::oid[]))[i - CASE WHEN p.proallargtypes IS NULL THEN 1 ELSE 0 END], NULL)))
                    || coalesce(' = ' || pg_get_function_arg_default(p.oid, i), ''), ', ' ORDER BY i)
  FROM pg_proc p, generate_series(1, $2) i WHERE p.pronamespace = 'orchestrator'::regnamespace AND p.proname = $1;
$$;
CREATE TABLE contract (name text, result text, parameters text);
INSERT INTO contract VALUES
  ('define', 'integer', $$name text, handler text, kind text = 'function'::text, queue text = NULL::text, priority integer = NULL::integer, max_attempts integer = NULL::integer, backoff text = 'exponential'::text, retry_delay interval = NULL::interval, max_retry_delay interval = NULL::interval, retry_jitter double precision = NULL::double precision, retry_budget interval = NULL::interval, never_retry text[] = NULL::text[], retry_priority_step integer = NULL::integer, timeout interval = NULL::interval, queue_timeout interval = NULL::interval, response_timeout interval = NULL::interval, timeout_policy text = NULL::text, max_running integer = NULL::integer, rate_limit integer = NULL::integer, rate_period interval = NULL::interval, notify text = 'lifecycle'::text, description text = NULL::text, estimated_duration interval = NULL::interval, metadata jsonb = NULL::jsonb$$),
  ('enqueue', 'bigint', $$definition text, input jsonb = '{}'::jsonb, name text = NULL::text, priority integer = NULL::integer, run_at timestamp with time zone = NULL::timestamp with time zone, delay interval = NULL::interval, key text = NULL::text, key_window interval = NULL::interval, queue text = NULL::text, metadata jsonb = NULL::jsonb, deadline timestamp with time zone = NULL::timestamp with time zone, traceparent text = NULL::text$$),
  ('enqueue_many', 'bigint[]', $$definition text, inputs jsonb[], name text = NULL::text, priority integer = NULL::integer, run_at timestamp with time zone = NULL::timestamp with time zone, delay interval = NULL::interval, keys text[] = NULL::text[], key_window interval = NULL::interval, queue text = NULL::text, metadata jsonb = NULL::jsonb, deadline timestamp with time zone = NULL::timestamp with time zone, traceparent text = NULL::text$$),
  ('run', 'bigint', 'sql text'),
  ('wait', 'orchestrator.task_result', 'task bigint, timeout interval = NULL::interval'),
  ('await', 'record', 'task bigint, timeout interval = NULL::interval, INOUT result orchestrator.task_result = NULL::orchestrator.task_result'),
  ('progress', 'void', 'fraction double precision, message text = NULL::text, stage text = NULL::text'),
  ('cancel', 'orchestrator.task_state', 'task bigint, reason text = NULL::text'),
  ('pause', 'orchestrator.task_state', 'task bigint, force boolean = false'),
  ('resume', 'orchestrator.task_state', 'task bigint'),
  ('retry', 'orchestrator.task_state', 'task bigint'),
  ('define_queue', 'void', 'name text'),
  ('pause_queue', 'void', 'queue text'),
  ('resume_queue', 'void', 'queue text'),
  ('share_definition', 'void', 'name text, role text'),
  ('share_queue', 'void', 'name text, role text'),
  ('grant_usage', 'void', $$role text, level text = 'producer'::text$$),
  ('revoke_usage', 'void', 'role text'),
  ('activate', 'void', NULL);
INSERT INTO contract SELECT verb || '_many', 'bigint', 'definition text = NULL::text, queue text = NULL::text, states text[] = NULL::text[], older_than interval = NULL::interval, max_rows integer = NULL::integer, all_tasks boolean = false'
FROM unnest('{cancel,pause,resume,retry}'::text[]) verb;

SELECT is(parameters(c.name, coalesce(array_length(regexp_split_to_array(c.parameters, ', '), 1), 0)), c.parameters, c.name || '(): parameters') FROM contract c;
SELECT is(p.prorettype::regtype::text, c.result, c.name || '(): result') FROM contract c JOIN pg_proc p ON p.pronamespace = 'orchestrator'::regnamespace AND p.proname = c.name;
SELECT is((SELECT count(*) FROM pg_proc p WHERE p.pronamespace = 'orchestrator'::regnamespace AND p.proname = c.name), 1::bigint, c.name || '(): not overloaded') FROM contract c;
SELECT is((p.pronargs - p.pronargdefaults)::int, (SELECT count(*)::int FROM regexp_split_to_table(c.parameters, ', ') x WHERE x !~ ' = '), c.name || '(): what is added has defaults')
FROM contract c JOIN pg_proc p ON p.pronamespace = 'orchestrator'::regnamespace AND p.proname = c.name WHERE c.parameters IS NOT NULL;
SELECT is((SELECT prokind FROM pg_proc WHERE oid = 'orchestrator.await'::regproc), 'p'::"char", 'await() is called');
SELECT is((SELECT proargnames FROM pg_proc WHERE oid = 'orchestrator.current_task'::regproc), '{task_id,parent_id,definition,attempt,max_attempts,key,metadata,deadline}', 'current_task(): columns');
SELECT is((SELECT array_agg(attname || ' ' || format_type(atttypid, NULL) ORDER BY attnum) FROM pg_attribute WHERE attrelid = (SELECT typrelid FROM pg_type WHERE oid = 'orchestrator.task_result'::regtype)),
  array['state orchestrator.task_state', 'output jsonb', 'error jsonb'], 'task_result');
SELECT is(enum_range(NULL::orchestrator.task_state)::text, '{scheduled,pending,running,waiting,paused,completed,failed,cancelled,skipped}', 'task_state');
SELECT is((SELECT array_agg(DISTINCT proname::text ORDER BY proname::text) FROM pg_proc WHERE pronamespace = 'orchestrator'::regnamespace AND proname NOT LIKE '\_%' AND proname NOT IN (SELECT name FROM contract)),
  '{add_steps,agent_status,approve,archive_with,await_work,checkpoint,claim,complete,complete_many,context,current_batch,current_task,define_tool,define_workflow,definition_graph,definition_json,drop_definition,drop_tool,enqueue_batch,enqueue_workflow,fail,fork,graph,heartbeat,heartbeat_many,import_tools,item_error,llm_stream,log,on_completion,orchestrate,pause_schedule,purge,purge_definition,queue_position,reject,release,rerun_from,restore,resume_schedule,run_now,schedule,schedule_times,set_budget,set_context,set_price,set_quota,should_orchestrate,signal,skip_step,sleep_until,step,step_once,tick,to_embedding,unschedule,unshare_definition,unshare_queue,wait_batch,wait_signal}', 'what there is beyond the contract');

-- Called by name, as an application will
SELECT lives_ok(call, call)
FROM unnest(array[
  $$SELECT orchestrator.define(name => 'n', handler => 'SELECT 1', kind => 'sql', backoff => 'fixed')$$,
  $$SELECT orchestrator.enqueue(definition => 'n', input => '{}', name => 'x', priority => 1, run_at => NULL, delay => '1 s', key => 'k', key_window => '1 h', queue => 'default', metadata => '{}', deadline => '2999-01-01', traceparent => 't')$$,
  $$SELECT orchestrator.cancel_many(definition => 'n', queue => 'default', states => '{pending}', older_than => '1 h', max_rows => 1, all_tasks => false)$$,
  $$SELECT orchestrator.grant_usage(role => current_user, level => 'admin')$$]) call;

SELECT * FROM finish();
ROLLBACK;
