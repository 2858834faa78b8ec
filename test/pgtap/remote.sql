-- Remote workers: who may claim what, what a claim and each report do, and what
-- becomes of leases that are not kept. Sleeping in await_work(), real clients and
-- the limits in shared memory are in test/t.
\ir lib/setup.psql
SELECT plan(140);

CREATE ROLE remote_app LOGIN;
CREATE ROLE remote_worker LOGIN;
CREATE ROLE remote_other LOGIN;
CREATE ROLE remote_producer LOGIN;
SELECT orchestrator.grant_usage('remote_app'), orchestrator.grant_usage('remote_worker', 'worker'),
       orchestrator.grant_usage('remote_other', 'worker'), orchestrator.grant_usage('remote_producer');

-- What a worker gets, as a JSON array.
CREATE FUNCTION claimed(n int DEFAULT 1, queue text DEFAULT 'q', role text DEFAULT 'remote_worker', lease interval DEFAULT NULL, definitions text[] DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
  RETURN value_of(format('SELECT coalesce(jsonb_agg(c), ''[]'') FROM orchestrator.claim(%L, %L, %s, %L, %L) c', ARRAY[$2], 'w of ' || $3, $1, $4, $5), $3)::jsonb;
END $$;
CREATE FUNCTION ids(claims jsonb) RETURNS bigint[] LANGUAGE sql AS 'SELECT coalesce(array_agg((c ->> ''task_id'')::bigint ORDER BY n), ''{}'') FROM jsonb_array_elements($1) WITH ORDINALITY e(c, n)';
-- A report on the first of some claims.
CREATE FUNCTION report(verb text, claims jsonb, rest text DEFAULT '', role text DEFAULT 'remote_worker') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN error_of(format('SELECT orchestrator.%s(%s, %L%s)', $1, $2 -> 0 ->> 'task_id', $2 -> 0 ->> 'token', $3), $4);
END $$;
CREATE FUNCTION heartbeat(claims jsonb, rest text DEFAULT '', role text DEFAULT 'remote_worker') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN value_of(format('SELECT orchestrator.heartbeat(%s, %L%s)', $1 -> 0 ->> 'task_id', $1 -> 0 ->> 'token', $2), $3);
END $$;
CREATE FUNCTION app(command text) RETURNS bigint LANGUAGE sql AS $$SELECT value_of('SELECT ' || $1, 'remote_app')::bigint$$;
CREATE FUNCTION stale(claims jsonb) RETURNS text LANGUAGE sql AS
  $$SELECT format('OR010: task %s is no longer claimed with this token [Stop working on it. Call orchestrator.heartbeat() more often, or claim with a longer lease.]', $1 -> 0 ->> 'task_id')$$;
CREATE FUNCTION events(task bigint) RETURNS text LANGUAGE sql AS $$SELECT string_agg(event, ' ' ORDER BY at, event = 'created' DESC) FROM orchestrator.trace WHERE task_id = $1$$;

SELECT value_of($$SELECT orchestrator.define_queue('q')$$, 'remote_app');
SELECT value_of($$SELECT orchestrator.define('far', 'resize', 'remote', queue => 'q', retry_delay => '10 s', retry_jitter => 0)$$, 'remote_app');
SELECT value_of($$SELECT orchestrator.define('near', 'SELECT 1', 'sql', queue => 'q')$$, 'remote_app');
SELECT value_of($$SELECT orchestrator.define('plain', NULL, 'remote', queue => 'q')$$, 'remote_app');

-- Who may, and from where
SELECT is(error_of($$SELECT orchestrator.claim('{q}', 'w')$$, 'remote_producer'), '42501: permission denied for function claim', 'a producer may not claim');
SELECT is(error_of($$SELECT orchestrator.claim('{q}', 'w')$$, 'remote_worker'),
          '42704: queue "q" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]', 'a queue that was not shared is not there');
SELECT value_of($$SELECT orchestrator.share_queue('q', 'remote_worker')$$, 'remote_app');
SELECT app($$orchestrator.enqueue('far', '{"n": 1}', metadata => '{"m": 1}', traceparent => 'tp')$$) AS a \gset
SELECT is(claimed(), '[]', 'shared to enqueue: tasks of others stay hidden');
SELECT value_of($$SELECT orchestrator.share_queue('q', 'remote_worker', claim => true)$$, 'remote_app');
SELECT is(claimed(1, 'default'), '[]', 'everybody''s queue has none of its own');
SELECT app($$orchestrator.enqueue('far', queue => 'default')$$) AS away \gset
SELECT is(claimed(9, 'default'), '[]', 'nor does a worker see others'' tasks there');
SELECT is(error_of($$SELECT orchestrator.share_queue('default', 'remote_worker', claim => true)$$, 'remote_app'),
          '42501: queue "default" is everybody''s: only an administrator may change it [Make a queue of your own with orchestrator.define_queue().]', 'which only an administrator can grant');

-- Through membership, as long as it lasts
CREATE ROLE remote_team;
GRANT remote_team TO remote_other;
SELECT value_of($$SELECT orchestrator.define_queue('team')$$, 'remote_app');
SELECT value_of($$SELECT orchestrator.share_queue('team', 'remote_team', claim => true), orchestrator.share_definition('far', 'remote_team')$$, 'remote_app');
SELECT app($$orchestrator.enqueue('far', queue => 'team')$$) AS shared \gset
SELECT is(ids(claimed(9, 'team', 'remote_other')), ARRAY[:shared]::bigint[], 'a member of a role that a queue was shared with claims there');
SELECT is(error_of($$SELECT orchestrator.enqueue('far', queue => 'team')$$, 'remote_other'), 'no error', 'and enqueues');
REVOKE remote_team FROM remote_other;
SELECT is(error_of($$SELECT orchestrator.claim('{team}', 'w')$$, 'remote_other'),
          '42704: queue "team" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]', 'a member no longer, it finds no such queue');
SELECT matches(error_of($$SELECT orchestrator.enqueue('far', queue => 'team')$$, 'remote_other'), '^42704: ', 'nor to enqueue into');
SELECT is(error_of($$SELECT orchestrator.claim('{default,NULL}', 'w')$$, 'remote_other'), '22023: queues must name at least one queue', 'a queue has a name');
SELECT value_of(format('SELECT orchestrator.cancel(%s)', :shared), 'remote_app');

-- No executor sees it
SELECT app($$orchestrator.enqueue('near')$$) AS near \gset
SELECT is(claim(9, 'q', 'remote_app'), ARRAY[:near]::bigint[], 'an executor claims the others, in the same queue');
SELECT is((SELECT parked FROM orchestrator.queue_status WHERE queue = 'q'), 0::bigint, 'it is not shown as parked');
SELECT is((SELECT pending FROM orchestrator.queue_status WHERE queue = 'q'), 1::bigint, 'but as pending');

SELECT is(error_of('SELECT orchestrator.claim(NULL, ''w'')', 'remote_worker'), '22023: queues must name at least one queue', 'no queues at all');
SELECT is(error_of($$SELECT set_config('transaction_read_only', 'on', true); SELECT orchestrator.claim('{q}', 'w')$$, 'remote_worker'), '25006: cannot execute claim in a read-only transaction', 'a transaction that may only read claims nothing');

-- What a claim gives
SELECT claimed() AS c \gset
SELECT is(ids(:'c'), ARRAY[:a]::bigint[], 'granted: it is claimed');
SELECT is((:'c'::jsonb -> 0) - '{task_id,token,idempotency_key,lease_until,root_id}'::text[],
  '{"key": null, "name": null, "input": {"n": 1}, "owner": "remote_app", "queue": "q", "attempt": 1, "handler": "resize", "deadline": null, "metadata": {"m": 1}, "parent_id": null, "definition": "far", "timeout_at": null, "traceparent": "tp", "max_attempts": 3}', 'with all that a worker needs');
SELECT matches(:'c'::jsonb -> 0 ->> 'token', '^1-[0-9a-f]{32}$', 'a token of the epoch and 128 bits');
SELECT is((:'c'::jsonb -> 0 ->> 'lease_until')::timestamptz - (task(:a)).started_at, '1 minute', 'the lease is a minute');
SELECT is(state_of(:a), 'running', 'its row runs');
SELECT is(claimed(), '[]', 'it is not claimed twice');
SELECT is((SELECT ARRAY[state::text, remote_worker] FROM orchestrator.task_status WHERE task_id = :a), '{running,w of remote_worker}', 'task_status says who has it');
SELECT is((SELECT ARRAY[kind, role::text, worker, claimed::text, task_id::text] FROM orchestrator.worker_status WHERE kind = 'remote'), ARRAY['remote', 'remote_worker', 'w of remote_worker', '1', :'a'], 'so does worker_status');
SELECT is(error_of('SELECT secret FROM orchestrator.lease', 'remote_app'), '42501: permission denied for table lease', 'nobody reads the secret');
SELECT is(value_of('SELECT count(task_id) FROM orchestrator.lease', 'remote_app'), '1', 'the owner of the task sees the lease');
SELECT is(value_of('SELECT count(task_id) FROM orchestrator.lease', 'remote_worker'), '1', 'the worker, too');
SELECT is(value_of('SELECT count(task_id) FROM orchestrator.lease', 'remote_other'), '0', 'others do not');

-- Fencing
SELECT is(report('complete', :'c', '', 'remote_other'), stale(:'c'), 'the token is of no use to another role');
SELECT is(report('complete', jsonb_set(:'c', '{0,token}', '"1-00000000000000000000000000000000"')), stale(:'c'), 'a guess is of none');
SELECT is(report('fail', jsonb_set(:'c', '{0,token}', '"nonsense"')), stale(:'c'), 'nonsense neither');
SELECT is(error_of(format('SELECT orchestrator.complete(%s, NULL)', :a), 'remote_worker'), '22023: task and token must not be null [Give both as claim() returned them.]', 'nor null');
SELECT is(heartbeat(jsonb_set(:'c', '{0,token}', '"x"')), 'lost', 'a heartbeat with another token: lost');
SELECT is(heartbeat(:'c', '', 'remote_other'), 'lost', 'of another role as well');
SELECT is(state_of(:a), 'running', 'and nothing was changed');

-- Heartbeat
SELECT later(30);
SELECT is(heartbeat(:'c', $$, fraction => 0.25, message => 'a quarter', stage => 'one'$$), 'running', 'a heartbeat');
SELECT is((SELECT ARRAY[progress::text, message, stage] FROM orchestrator.task_status WHERE task_id = :a), '{0.25,"a quarter",one}', 'progress is seen');
SELECT later(40);
SELECT is(orchestrator._expire(10), 0, 'begins the lease again');
SELECT is(heartbeat(:'c', $$, lease => '10 s'$$), 'running', 'it can have another length');
SELECT is((SELECT ARRAY[progress::text, message, stage] FROM orchestrator.task_status WHERE task_id = :a), '{0.25,"a quarter",one}', 'and keeps what it said before');
SELECT is(error_of(format('SELECT orchestrator.heartbeat(%s, %L, fraction => 2)', :a, 'x'), 'remote_worker'), '22023: fraction must be between 0 and 1', 'a fraction beyond 1');
SELECT is(error_of(format('SELECT orchestrator.heartbeat(%s, %L, lease => %L)', :a, 'x', '0 s'), 'remote_worker'),
          '22023: lease must be between 1 second and 7 days [A worker that needs longer calls orchestrator.heartbeat().]', 'a lease of nothing');
SELECT is(value_of(format('SELECT array_agg(state) FROM orchestrator.heartbeat_many(ARRAY[%1$s, 0, %1$s], ARRAY[%2$L, %2$L, %3$L])', :a, :'c'::jsonb -> 0 ->> 'token', 'no'), 'remote_worker'),
          '{running,lost,lost}', 'many at once, in order');

-- Log, complete
SELECT is(report('log', :'c', $$, 'warning', 'odd', '{"x": 1}'$$), 'no error', 'a line for the trace');
SELECT is((SELECT detail FROM orchestrator.trace WHERE task_id = :a AND event = 'notice'), '{"level": "warning", "detail": {"x": 1}, "message": "odd"}', 'as it was given');
SELECT is(report('log', :'c', $$, 'loud', 'x'$$), '22023: unknown level "loud" [Say debug, info, notice, warning or error.]', 'levels are five');
SELECT is(error_of(format('SELECT set_config(%L, %L, true); SELECT orchestrator.complete(%s, %L)', 'transaction_read_only', 'on', :a, :'c'::jsonb -> 0 ->> 'token'), 'remote_worker'), '25006: cannot execute complete in a read-only transaction', 'nor completes anything');
SELECT is(report('complete', :'c', $$, '{"done": true}'$$), 'no error', 'it completes');
SELECT is((SELECT ARRAY[state::text, output::text] FROM orchestrator.task WHERE id = :a), '{completed,"{\"done\": true}"}', 'with its output');
SELECT is((SELECT count(*) FROM orchestrator.lease), 0::bigint, 'the lease is gone');
SELECT is(report('complete', :'c'), stale(:'c'), 'a second report changes nothing');
SELECT is(report('release', :'c'), stale(:'c'), 'of whatever kind');
SELECT is(events(:a), 'created started notice completed', 'its trace');

-- Fail, retry, for good
SELECT app($$orchestrator.enqueue('far')$$) AS a \gset
SELECT claimed() AS c \gset
SELECT is(report('fail', :'c', $$, '"no space"'$$), 'no error', 'it fails');
SELECT is((SELECT ARRAY[state::text, error::text] FROM orchestrator.task WHERE id = :a), '{scheduled,"{\"message\": \"no space\", \"sqlstate\": \"OR011\"}"}', 'and is to be retried');
SELECT is(claimed(), '[]', 'not before its time');
SELECT later(10), orchestrator._promote_due(10);
SELECT claimed() AS c2 \gset
SELECT is((:'c2'::jsonb -> 0 ->> 'attempt')::int, 2, 'then as its second attempt');
SELECT is(:'c2'::jsonb -> 0 -> 'idempotency_key', :'c'::jsonb -> 0 -> 'idempotency_key', 'with the same idempotency key');
SELECT isnt(:'c2'::jsonb -> 0 ->> 'token', :'c'::jsonb -> 0 ->> 'token', 'and another token');
SELECT is(report('complete', :'c'), stale(:'c'), 'the first one''s is worth nothing');
SELECT is(report('fail', :'c2', $$, '{"message": "bad input", "sqlstate": "22P02", "detail": "d"}', false$$), 'no error', 'not retryable');
SELECT is((SELECT state::text || (error ->> 'sqlstate') || (error ->> 'detail') FROM orchestrator.task WHERE id = :a), 'failed22P02d', 'it failed for good, with what was said');
SELECT is(value_of(format('SELECT orchestrator.retry(%s)', :a), 'remote_app'), 'pending', 'retry() by hand');
SELECT claimed() AS c \gset
SELECT is(ids(:'c'), ARRAY[:a]::bigint[], 'is for remote workers again');
SELECT is(report('fail', :'c', format($$, to_jsonb(repeat('x', 100000))$$)), 'no error', 'a long message');
SELECT cmp_ok((SELECT octet_length(error::text) FROM orchestrator.task WHERE id = :a), '<', 8192, 'is cut');

-- Rounds of a step
SELECT value_of($$SELECT orchestrator.define_workflow('rounds', ARRAY[orchestrator.step('a', 'resize', 'remote', repeat_while => '$.iteration < 2')], queue => 'q')$$, 'remote_app');
SELECT app($$orchestrator.enqueue('rounds')$$);
SELECT claimed() AS c \gset
SELECT is(report('complete', :'c'), 'no error', 'a round ends');
SELECT claimed() AS c2 \gset
SELECT is(:'c2'::jsonb -> 0 ->> 'idempotency_key', (:'c'::jsonb -> 0 ->> 'idempotency_key') || '.2', 'the next has a key of its own');
SELECT is(report('complete', :'c2'), 'no error', 'and is the last');

-- Release
SELECT app($$orchestrator.enqueue('far')$$) AS a \gset
SELECT claimed() AS c \gset
SELECT is(report('release', :'c'), 'no error', 'given back');
SELECT is((SELECT ARRAY[state::text, attempt::text, epoch::text] FROM orchestrator.task WHERE id = :a), '{pending,0,2}', 'its attempt is not counted');
SELECT claimed() AS c \gset
SELECT is(ids(:'c'), ARRAY[:a]::bigint[], 'and it is claimed again, before those behind it');

-- Cancel, pause
SELECT value_of(format('SELECT orchestrator.cancel(%s)', :a), 'remote_app');
SELECT is((SELECT count(*) FROM orchestrator.lease), 0::bigint, 'cancelled: its lease ends');
SELECT is(heartbeat(:'c'), 'cancel', 'the worker is told');
SELECT is(report('complete', :'c'), stale(:'c'), 'and comes too late');
SELECT is(heartbeat(:'c', '', 'remote_other'), 'lost', 'a stranger is told nothing');
SELECT app($$orchestrator.enqueue('far')$$) AS a \gset
SELECT claimed() AS c \gset
SELECT value_of(format('SELECT orchestrator.pause(%s)', :a), 'remote_app');
SELECT is(heartbeat(:'c'), 'running', 'paused softly, it goes on');
SELECT is(report('fail', :'c'), 'no error', 'until its attempt ends');
SELECT is(state_of(:a), 'paused (scheduled)', 'then it is held');
SELECT is(story(:a) || (detail_of(:a, 'pausing') ->> 'by'), 'created 0, started 1, pausing 1, retrying 1, paused 1remote_app', 'as its trace says');
SELECT value_of(format('SELECT orchestrator.resume(%s)', :a), 'remote_app');
SELECT later(10), orchestrator._promote_due(10);
SELECT claimed() AS c \gset
SELECT is(ids(:'c'), ARRAY[:a]::bigint[], 'resumed, it is for remote workers');
SELECT value_of(format('SELECT orchestrator.pause(%s, force => true)', :a), 'remote_app');
SELECT is(heartbeat(:'c'), 'cancel', 'paused with force: stop');
SELECT is(report('complete', :'c'), stale(:'c'), 'its report is refused');
SELECT value_of(format('SELECT orchestrator.resume(%s)', :a), 'remote_app');
SELECT is(ids(claimed()), ARRAY[:a]::bigint[], 'and it is claimed again');
SELECT value_of(format('SELECT orchestrator.cancel(%s)', :a), 'remote_app');
SELECT app($$orchestrator.enqueue('far')$$) AS a \gset
SELECT value_of($$SELECT orchestrator.pause_queue('q')$$, 'remote_app');
SELECT is(claimed(), '[]', 'a paused queue gives nothing');
SELECT value_of($$SELECT orchestrator.resume_queue('q')$$, 'remote_app');
SELECT is(orchestrator._has_work((SELECT oid FROM pg_roles WHERE rolname = 'remote_worker'), ARRAY[(SELECT id FROM orchestrator.queue WHERE name = 'q')]), 1, 'resumed, there is work');

-- A lease that is not kept
SELECT claimed(lease => '20 s') AS c \gset
SELECT is(orchestrator._next_due(), (:'c'::jsonb -> 0 ->> 'lease_until')::timestamptz, 'the supervisor comes when it ends');
SELECT later(20);
SELECT is(heartbeat(:'c'), 'lost', 'then it is over, whoever comes first');
SELECT is(report('complete', :'c'), stale(:'c'), 'a late report is refused');
SELECT is(orchestrator._expire(10), 1, 'it is taken back');
SELECT is((SELECT ARRAY[state::text, attempt::text, error ->> 'sqlstate'] FROM orchestrator.task WHERE id = :a), '{scheduled,1,OR003}', 'the attempt is spent');
SELECT matches((task(:a)).error ->> 'message', '^worker "w of remote_worker" did not report before its lease ended, at ', 'and says of whom');
SELECT value_of(format('SELECT orchestrator.cancel(%s)', :a), 'remote_app');

-- Timeouts and their policies
SELECT value_of(format($$SELECT orchestrator.define('t_%s', NULL, 'remote', queue => 'q', timeout => '30 s', response_timeout => '10 s', timeout_policy => %1$L, retry_delay => '1 s', retry_jitter => 0)$$, p), 'remote_app')
FROM unnest('{retry,fail,alert}'::text[]) p;
SELECT app($$orchestrator.enqueue('t_retry')$$) AS a \gset
SELECT claimed(lease => '1 hour') AS c \gset
SELECT is((:'c'::jsonb -> 0 ->> 'lease_until')::timestamptz - (task(:a)).started_at, '10 s', 'a lease ends when the response timeout does');
SELECT later(10), orchestrator._expire(10);
SELECT is((SELECT ARRAY[state::text, error ->> 'sqlstate', error ->> 'message'] FROM orchestrator.task WHERE id = :a), '{scheduled,OR004,"worker \"w of remote_worker\" did not report for 00:00:10"}', 'silence is a timeout: retried');
SELECT later(1), orchestrator._promote_due(10);
SELECT claimed() AS c \gset
SELECT later(9), heartbeat(:'c') AS h1, later(9), heartbeat(:'c') AS h2, later(9), heartbeat(:'c') AS h3 \gset
SELECT is(:'h3'::text, 'running', 'heartbeats keep it');
SELECT later(3), orchestrator._expire(10);
SELECT is((task(:a)).error ->> 'message', 'the step ran longer than 00:00:30', 'but not beyond the timeout');
SELECT value_of(format('SELECT orchestrator.cancel(%s)', :a), 'remote_app');
SELECT app($$orchestrator.enqueue('t_fail')$$) AS a \gset
SELECT claimed(); SELECT later(10), orchestrator._expire(10);
SELECT is(state_of(:a), 'failed', 'policy fail');
SELECT app($$orchestrator.enqueue('t_alert')$$) AS a \gset
SELECT claimed(lease => '1 minute') AS c \gset
SELECT later(10), orchestrator._expire(10), orchestrator._expire(10);
SELECT is(events(:a), 'created started timeout', 'policy alert: told, once');
SELECT is(report('complete', :'c'), 'no error', 'and it may still complete');
SELECT app($$orchestrator.enqueue('far', deadline => orchestrator._now() + interval '20 s')$$) AS a \gset
SELECT claimed() AS c \gset
SELECT later(20), orchestrator._expire(10);
SELECT is((SELECT ARRAY[state::text, error ->> 'sqlstate'] FROM orchestrator.task WHERE id = :a), '{failed,OR002}', 'a deadline is one for remote workers, too');

-- Many
SELECT value_of($$SELECT orchestrator.enqueue_many('plain', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 6) i))$$, 'remote_app');
SELECT claimed(4) AS c \gset
SELECT is(jsonb_array_length(:'c'), 4, 'a batch of claims');
SELECT is((SELECT string_agg(e ->> 'input', '' ORDER BY n) FROM jsonb_array_elements(:'c') WITH ORDINALITY x(e, n)), '1234', 'the oldest first');
SELECT value_of(format('SELECT orchestrator.cancel(%s)', (ids(:'c'))[2]), 'remote_app');
SELECT value_of(format($$SELECT orchestrator.on_completion(%s, 'near')$$, (ids(:'c'))[3]), 'remote_app');
SELECT is(value_of(format('SELECT jsonb_agg(r.state) FROM orchestrator.complete_many(%L, %L, %L) r', ids(:'c') || NULL::bigint,
                          (SELECT array_agg(e ->> 'token' ORDER BY n) FROM jsonb_array_elements(:'c') WITH ORDINALITY x(e, n)) || 'x'::text,
                          ARRAY['"a"', '"b"', '"c"', '"d"', '"e"']), 'remote_worker'),
          '["completed", "lost", "completed", "completed", "lost"]', 'their ends, in order; what was cancelled is lost');
SELECT is((SELECT string_agg(output #>> '{}', '' ORDER BY id) FROM orchestrator.task WHERE id = ANY (ids(:'c')) AND state = 'completed'), 'acd', 'each with its output');
SELECT is((SELECT count(*) FROM orchestrator.lease), 0::bigint, 'no lease is left');
SELECT is((SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'near' AND t.live AND t.state = 'pending'), 1::bigint, 'a callback was made');
SELECT is(error_of($$SELECT orchestrator.complete_many('{1,2}', '{a}')$$, 'remote_worker'), '2202E: tokens must have as many elements as tasks', 'tokens for each');

-- An output that cannot be kept
SET orchestrator.max_input_size = '1kB';
SELECT app($$orchestrator.enqueue('far')$$) AS a \gset
SELECT claimed(definitions => '{far}') AS c \gset
SELECT is(report('complete', jsonb_set(:'c', '{0,token}', '"x"'), format(', %L', to_jsonb(repeat('x', 2000)))), stale(:'c'), 'an output that is too large, and a token that is not good');
SELECT is(report('complete', :'c', format(', %L', to_jsonb(repeat('x', 2000)))), 'no error', 'with a good one');
SELECT is((task(:a)).state::text || (task(:a)).error, 'failed{"hint": "Store large results in a table and return their key, or raise orchestrator.max_input_size.", "retry": false, "message": "output of 2012 bytes is larger than 1024 bytes", "sqlstate": "54000"}', 'fails the task, for good');
SELECT app($$(orchestrator.enqueue_many('far', '{1,2,3}'))[1]$$);
SELECT claimed(3, definitions => '{far}') AS c \gset
SELECT is(value_of(format('SELECT string_agg(r.state, '' '') FROM orchestrator.complete_many(%L, %L, %L) r', ids(:'c'), (SELECT array_agg(e ->> 'token' ORDER BY n) FROM jsonb_array_elements(:'c') WITH ORDINALITY x(e, n)),
                          ARRAY['"a"', to_jsonb(repeat('x', 2000)), '"c"']), 'remote_worker'),
          'completed failed completed', 'among others it is the fault of its task');
SELECT is((SELECT string_agg(output #>> '{}', '' ORDER BY id) FROM orchestrator.task WHERE id = ANY (ids(:'c'))), 'ac', 'whose output is dropped');
SELECT is((SELECT string_agg(error ->> 'sqlstate', '') FROM orchestrator.task WHERE id = ANY (ids(:'c'))), '54000', 'and the reason kept');
SELECT is((SELECT count(*) FROM orchestrator.lease), 0::bigint, 'no lease is left of them');
RESET orchestrator.max_input_size;

SELECT is(ids(claimed(definitions => '{far}')), '{}', 'only of the definitions that are named');
SELECT is(jsonb_array_length(claimed(definitions => '{nope,plain}')), 1, 'of any of them');
SELECT is(error_of($$SELECT orchestrator.claim('{q}', 'w', 0)$$, 'remote_worker'), '22023: max_tasks must be between 1 and 1000', 'at least one');
SELECT is(error_of($$SELECT orchestrator.claim('{q}', E'w\n')$$, 'remote_worker'), '22023: the name of a worker must have 1 to 200 bytes, and no control characters', 'a worker has a decent name');
SELECT is(error_of($$SELECT orchestrator.claim('{}', 'w')$$, 'remote_worker'), '22023: queues must name at least one queue', 'and names a queue');

-- What is plain goes by C; the way by SQL leaves the same
SELECT value_of($$SELECT orchestrator.cancel_many(all_tasks => true)$$, 'remote_app');
SELECT app($$orchestrator.enqueue('t_retry', '{"n": 1}', deadline => orchestrator._now() + interval '1 hour')$$) AS a,
       app($$orchestrator.enqueue('t_retry', '{"n": 1}', deadline => orchestrator._now() + interval '1 hour')$$) AS b \gset
SELECT claimed() AS c \gset
SELECT (SELECT to_jsonb(l) FROM orchestrator._lease_tasks((SELECT z.claimed_by FROM orchestrator.lease z WHERE z.task_id = :a), ARRAY[:b], 'w of remote_worker', NULL, orchestrator._now(),
          (SELECT i.system_identifier || '-' || i.database FROM orchestrator.database_identity i)) l) AS d \gset
CREATE FUNCTION alike(what jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_object_agg(k, v) FROM jsonb_each($1) e(k, v) WHERE k !~ '^(id|task_id|root_id|token|secret|idempotency_key|sort_key|deadline)$|_(at|until)$'$$;
SELECT is(alike(:'c'::jsonb -> 0), alike(:'d'), 'a claim');
SELECT is(regexp_replace(:'c'::jsonb -> 0 ->> 'idempotency_key', '-' || :'a' || '$', '-' || :'b'), :'d'::jsonb ->> 'idempotency_key', 'its key');
SELECT is((SELECT alike(to_jsonb(z)) || jsonb_build_object('ends', z.ends_at - z.started_at, 'look', z.look_at - z.started_at) FROM orchestrator.lease z WHERE z.task_id = :a),
          (SELECT alike(to_jsonb(z)) || jsonb_build_object('ends', z.ends_at - z.started_at, 'look', z.look_at - z.started_at) FROM orchestrator.lease z WHERE z.task_id = :b), 'its lease');
SELECT report('complete', :'c', $$, '"out"'$$), orchestrator._settle_completed(:b, 1, '"out"', NULL, NULL);
SELECT is((SELECT alike(to_jsonb(t)) FROM orchestrator.task t WHERE t.id = :a AND t.state = 'completed'), (SELECT alike(to_jsonb(t)) FROM orchestrator.task t WHERE t.id = :b), 'and a completed task');

-- Steps of workflows
SELECT value_of($$SELECT orchestrator.cancel_many(all_tasks => true)$$, 'remote_app');
SELECT value_of($$SELECT orchestrator.define_workflow('w', ARRAY[orchestrator.step('one', 'thumb', 'remote'), orchestrator.step('two', definition => 'far', needs => '{one}'),
  orchestrator.step('all', 'item', 'remote', each => '$.input.items[*]', needs => '{two}')]::orchestrator.step_spec[], queue => 'q')$$, 'remote_app');
SELECT app($$orchestrator.enqueue('w', '{"items": [1, 2]}')$$) AS run \gset
SELECT claimed() AS c \gset
SELECT is(:'c'::jsonb -> 0 ->> 'handler', 'thumb', 'a step with a handler of its own');
SELECT report('complete', :'c', $$, '"first"'$$);
SELECT claimed() AS c \gset
SELECT is(:'c'::jsonb -> 0 -> 'input' -> 'steps', '{"one": "first"}', 'the next gets what the first gave');
SELECT is((SELECT started_at FROM orchestrator.task WHERE id = :run), (SELECT started_at FROM orchestrator.task WHERE parent_id = :run AND step = 1), 'the run began with its first step');
SELECT heartbeat(:'c', ', fraction => 0.5');
SELECT ok((SELECT progress FROM orchestrator.task_status WHERE task_id = :run) > 1.0 / (SELECT total_steps FROM orchestrator.workflow_status WHERE task_id = :run), 'what its worker reports counts for the run');
SELECT report('complete', :'c', $$, '"second"'$$);
SELECT claimed(5) AS c \gset
SELECT is(jsonb_array_length(:'c'), 2, 'items of a map');
SELECT heartbeat(:'c', ', fraction => 0.5');
SELECT is((SELECT progress FROM orchestrator.task_status WHERE task_id = (SELECT parent_id FROM orchestrator.task WHERE id = (:'c'::jsonb -> 0 ->> 'task_id')::bigint)), 0.25::float8, 'and for the map');
SELECT is(value_of(format('SELECT string_agg(r.state, '','') FROM orchestrator.complete_many(%L, %L) r', ids(:'c'), (SELECT array_agg(e ->> 'token' ORDER BY n) FROM jsonb_array_elements(:'c') WITH ORDINALITY x(e, n))), 'remote_worker'),
          'completed,completed', 'many steps at once');
SELECT is(state_of(:run), 'completed', 'and the run is completed');

-- Asking for steps: only who is the task's owner
SELECT app($$orchestrator.enqueue('far')$$) AS a \gset
SELECT claimed() AS c \gset
SELECT is(error_of(format($$SELECT orchestrator.add_steps(%s, ARRAY[orchestrator.step('x', 'SELECT 1', 'sql')], token => %L)$$, :a, :'c'::jsonb -> 0 ->> 'token'), 'remote_worker'),
          format('42501: only the owner of task %s may add steps to its run [They would run with the rights of that role: return what is to be done, and let a step of its own workflow do it.]', :a), 'not a worker that was merely granted the queue');
SELECT value_of(format('SELECT orchestrator.cancel(%s)', :a), 'remote_app');
SELECT orchestrator.grant_usage('remote_app', 'worker');
SELECT app($$orchestrator.enqueue('far')$$) AS a \gset
SELECT claimed(role => 'remote_app') AS c \gset
SELECT is(error_of(format($$SELECT orchestrator.add_steps(%s, ARRAY[orchestrator.step('x', 'SELECT 1', 'sql')], token => %L)$$, :a, :'c'::jsonb -> 0 ->> 'token'), 'remote_app'), 'no error', 'its owner may');
SELECT is(error_of(format($$SELECT orchestrator.checkpoint(%s, 'point', '{"k": 1}', token => %L)$$, :a, :'c'::jsonb -> 0 ->> 'token'), 'remote_app'), 'no error', 'a checkpoint with a context');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE parent_id = :a), 0::bigint, 'nothing happens before it completes');
SELECT report('complete', :'c', '', 'remote_app');
SELECT is(state_of(:a), 'waiting', 'then it waits for its steps');
SELECT is((SELECT context FROM orchestrator.checkpoint WHERE task_id = :a AND name = 'point'), '{"k": 1}', 'and the checkpoint is there');

-- What a crash may take back is flushed as the session says; a report always
SELECT app($$orchestrator.enqueue('far')$$) AS a \gset
SET LOCAL synchronous_commit = off;
SELECT claimed() AS c \gset
SELECT heartbeat(:'c');
SELECT is(current_setting('synchronous_commit'), 'off', 'a claim and a heartbeat need not be flushed');
SELECT report('complete', :'c');
SELECT is(current_setting('synchronous_commit'), 'local', 'a report is');

-- Whether a queue is paused is read anew each time; nothing else of it is.
SELECT orchestrator.define_queue('turns', tenant => '$.tenant');
SELECT orchestrator.pause_queue('turns');
CREATE FUNCTION remembered() RETURNS bigint LANGUAGE sql AS 'SELECT used_bytes FROM pg_backend_memory_contexts WHERE name = ''orchestrator definitions''';
SELECT orchestrator.claim('{turns}', 'w') FROM generate_series(1, 10);
SELECT remembered() AS bytes \gset
SELECT orchestrator.claim('{turns}', 'w') FROM generate_series(1, 200);
SELECT is(remembered(), :bytes::bigint, 'a worker that asks a paused queue again and again needs no more memory');

SELECT * FROM finish();
ROLLBACK;
