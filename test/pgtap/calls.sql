-- Outside calls by the courier's SQL functions, with no courier: claims, what is sent, settles, recovery.
\ir lib/setup.psql
SELECT plan(47);

CREATE ROLE calls_app LOGIN;
SELECT orchestrator.grant_usage('calls_app');
CREATE SERVER there FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://there.example/base');
GRANT USAGE ON FOREIGN SERVER there TO calls_app;
SET ROLE calls_app;
SELECT orchestrator.define_queue('calls');
SELECT orchestrator.define('call', NULL, 'http', 'calls', endpoint => 'there', retry_delay => '1 s', retry_jitter => 0, timeout => '30 s',
  request => '{"path": ["a", "$.x"], "body": {"all": "$"}, "expect": "$.status == 200"}');
SELECT orchestrator.define('plain', NULL, 'http', 'calls', endpoint => 'there');
RESET ROLE;
SELECT is((SELECT endpoint || request::text FROM orchestrator.definition WHERE name = 'plain'), 'there{}', 'what a definition keeps');
SELECT is(orchestrator.definition_json('call', owner => 'calls_app') ->> 'endpoint', 'there', 'and tells');

-- A task of ours, pending in its lane
CREATE FUNCTION add_call(name text, input jsonb DEFAULT '{}') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_task bigint;
BEGIN
  SET LOCAL ROLE calls_app;
  v_task := orchestrator.enqueue(name, input);
  RESET ROLE;
  RETURN v_task;
END $$;
CREATE FUNCTION settle(task bigint, epoch int, outcome text, result jsonb) RETURNS bigint[] LANGUAGE sql AS $$
  SELECT orchestrator._settle_calls(ARRAY[$1], ARRAY[$2], ARRAY[$3], ARRAY[$4]);
$$;
CREATE TABLE t (name text, id bigint);
INSERT INTO t SELECT 'one', add_call('call', '{"x": "b c"}');
SELECT is((SELECT parked_on FROM orchestrator.task_live), orchestrator._courier_lane((SELECT id FROM orchestrator.queue WHERE name = 'calls')), 'a call stands in the courier''s lane');
SELECT is_empty($$SELECT * FROM orchestrator._claim((SELECT id FROM orchestrator.owner WHERE name = 'calls_app'), (SELECT id FROM orchestrator.queue WHERE name = 'calls'), 1, 10)$$, 'no executor claims it');
SELECT is_empty($$SELECT * FROM orchestrator._claim('calls_app'::regrole, '{calls}', 'w', 10, NULL, NULL)$$, 'nor a remote worker');
SELECT is((SELECT array_agg(q.name) FROM orchestrator._call_lanes() l JOIN orchestrator.queue q ON q.id = l.queue), '{calls}', 'its lane is found');

CREATE TABLE c AS SELECT * FROM courier_claims();
SELECT is((SELECT array_agg(task_id) FROM c), (SELECT array_agg(id) FROM t), 'the courier claims it');
SELECT is((SELECT request FROM c), '{"path": ["a", "b c"], "body": {"all": {"x": "b c"}}}', 'with its request filled in');
SELECT is((SELECT ROW(endpoint, timeout_ms, silence_ms, refusal, permits)::text FROM c), '(there,30000,,,{})', 'and what else is to be known');
SELECT is((SELECT key FROM c), (SELECT i.system_identifier || '-' || i.database || '-' || t.id FROM orchestrator.database_identity i, t), 'its key names server, database and task');
SELECT is((SELECT ROW(state, attempt, worker)::text FROM orchestrator.task_live), '(running,1,4711)', 'the attempt is counted');
SELECT is_empty($$SELECT * FROM orchestrator.lease$$, 'there is no lease');
SELECT is(orchestrator._lost_calls(array_agg(task_id), array_agg(epoch)), '{}', 'it is the courier''s') FROM c;
SELECT is(orchestrator._lost_calls(array_agg(task_id), array_agg(epoch - 1)), array_agg(task_id), 'of another epoch it is not') FROM c;

-- Settled
SELECT is(settle(task_id, epoch, 'error', '{"sqlstate": "OR012", "message": "busy", "retry_after": 7}'), '{}', 'a failure is settled') FROM c;
SELECT is((SELECT ROW(state, run_at >= orchestrator._now() + interval '6 s', run_at <= orchestrator._now() + interval '8 s')::text FROM orchestrator.task_live), '(scheduled,t,t)', 'and retried when it was told to be');
SELECT is(settle(task_id, epoch, 'completed', '{}'), '{}', 'a report that is stale changes nothing') FROM c;
SELECT is(state_of((SELECT id FROM t)), 'scheduled', 'indeed');
SELECT orchestrator.cancel((SELECT id FROM t));
TRUNCATE c, t;
INSERT INTO t SELECT 'good', add_call('call', '{"x": 1}') UNION ALL SELECT 'bad', add_call('call', '{"x": 2}') UNION ALL SELECT 'plain', add_call('plain') UNION ALL SELECT 'final', add_call('plain');
INSERT INTO c SELECT * FROM courier_claims();
SELECT is((SELECT orchestrator._settle_calls(array_agg(task_id), array_agg(epoch), array_agg(CASE name WHEN 'final' THEN 'error' ELSE 'completed' END),
    array_agg(CASE name WHEN 'bad' THEN '{"status": 201}' WHEN 'final' THEN '{"sqlstate": "OR012", "message": "no", "retry": false}' ELSE '{"status": 200}' END::jsonb)) FROM c JOIN t ON t.id = c.task_id),
  '{}', 'many at once');
SELECT is(state_of(id), 'completed', 'as expected') FROM t WHERE name = 'good';
SELECT is((SELECT error ->> 'sqlstate' FROM orchestrator.task WHERE id = t.id), 'OR013', 'not as expected') FROM t WHERE name = 'bad';
SELECT is((SELECT output FROM orchestrator.task WHERE id = t.id), '{"status": 200}', 'nothing expected') FROM t WHERE name = 'plain';
SELECT is((SELECT state::text || attempt FROM orchestrator.task WHERE id = t.id), 'failed1', 'failed for good') FROM t WHERE name = 'final';
SELECT orchestrator.cancel(id) FROM t WHERE name = 'bad';

-- Refused
TRUNCATE c, t;
INSERT INTO t SELECT 'gone', add_call('plain');
REVOKE USAGE ON FOREIGN SERVER there FROM calls_app;
INSERT INTO c SELECT * FROM courier_claims();
SELECT is((SELECT refusal ->> 'sqlstate' FROM c), '42501', 'the right is looked at by every claim');
GRANT USAGE ON FOREIGN SERVER there TO calls_app;

-- Odd ones, which must not keep others from being claimed
SELECT orchestrator.cancel((SELECT id FROM t));
TRUNCATE c, t;
SET ROLE calls_app;
SELECT orchestrator.define('many', NULL, 'http', 'calls', endpoint => 'there',
  request => jsonb_build_object('body', (SELECT jsonb_agg('$.x'::text) FROM generate_series(1, 10))));
SELECT orchestrator.enqueue('plain', deadline => 'infinity');
RESET ROLE;
SELECT add_call('many', jsonb_build_object('x', repeat('x', 900)));
SET orchestrator.max_input_size = '4kB';
INSERT INTO c SELECT * FROM courier_claims();
SELECT is((SELECT array_agg(timeout_ms) FROM c WHERE refusal IS NULL), '{NULL}', 'a deadline that never comes is none');
SELECT is((SELECT refusal - 'hint'::text FROM c WHERE refusal IS NOT NULL), '{"sqlstate": "54000", "message": "the request is larger than 8 kB", "retry": false}', 'what its templates make of an input may be too large');
SELECT is((SELECT request FROM c WHERE refusal IS NOT NULL), '{}', 'and is not kept');
SELECT throws_like($$SELECT orchestrator.define('large', NULL, 'http', 'calls', endpoint => 'there', request => jsonb_build_object('body', repeat('x', 5000)))$$,
  'request is larger than orchestrator.max_input_size', 'nor may a request be so by itself');
RESET orchestrator.max_input_size;
SELECT orchestrator.cancel(task_id) FROM c;
TRUNCATE c, t;
INSERT INTO t SELECT 'gone', add_call('plain');
INSERT INTO c SELECT * FROM courier_claims();

-- Left behind
SELECT is(orchestrator._recover_calls(), 1, 'calls of a courier that is gone are handed back');
SELECT is((SELECT ROW(state, attempt, error ->> 'sqlstate')::text FROM orchestrator.task_live), '(pending,1,OR003)', 'their attempt is spent, and they are back at once');
SELECT is(orchestrator._recover_calls(), 0, 'once');
SELECT orchestrator.cancel(id) FROM t;
TRUNCATE c, t;
INSERT INTO t SELECT 'all', add_call('plain');
INSERT INTO c SELECT * FROM courier_claims();
SELECT is(orchestrator._recover_all('{}', '{}'), 1, 'also when a supervisor starts');

-- Paused
SELECT orchestrator.cancel(id) FROM t;
TRUNCATE c, t;
INSERT INTO t SELECT 'held', add_call('plain');
INSERT INTO c SELECT * FROM courier_claims();
SELECT orchestrator.pause(id) FROM t;
SELECT is(settle(task_id, epoch, 'error', '{"sqlstate": "OR012", "message": "no"}'), '{}', 'one that is paused goes on') FROM c;
SELECT is(state_of(id) || ': ' || story(id), 'paused (scheduled): created 0, started 1, pausing 1, retrying 1, paused 1', 'until its attempt fails') FROM t;
SELECT orchestrator.cancel(id) FROM t;
TRUNCATE c, t;
INSERT INTO t SELECT 'stopped', add_call('plain');
INSERT INTO c SELECT * FROM courier_claims();
UPDATE orchestrator.task_live SET max_attempts = 1;
SELECT orchestrator.pause(id, true) FROM t;
SELECT is((SELECT ROW(state, attempt, max_attempts)::text FROM orchestrator.task_live), '(paused,1,2)', 'a call that is stopped may have arrived: its attempt is spent, not its last');
SELECT is(settle(task_id, epoch, 'completed', '{}'), '{}', 'what it brings is too late') FROM c;
SELECT orchestrator.resume(id) FROM t;
SELECT is((SELECT count(*) FROM courier_claims()), 1::bigint, 'it is made again');
SELECT is((SELECT ROW(state, attempt, max_attempts)::text FROM orchestrator.task_live), '(running,2,2)', 'as another attempt');
SELECT orchestrator.cancel(id) FROM t;
TRUNCATE t;
INSERT INTO t SELECT 'waits', add_call('plain');
SELECT ok(orchestrator._calls_wait(), 'calls wait');
SET ROLE calls_app;
SELECT orchestrator.pause_queue('calls');
RESET ROLE;
SELECT ok(NOT orchestrator._calls_wait(), 'but not in a queue that is paused');

-- Sessions with servers of tools
SELECT orchestrator.cancel(id) FROM t;
TRUNCATE c, t;
CREATE SERVER tools FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://tools.example/mcp', provider 'mcp');
GRANT USAGE ON FOREIGN SERVER tools TO calls_app;
SET ROLE calls_app;
SELECT orchestrator.define('tool', NULL, 'tool', endpoint => 'tools', request => '{"tool": "x"}');
RESET ROLE;
-- What the next task sends, which it does until it is its own call; each with a
-- key of its own, or the keys are returned
CREATE FUNCTION methods() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  v_task    bigint := add_call('tool');
  v_methods text[] := '{}';
  v_keys    text[] := '{}';
  v_call    record;
BEGIN
  FOR i IN 1 .. 5 LOOP
    SELECT x.* INTO v_call FROM courier_claims(1) x;
    v_methods := v_methods || (v_call.request #>> '{body,method}');
    v_keys := v_keys || v_call.key;
    PERFORM settle(v_task, v_call.epoch, 'completed', CASE v_methods[i]
      WHEN 'initialize' THEN '{"status": 200, "headers": {"mcp-session-id": "s"}, "body": {"result": {"protocolVersion": "2025-06-18"}}}'
      WHEN 'notifications/initialized' THEN '{"status": 202, "body": null}' ELSE '{"status": 200, "body": {"result": {"content": []}}}' END::jsonb);
    EXIT WHEN v_methods[i] = 'tools/call';
  END LOOP;
  IF (SELECT count(DISTINCT k) FROM unnest(v_keys) k) <> cardinality(v_keys) OR v_keys[cardinality(v_keys)] NOT LIKE '%-' || v_task THEN
    RETURN v_keys;
  END IF;
  RETURN v_methods;
END $$;
SELECT is(methods(), '{initialize,notifications/initialized,tools/call}', 'the first call of a tool opens a session');
SELECT is(methods(), '{tools/call}', 'which the next one uses');
SELECT later(20 * 3600);
SELECT is(methods(), '{tools/call}', 'also most of a day later');
SELECT later(20 * 3600);
SELECT is(methods(), '{tools/call}', 'and so on, while it is used');
SELECT later(25 * 3600);
SELECT is(methods(), '{initialize,notifications/initialized,tools/call}', 'after a day without use there is none');
SELECT later(25 * 3600);
SELECT is((SELECT count(*) FROM orchestrator.tool_session), 1::bigint, 'one that is old');
SELECT orchestrator._forget_keys();
SELECT is((SELECT count(*) FROM orchestrator.tool_session), 0::bigint, 'goes with what retention forgets');

SELECT * FROM finish();
ROLLBACK;
