-- Webhooks by the SQL functions, with no courier: who may have them, what is posted, the order of those about one task, alerts.
\ir lib/setup.psql
SELECT plan(59);

CREATE ROLE hooks_app LOGIN;
CREATE ROLE hooks_other LOGIN;
SELECT orchestrator.grant_usage('hooks_app'), orchestrator.grant_usage('hooks_other');
CREATE SERVER hooks FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://hooks.example/in', provider 'webhook', secret 'key');
CREATE SERVER plain FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://plain.example');
CREATE SERVER more FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://more.example', provider 'webhook', secret 'key');
GRANT USAGE ON FOREIGN SERVER hooks, plain, more TO hooks_app;

-- Endpoints
CREATE FUNCTION refused(options text) RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('CREATE SERVER x FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url ''https://x'', %s)', $1));
$$;
SELECT is(refused($$provider 'webhook'$$), 'HV00J: an endpoint of provider webhook needs the option "secret" [Webhooks are signed with it.]', 'webhooks are signed');
SELECT is(refused($$provider 'webhook', secret 'key', secret_header 'X'$$), 'HV024: secret_header with provider webhook [Its secret signs, and is not sent.]', 'a secret that signs is not sent');
SELECT is(refused($$provider 'hook'$$), 'HV024: invalid value for option "provider": hook [Say http, openai, anthropic, ollama, mcp or webhook.]', 'providers');

-- Definitions
CREATE FUNCTION define_error(kind text, endpoint text, request jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.define(''x'', NULL, %L, endpoint => %L, request => %L)', $1, $2, $3), 'hooks_app');
$$;
SELECT is(define_error(kind, endpoint, request), error, format('%s to %s: %s', kind, endpoint, request)) FROM (VALUES
  ('webhook', 'plain', '{}'::jsonb, '22023: endpoint "plain" is of provider http, which kind webhook cannot call [Its provider must be webhook.]'),
  ('http', 'hooks', '{}', '22023: endpoint "hooks" is of provider webhook, which kind http cannot call [Its provider must be http or openai or anthropic or ollama or mcp.]'),
  ('webhook', 'hooks', '{"method": "PUT"}', '22023: request: unknown key "method" [The keys of a webhook are path, query, headers, type and body.]'),
  ('webhook', 'hooks', '{"type": 1}', '22023: request, key "type": is not a string'),
  ('webhook', 'hooks', '{"path": 1}', '22023: request, key "path": is neither a string nor an array of its parts'),
  ('webhook', 'hooks', '{"type": "$.a["}', '22023: request, key "input": path $.a[ does not parse [A string that begins with $ is an SQL/JSON path; write $$ for a literal $.]'),
  ('webhook', 'nowhere', '{}', '42704: endpoint "nowhere" does not exist [CREATE SERVER nowhere FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url ''https://...'').]')) v(kind, endpoint, request, error);

-- Tasks of ours, and the webhooks that come of them
SET ROLE hooks_app;
SELECT orchestrator.define('job', 'SELECT 1', 'sql', max_attempts => 1);
SELECT orchestrator.define('tell', NULL, 'webhook', endpoint => 'hooks', retry_delay => '1 s', retry_jitter => 0, max_attempts => 2,
  request => '{"path": ["in", "$.definition"], "headers": {"X-State": "$.state"}, "body": {"text": "$.task"}}');
SELECT orchestrator.define('type', NULL, 'webhook', endpoint => 'hooks', request => '{"type": "$.kind"}');
SELECT orchestrator.define('told job', 'SELECT 1', 'sql', success_callback => 'tell', failure_callback => 'tell', max_attempts => 1);
RESET ROLE;
CREATE FUNCTION add(name text, input jsonb DEFAULT '{}') RETURNS bigint LANGUAGE sql AS $$
  SELECT value_of(format('SELECT orchestrator.enqueue(%L, %L)', $1, $2), 'hooks_app')::bigint;
$$;
CREATE FUNCTION tell(task bigint, endpoint text DEFAULT 'hooks') RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.on_completion(%s, endpoint => %L)', $1, $2), 'hooks_app');
$$;
CREATE FUNCTION finish_job(task bigint, good boolean DEFAULT true) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  c record;
BEGIN
  SELECT x.* INTO STRICT c FROM orchestrator._claim(owner_id('hooks_app'), 1, 4711, 1) x WHERE x.id = $1;
  IF good THEN
    PERFORM orchestrator._settle_completed(c.id, c.epoch, '{"done": 1}', NULL, NULL);
  ELSE
    PERFORM orchestrator._settle_failed(c.id, c.epoch, 'error', '{"sqlstate": "22012", "message": "no"}', NULL, NULL);
  END IF;
END $$;
-- Webhooks about a task: their states in order
CREATE FUNCTION line(about bigint) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(state_of(t.id), ', ' ORDER BY t.id) FROM orchestrator.task t WHERE t.metadata @> jsonb_build_object('task', $1);
$$;
CREATE FUNCTION nth(about bigint, n int) RETURNS bigint LANGUAGE sql AS $$
  SELECT t.id FROM orchestrator.task t WHERE t.metadata @> jsonb_build_object('task', $1) ORDER BY t.id OFFSET $2 - 1 LIMIT 1;
$$;
CREATE TABLE c AS SELECT * FROM courier_claims();
CREATE FUNCTION claim_calls() RETURNS bigint[] LANGUAGE sql AS $$
  TRUNCATE c;
  SELECT count(*) FROM orchestrator._claim_call_rows(4711, 0, 0, 1);   -- of another lane: the mark of ours is forgotten, as when the courier is told
  INSERT INTO c SELECT * FROM courier_claims(100);
  SELECT coalesce(array_agg(task_id ORDER BY task_id), '{}') FROM c;
$$;
CREATE FUNCTION settle(task bigint, outcome text, result jsonb) RETURNS bigint[] LANGUAGE sql AS $$
  SELECT orchestrator._settle_calls(ARRAY[$1], ARRAY[(SELECT epoch FROM c WHERE task_id = $1)], ARRAY[$2], ARRAY[$3]);
$$;

SELECT add('job') AS a \gset
SELECT is(tell(:a), 'no error', 'an endpoint instead of a definition');
SELECT is(error_of(format('SELECT orchestrator.on_completion(%s)', :a), 'hooks_app'), '22023: on_completion() takes a definition or an endpoint [Give one of them.]', 'one of them');
SELECT is(error_of(format('SELECT orchestrator.on_completion(%s, ''tell'', endpoint => ''hooks'')', :a), 'hooks_app'), '22023: on_completion() takes a definition or an endpoint [Give one of them.]', 'and not both');
SELECT is(tell(:a, 'plain'), '22023: endpoint "plain" is of provider http, which takes no webhooks [Its provider must be webhook.]', 'one that takes webhooks');
SELECT is(tell(:a, 'nowhere'), '42704: endpoint "nowhere" does not exist [CREATE SERVER nowhere FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url ''https://...'').]', 'and that is there');
SELECT value_of($$SELECT orchestrator.define('job', 'SELECT 1', 'sql')$$, 'hooks_other');
SELECT value_of($$SELECT orchestrator.enqueue('job')$$, 'hooks_other') AS o \gset
SELECT is(error_of(format('SELECT orchestrator.on_completion(%s, endpoint => ''hooks'')', :o), 'hooks_other'),
  '42501: permission denied for endpoint "hooks" [GRANT USAGE ON FOREIGN SERVER hooks TO hooks_other.]', 'USAGE is needed');
SELECT is(error_of(format('SELECT orchestrator.on_completion(%s, endpoint => ''hooks'')', :o)),
  '42501: permission denied for endpoint "hooks" [GRANT USAGE ON FOREIGN SERVER hooks TO hooks_other.]', 'by the role of the task, whoever asks');
SELECT is(line(:a), NULL, 'nothing is posted before its time');
SELECT finish_job(:a);
SELECT is(line(:a), 'pending', 'when it ends there is a webhook');
SELECT is(claim_calls(), ARRAY[nth(:a, 1)], 'the courier claims it');
SELECT is(jsonb_set(request, '{body,timestamp}', '0'), jsonb_build_object('method', 'POST', 'body', jsonb_build_object('type', 'task.completed', 'timestamp', 0,
  'data', jsonb_build_object('task', :a, 'definition', 'job', 'state', 'completed', 'output', '{"done": 1}'::jsonb, 'error', NULL, 'input', '{}'::jsonb))), 'what is posted') FROM c;
SELECT is((request #>> '{body,timestamp}')::timestamptz, (task(task_id)).created_at, 'with the time of the event') FROM c;
SELECT matches(request #>> '{body,timestamp}', '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$', 'in UTC') FROM c;
SELECT is((SELECT ROW(d.name, d.max_attempts, d.is_current, t.name, t.metadata->>'event')::text FROM task(nth(:a, 1)) t JOIN orchestrator.definition d ON d.id = t.definition),
  format('("orchestrator.webhook hooks",12,f,"task.completed %s",task.completed)', :a), 'it is a task, of a definition of the engine');
SELECT is(settle(nth(:a, 1), 'completed', '{"status": 200}'), '{}', 'settled');
SELECT is(line(:a), 'completed', 'it is completed');
SELECT is_empty('SELECT * FROM orchestrator.webhook', 'and stands in no line');

-- A definition of kind webhook as a callback
SELECT add('told job') AS b \gset
SELECT finish_job(:b, false);
SELECT is(claim_calls(), ARRAY[nth(:b, 1)], 'a failure, told by a definition');
SELECT is(request, jsonb_build_object('method', 'POST', 'path', '["in", "told job"]'::jsonb, 'headers', '{"X-State": "failed"}'::jsonb, 'body', jsonb_build_object('text', :b)), 'as its request says') FROM c;
SELECT is(settle(nth(:b, 1), 'error', '{"sqlstate": "OR012", "message": "busy", "status": 503}'), '{}', 'the receiver is busy');
SELECT is(line(:b), 'scheduled', 'it is to be posted again');
SELECT later(2), orchestrator._promote_due(100);
SELECT claim_calls();
SELECT settle(nth(:b, 1), 'error', '{"sqlstate": "OR012", "message": "busy", "status": 503}');
SELECT is(line(:b), 'failed', 'until it is dead');
SELECT is((SELECT string_agg(event, ',' ORDER BY at, event DESC) FROM orchestrator.trace WHERE task_id = nth(:b, 1) AND event IN ('retrying', 'failed')), 'retrying,failed', 'which its trace tells');
SELECT add('type', '{"kind": "order.paid"}') AS t \gset
SELECT claim_calls();
SELECT is(request #- '{body,timestamp}', '{"method": "POST", "body": {"type": "order.paid", "data": {"kind": "order.paid"}}}', 'a type of its own') FROM c WHERE task_id = :t;
SELECT settle(:t, 'completed', '{"status": 200}');

-- One after the other
SELECT add('told job') AS d \gset
SELECT tell(:d), tell(:d, 'more'), tell(:d);
SELECT finish_job(:d);
SELECT is(line(:d), 'pending, pending, waiting, waiting', 'to one endpoint one at a time, to another at once');
SELECT is(claim_calls(), ARRAY[nth(:d, 1), nth(:d, 2)], 'the others are not claimed');
SELECT settle(nth(:d, 1), 'error', '{"sqlstate": "OR012", "message": "busy", "status": 503}');
SELECT settle(nth(:d, 2), 'completed', '{"status": 200}');
SELECT is(line(:d), 'scheduled, completed, waiting, waiting', 'they wait while it is retried');
SELECT later(6), orchestrator._promote_due(100);
SELECT is(claim_calls(), ARRAY[nth(:d, 1)], 'it goes again');
SELECT settle(nth(:d, 1), 'error', '{"sqlstate": "OR012", "message": "gone", "status": 410, "retry": false}');
SELECT is(line(:d), 'failed, completed, pending, waiting', 'once it is dead, the next one goes');
SELECT value_of(format('SELECT orchestrator.cancel(%s)', nth(:d, 3)), 'hooks_app');
SELECT is(line(:d), 'failed, completed, cancelled, pending', 'or is cancelled');
SELECT is(error_of(format('SELECT orchestrator.on_completion(%s, endpoint => ''hooks'')', :d), 'hooks_app'), 'no error', 'the task has ended');
SELECT is(line(:d), 'failed, completed, cancelled, pending, waiting', 'what is asked for then joins the line');
SELECT value_of(format('SELECT orchestrator.pause(%s)', nth(:d, 5)), 'hooks_app');
SELECT claim_calls();
SELECT settle(nth(:d, 4), 'completed', '{"status": 200}');
SELECT is(state_of(nth(:d, 5)), 'paused (pending)', 'one that is paused goes');
SELECT value_of(format('SELECT orchestrator.resume(%s)', nth(:d, 5)), 'hooks_app');
SELECT is(claim_calls(), ARRAY[nth(:d, 5)], 'when it is resumed');
SELECT settle(nth(:d, 5), 'completed', '{"status": 200}');
SELECT is_empty('SELECT * FROM orchestrator.webhook', 'nobody is in line any more');
-- in the middle
SELECT add('job') AS e \gset
SELECT tell(:e), tell(:e), tell(:e);
SELECT finish_job(:e);
SELECT value_of(format('SELECT orchestrator.cancel(%s)', nth(:e, 2)), 'hooks_app');
SELECT is(line(:e), 'pending, cancelled, waiting', 'who leaves the middle of a line lets nobody go');
SELECT claim_calls();
SELECT settle(nth(:e, 1), 'completed', '{"status": 200}');
SELECT is(line(:e), 'completed, cancelled, pending', 'who leaves its front does');
SELECT claim_calls();
SELECT settle(nth(:e, 3), 'completed', '{"status": 200}');

-- A right that is gone
SELECT add('job') AS f \gset
SELECT tell(:f);
REVOKE USAGE ON FOREIGN SERVER hooks FROM hooks_app;
SELECT finish_job(:f);
SELECT claim_calls();
SELECT is((SELECT refusal ->> 'sqlstate' FROM c), '42501', 'USAGE is looked at again when it is posted');
SELECT settle(nth(:f, 1), 'error', (SELECT refusal FROM c));
GRANT USAGE ON FOREIGN SERVER hooks TO hooks_app;

-- Alerts
SELECT is(error_of($$SELECT orchestrator.define_queue('q', alert_endpoint => 'hooks')$$, 'hooks_app'), '22023: alert_endpoint without alert_depth or alert_age [Say when there is an alert.]', 'an endpoint for alerts that never are');
SELECT matches(error_of($$SELECT orchestrator.define_queue('q', alert_depth => 2, alert_endpoint => 'plain')$$, 'hooks_app'), '^22023: endpoint "plain" is of provider http', 'or that takes none');
SELECT matches(error_of($$SELECT orchestrator.define_queue('q', alert_depth => 2, alert_endpoint => 'hooks')$$, 'hooks_other'), '^42501: permission denied for endpoint', 'or may not be used');
SELECT is(error_of($$SELECT orchestrator.define_queue('q', alert_depth => 2, alert_endpoint => 'hooks')$$, 'hooks_app'), 'no error', 'alerts can be posted');
CREATE FUNCTION alerts() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(t.metadata ->> 'event' || ' ' || t.state || ' ' || (t.input - 'limit'), ', ' ORDER BY t.id) FROM orchestrator.task t WHERE t.metadata ? 'queue';
$$;
CREATE FUNCTION fill(n int) RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.enqueue(''job'', queue => ''q'') FROM generate_series(1, %s)', $1), 'hooks_app');
$$;
SELECT fill(1), orchestrator._check_alerts();
SELECT is(alerts(), NULL, 'below the limit nothing is posted');
SELECT fill(2), orchestrator._check_alerts(), orchestrator._check_alerts();
SELECT is(alerts(), 'queue.alert.raised pending {"kind": "depth", "queue": "q", "value": 3.000}', 'at the limit, once');
SELECT value_of($$SELECT orchestrator.cancel_many(queue => 'q')$$, 'hooks_app'), orchestrator._check_alerts();
SELECT is(alerts(), 'queue.alert.raised pending {"kind": "depth", "queue": "q", "value": 3.000}, queue.alert.cleared waiting {"kind": "depth", "queue": "q", "value": 0.000}', 'its end behind it');
SELECT is((SELECT string_agg(DISTINCT o.name, ',') FROM orchestrator.task t JOIN orchestrator.owner o ON o.id = t.owner WHERE t.metadata ? 'queue'), 'hooks_app', 'as tasks of the owner of the queue');
SELECT claim_calls();
SELECT settle(task_id, 'completed', '{"status": 200}') FROM c;
SELECT claim_calls();
SELECT settle(task_id, 'completed', '{"status": 200}') FROM c;
SELECT is_empty('SELECT * FROM orchestrator.webhook WHERE about < 0', 'both are posted');

-- Of queue "default" they are tasks of who asked, and no depth of its own
SELECT is(error_of($$SELECT orchestrator.define_queue('default', alert_depth => 1, alert_endpoint => 'hooks')$$), 'no error', 'everybody''s queue has alerts');
SELECT value_of($$SELECT orchestrator.cancel_many(all_tasks => true)$$), orchestrator._check_alerts();
SELECT add('job') AS g \gset
SELECT orchestrator._check_alerts();
SELECT value_of(format('SELECT orchestrator.cancel(%s)', :g), 'hooks_app'), orchestrator._check_alerts(), orchestrator._check_alerts();
SELECT is((SELECT string_agg((t.input ->> 'kind') || ' ' || (t.metadata ->> 'event') || ' ' || (o.name = current_user), ', ' ORDER BY t.id) FROM orchestrator.task t JOIN orchestrator.owner o ON o.id = t.owner
           WHERE t.metadata @> '{"queue": 1}'), 'depth queue.alert.raised true, depth queue.alert.cleared true', 'an alert that is still to be posted raises none');

SELECT * FROM finish();
ROLLBACK;
