-- Quotas of roles: what may wait; who may set them.
\ir lib/setup.psql
SELECT plan(40);

CREATE ROLE quota_app LOGIN;
CREATE ROLE quota_other LOGIN;
CREATE ROLE quota_admin LOGIN;
SELECT orchestrator.grant_usage('quota_app'), orchestrator.grant_usage('quota_other'), orchestrator.grant_usage('quota_admin', 'admin');
SELECT value_of($$SELECT orchestrator.define('job', 'SELECT 1', 'sql')$$, r) FROM unnest('{quota_app,quota_other}'::text[]) r;
SELECT value_of($$SELECT orchestrator.define_queue('a')$$, 'quota_app');
CREATE FUNCTION try(n int, role text DEFAULT 'quota_app', options text DEFAULT '') RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.enqueue(''job''%s) FROM generate_series(1, %s)', $3, $1), $2);
$$;
\set over '^OR009: role "quota_app" may not have so many tasks waiting \\[.*orchestrator.set_quota\\(\\)\\.\\]$'

SELECT matches(error_of($$SELECT orchestrator.set_quota('quota_app', 5)$$, 'quota_app'), '^42501', 'a role cannot set its own');
SELECT is(error_of($$SELECT orchestrator.set_quota('quota_app', max_queued => 3)$$, 'quota_admin'), 'no error', 'an administrator can');
SELECT matches(error_of(format('SELECT orchestrator.set_quota(''quota_app'', %s => 0)', o)), '^22023: ' || o || ' must be positive', o) FROM unnest('{max_queued,max_running,max_schedules}'::text[]) o;
SELECT matches(error_of($$SELECT orchestrator.set_quota('nobody_there', 1)$$), '^42704', 'of a role that exists');
SELECT is(try(2), 'no error', 'below it');
SELECT is(try(1, options => ', queue => ''a'', delay => ''1 h'''), 'no error', 'all queues count, and what is scheduled');
SELECT matches(try(1), :'over', 'at it no more');
SELECT matches(error_of($$SELECT orchestrator.enqueue_many('job', '{1}')$$, 'quota_app'), :'over', 'by enqueue_many()');
SELECT matches(error_of($$SELECT orchestrator.run('SELECT 1')$$, 'quota_app'), :'over', 'by run()');
SELECT matches(error_of($$SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', definition => 'job')])$$, 'quota_app'), :'over', 'by enqueue_workflow()');
SELECT is(try(5, 'quota_other'), 'no error', 'nobody else is bound');
SELECT is(cardinality(claim(1, role => 'quota_app')), 1, 'one is started');
SELECT is(try(1), 'no error', 'and another has room');
SELECT is((SELECT row(max_queued, queued, running, everybodys)::text FROM orchestrator.quota_status WHERE role = 'quota_app'), '(3,3,0,f)', 'the view tells; no executor runs any');
SELECT is(value_of('SELECT string_agg(role, '','') FROM orchestrator.quota_status', 'quota_other'), NULL, 'only of oneself');

-- Nothing that waits is hidden from it
SELECT orchestrator.set_quota('quota_app', max_queued => 4);
SELECT is(value_of($$SELECT orchestrator.pause_many(states => '{pending,scheduled}', all_tasks => true)$$, 'quota_app'), '3', 'all are paused');
SELECT is(try(1), 'no error', 'they still count:');
SELECT matches(try(1), :'over', 'there is room for one');
SELECT is(value_of($$SELECT orchestrator.pause_many(states => '{running}', all_tasks => true, force => true)$$, 'quota_app'), '1', 'the one that runs, too');
SELECT matches(try(1), :'over', 'is none');
SELECT is(value_of($$SELECT orchestrator.resume_many(all_tasks => true)$$, 'quota_app'), '4', 'all go on');
SELECT is(value_of($$SELECT orchestrator.cancel_many(all_tasks => true, max_rows => 2)$$, 'quota_app'), '2', 'two are cancelled');
SELECT is(try(1), 'no error', 'there is room for one');
SELECT matches(error_of($$SELECT orchestrator.retry_many(states => '{cancelled}', all_tasks => true)$$, 'quota_app'), :'over', 'but not for retrying two');
SELECT is((SELECT count(*) FROM orchestrator.task t WHERE t.live AND t.owner = owner_id('quota_app')), 4::bigint, 'nothing of that is left');
SELECT orchestrator.set_quota('quota_app', max_queued => 6);
SELECT is(value_of($$SELECT orchestrator.retry_many(states => '{cancelled}', all_tasks => true)$$, 'quota_app'), '2', 'when there is');
SELECT matches(try(1), :'over', 'they take it');

-- Everybody's
SELECT orchestrator.set_quota('public', max_queued => 6);
SELECT is(try(1, 'quota_other'), 'no error', 'one more');
SELECT matches(try(1, 'quota_other'), '^OR009', 'is all that everybody may');
SELECT matches(try(1), :'over', 'who has one of its own is bound by that');
SELECT orchestrator.set_quota('quota_app');
SELECT is(value_of($$SELECT orchestrator.cancel_many(states => '{pending,scheduled}', all_tasks => true, max_rows => 3)$$, 'quota_app'), '3', 'three are cancelled');
SELECT is(try(3), 'no error', 'without it by everybody''s');
SELECT matches(try(1), :'over', 'again');
SELECT orchestrator.set_quota('public');
SELECT is(try(20), 'no error', 'or by none');

-- Schedules are counted by who makes them
SELECT is(orchestrator._check_quota_schedules(owner_id('quota_app'), 1000)::text, '', 'any number');
SELECT orchestrator.set_quota('quota_app', max_schedules => 2);
SELECT is(orchestrator._check_quota_schedules(owner_id('quota_app'), 1)::text, '', 'the second');
SELECT matches(error_of(format('SELECT orchestrator._check_quota_schedules(%s, 2)', owner_id('quota_app'))), '^OR009: role "quota_app" may not have more schedules', 'not the third');
SELECT is((orchestrator._quota(owner_id('quota_app'))).max_schedules, 2, 'as kept');

SELECT * FROM finish();
ROLLBACK;
