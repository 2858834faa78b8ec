-- Idempotency keys: one task for each (owner, queue, key), until key_window ends.
\ir lib/setup.psql
SELECT plan(39);

CREATE ROLE keys_app LOGIN;
SELECT orchestrator.grant_usage('keys_app');
SELECT orchestrator.define_queue('q');
SELECT orchestrator.define('job', 'SELECT 1', 'sql'), orchestrator.define('other', 'SELECT 2', 'sql');

SELECT orchestrator.enqueue('job', '1', key => 'k') AS task \gset
SELECT is((task(:task)).key, 'k', 'a task has its key');
SELECT is(to_jsonb(k), jsonb_build_object('owner', owner_id(), 'queue', 1, 'key', 'k', 'task_id', :task, 'expires_at', NULL), 'the key is taken for good')
FROM orchestrator.task_key k;
SELECT written() AS before \gset
SELECT is(orchestrator.enqueue('job', '2', key => 'k'), :task::bigint, 'using it again gives the task that has it');
SELECT is(orchestrator.enqueue('other', '3', 'name', 5, delay => '1 h', key => 'k', metadata => '{}'), :task::bigint, 'whatever else is asked for');
SELECT is(orchestrator.run('SELECT 1', key => 'k', key_window => '1 s'), :task::bigint, 'by run(), too');
SELECT isnt((SELECT count(*) FROM orchestrator.task), 0::bigint, 'there is a task');
SELECT is((SELECT count(*) FROM orchestrator.task), 1::bigint, 'and no other');
SELECT is((task(:task)).input, '1', 'which is what it was');
SELECT is((SELECT expires_at FROM orchestrator.task_key), NULL, 'a later window does not shorten the hold');

SELECT isnt(orchestrator.enqueue('job', key => 'K'), :task::bigint, 'keys are told apart by case');
SELECT orchestrator.enqueue('job', key => 'k', queue => 'q') AS inq \gset
SELECT isnt(:inq::bigint, :task::bigint, 'another queue, another task');
SELECT is(orchestrator.enqueue('job', key => 'k', queue => 'q'), :inq::bigint, 'held there as well');
SELECT value_of($$SELECT orchestrator.run('SELECT 1', key => 'k')$$, 'keys_app') AS theirs \gset
SELECT isnt(:theirs::bigint, :task::bigint, 'another role, another task');
SELECT is(value_of($$SELECT orchestrator.run('SELECT 1', key => 'k')$$, 'keys_app')::bigint, :theirs::bigint, 'held there as well');
SELECT is(value_of($$SELECT count(*) FROM orchestrator.task_key$$, 'keys_app'), '1', 'and a role sees its own keys only');

-- Final or not
SELECT claim(10);
SELECT settle_completed(:task, '7');
SELECT is(orchestrator.enqueue('job', key => 'k'), :task::bigint, 'a completed task keeps its key');
SELECT is(state_of(:task), 'completed', 'and is not run again');
SELECT orchestrator.enqueue('job', key => 'c') AS task2 \gset
SELECT orchestrator.cancel(:task2);
SELECT is(orchestrator.enqueue('job', key => 'c'), :task2::bigint, 'a cancelled task keeps its key');
SELECT is(state_of(:task2), 'cancelled', 'and stays cancelled');

-- The window
SELECT orchestrator.enqueue('job', key => 'w', key_window => '1 hour') AS first \gset
SELECT is(round(extract(epoch FROM k.expires_at - orchestrator._now()) / 60), 60::numeric, 'the window begins now') FROM orchestrator.task_key k WHERE key = 'w';
SELECT later(3590);
SELECT is(orchestrator.enqueue('job', key => 'w', key_window => '1 hour'), :first::bigint, 'within it the key is held');
SELECT later(20);
SELECT orchestrator.enqueue('job', key => 'w', key_window => '2 hours') AS second \gset
SELECT isnt(:second::bigint, :first::bigint, 'after it the key is free, and was not held longer by being asked for');
SELECT is((SELECT count(*) FROM orchestrator.task_key WHERE key = 'w'), 1::bigint, 'the row is used again');
SELECT is(orchestrator.enqueue('job', key => 'w'), :second::bigint, 'and holds the new task');
SELECT is((task(:first)).key || (task(:second)).key, 'ww', 'both tasks tell their key');
SELECT later(7200);
SELECT orchestrator.enqueue('job', key => 'w') AS third \gset
SELECT is((SELECT task_id || coalesce(expires_at::text, '-') FROM orchestrator.task_key WHERE key = 'w'), :third || '-', 'taken again without a window');

-- Rolled back, a key is free
SAVEPOINT s;
SELECT orchestrator.enqueue('job', key => 'undone') AS undone \gset
ROLLBACK TO s;
SELECT orchestrator.enqueue('job', key => 'undone') AS done \gset
SELECT isnt(:done::bigint, :undone::bigint, 'a key that was rolled back is free');

-- Many
SELECT orchestrator.enqueue_many('job', '{1,2,3,4,5,6}', keys => array['m1', NULL, 'k', 'm2', 'm1', NULL]) AS ids \gset
SELECT is((:'ids'::bigint[])[3], :task::bigint, 'in bulk: a key that is held gives its task');
SELECT is((:'ids'::bigint[])[5], (:'ids'::bigint[])[1], 'of equal keys the first one''s task holds it');
SELECT is((SELECT count(DISTINCT i) FROM unnest(:'ids'::bigint[]) i), 5::bigint, 'null keys are nobody''s');
SELECT is((SELECT array_agg(t.input::text || coalesce(t.key, '-') ORDER BY t.id) FROM orchestrator.task t WHERE t.priority = -10), array['1m1', '2-', '4m2', '6-'],
          'only tasks that hold their key, or have none, are made');
SELECT is(orchestrator.enqueue_many('other', '{1,2,3}', keys => array['m2', 'm1', 'k']), array[(:'ids'::bigint[])[4], (:'ids'::bigint[])[1], :task::bigint], 'the same again makes none');
SELECT is((SELECT count(*) FROM orchestrator.task t WHERE t.priority = -10), 4::bigint, 'indeed');
SELECT is(orchestrator.enqueue('job', key => 'm1'), (:'ids'::bigint[])[1], 'one by one and in bulk share the keys');
SELECT orchestrator.enqueue_many('job', '{1,2}', keys => '{w1,w2}', key_window => '1 hour') AS ids \gset
SELECT later(3601);
SELECT orchestrator.enqueue('job', key => 'w2', key_window => '1 hour') AS w2 \gset
SELECT orchestrator.enqueue_many('job', '{1,2}', keys => '{w1,w2}') AS again \gset
SELECT isnt((:'again'::bigint[])[1], (:'ids'::bigint[])[1], 'in bulk: after the window a key is free');
SELECT is((:'again'::bigint[])[2], :w2::bigint, 'and held when it was taken meanwhile');
SELECT is((SELECT count(*) FROM orchestrator.task t WHERE t.key = 'w2'), 2::bigint, 'with no task for nothing');

SELECT is(error_of($$SELECT orchestrator.enqueue('job', key => repeat('x', 200))$$), 'no error', 'a key may have 200 bytes');
SELECT isnt(written(), :'before', 'and the check of what is written sees all this');

SELECT * FROM finish();
ROLLBACK;
