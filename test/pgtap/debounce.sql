-- Debounce and throttle: tasks with a key that come often. Unique over a
-- window is key_window (keys.sql).
\ir lib/setup.psql
SELECT plan(56);

CREATE ROLE deb_app LOGIN;
SELECT orchestrator.grant_usage('deb_app');
SELECT orchestrator.define_queue('q');
SELECT orchestrator.define('job', 'SELECT 1', 'sql'), orchestrator.define('other', 'SELECT 2', 'sql'), orchestrator.define('limited', 'SELECT 1', 'sql', queue_timeout => '1 h');
CREATE FUNCTION wait_of(id bigint) RETURNS int LANGUAGE sql AS $$SELECT round(extract(epoch FROM t.run_at - orchestrator._now()))::int FROM orchestrator.task t WHERE t.id = $1$$;

-- Parameters
SELECT is(split_part(error_of(format('SELECT orchestrator.enqueue(''job'', %s)', o)), ' [', 1), '22023: ' || m, o)
FROM (VALUES ('debounce => ''1 s''', 'debounce and throttle need a key'), ('throttle => ''1 s''', 'debounce and throttle need a key'),
             ('key => ''k'', debounce_max => ''1 s''', 'debounce_max needs debounce'),
             ('key => ''k'', debounce => ''1 s'', throttle => ''1 s''', 'only one of key_window, debounce and throttle can be given'),
             ('key => ''k'', debounce => ''1 s'', key_window => ''1 s''', 'only one of key_window, debounce and throttle can be given'),
             ('key => ''k'', throttle => ''1 s'', key_window => ''1 s''', 'only one of key_window, debounce and throttle can be given'),
             ('key => ''k'', debounce => ''1 s'', delay => ''1 s''', 'debounce cannot be given with run_at or delay'),
             ('key => ''k'', debounce => ''0''', 'debounce must be positive, and not exceed 30 days'),
             ('key => ''k'', debounce => ''31 days''', 'debounce must be positive, and not exceed 30 days'),
             ('key => ''k'', debounce => ''10 s'', debounce_max => ''9 s''', 'debounce_max must be between debounce and 30 days'),
             ('key => ''k'', debounce => ''1 s'', debounce_max => ''31 days''', 'debounce_max must be between debounce and 30 days'),
             ('key => ''k'', throttle => ''0''', 'throttle must be between 1 millisecond and 366 days'),
             ('key => ''k'', throttle => ''1 month''', 'throttle must not be given in months'),
             ('key => '''', throttle => ''1 s''', 'key must not be empty')) v(o, m);
SELECT is((SELECT count(*) FROM orchestrator.task_key), 0::bigint, 'nothing of that is left');

-- Debounce: the last input, at the end
SELECT orchestrator.enqueue('job', '1', key => 'k', debounce => '10 s', debounce_max => '25 s') AS task \gset
SELECT is(state_of(:task), 'scheduled', 'the first call makes a task that waits');
SELECT is(wait_of(:task), 10, 'for the window');
SELECT later(8);
SELECT is(orchestrator.enqueue('job', '2', key => 'k', debounce => '10 s', debounce_max => '25 s'), :task::bigint, 'a call in the window gives the same');
SELECT is((task(:task)).input, '2', 'with the new input');
SELECT is(wait_of(:task), 10, 'and waits anew');
SELECT is(orchestrator._promote_due(100), 0, 'it is not due');
SELECT later(9);
SELECT is(orchestrator.enqueue('job', '3', key => 'k', debounce => '10 s', debounce_max => '25 s'), :task::bigint, 'again');
SELECT is(wait_of(:task), 8, 'but not longer than the maximum since the first');
SELECT isnt(orchestrator.enqueue('job', '9', key => 'l', debounce => '10 s'), :task::bigint, 'another key, another task');
SELECT isnt(orchestrator.enqueue('job', '9', key => 'k', queue => 'q', debounce => '10 s'), :task::bigint, 'another queue, too');
SELECT matches(error_of($$SELECT orchestrator.enqueue('other', '4', key => 'k', debounce => '10 s')$$), '^22023: key "k" is that of a debounced task of another definition', 'another definition is a mistake');
SELECT is(orchestrator.enqueue('job', '5', key => 'k'), :task::bigint, 'to a call without debounce it is a task that has the key');
SELECT is((task(:task)).input, '3', 'and does not change');
SELECT later(9);
SELECT is(orchestrator._promote_due(100) > 0, true, 'its time comes');
SELECT orchestrator.enqueue('job', '6', key => 'k', debounce => '10 s') AS next \gset
SELECT isnt(:next::bigint, :task::bigint, 'one that is ready is left as it is');
SELECT is(state_of(:task) || ' ' || (task(:task)).input, 'pending 3', 'with its input');
SELECT is(state_of(:next) || ' ' || wait_of(:next), 'scheduled 10', 'and another one waits');
SELECT is(orchestrator.enqueue('job', '7', key => 'k', debounce => '10 s'), :next::bigint, 'which the next call is about');
SELECT is(orchestrator.cancel(:next)::text, 'cancelled', 'cancelled');
SELECT orchestrator.enqueue('job', '8', key => 'k', debounce => '10 s') AS third \gset
SELECT isnt(:third::bigint, :next::bigint, 'there is another');
SELECT is((task(:next)).input, '7', 'what was cancelled stays as it was');
SELECT is(orchestrator.pause(:third)::text, 'paused', 'paused');
SELECT isnt(orchestrator.enqueue('job', '9', key => 'k', debounce => '10 s'), :third::bigint, 'likewise');

-- Merged input
SELECT orchestrator.enqueue('job', '{"a": 1, "b": 1}', key => 'm', debounce => '10 s') AS merged \gset
SELECT is(orchestrator.enqueue('job', '{"b": 2, "c": 3}', key => 'm', debounce => '10 s', debounce_merge => true), :merged::bigint, 'merged into the same');
SELECT is((task(:merged)).input, '{"a": 1, "b": 2, "c": 3}', 'what is new stands above');
SELECT is(orchestrator.enqueue('job', '{"z": 1}', key => 'm', debounce => '10 s', debounce_merge => false), :merged::bigint, 'or not');
SELECT is((task(:merged)).input, '{"z": 1}', 'it is replaced');
SELECT orchestrator.enqueue('job', '[1]', key => 'list', debounce => '10 s') AS list \gset
SELECT orchestrator.enqueue('job', '[2]', key => 'list', debounce => '10 s', debounce_merge => true);
SELECT is((task(:list)).input, '[1, 2]', 'lists grow');
SELECT orchestrator.enqueue('job', jsonb_build_array(repeat('x', 524288)), key => 'list', debounce => '10 s', debounce_merge => true);
SELECT matches(error_of(format($$SELECT orchestrator.enqueue('job', %L, key => 'list', debounce => '10 s', debounce_merge => true)$$, jsonb_build_array(repeat('x', 524288)))), '^54000: input is larger', 'to the size of an input');

-- The end of queue_timeout moves with it
SELECT orchestrator.enqueue('limited', key => 'e', debounce => '10 s') AS limited \gset
SELECT later(5);
SELECT orchestrator.enqueue('limited', key => 'e', debounce => '10 s');
SELECT is((task(:limited)).expire_at, (task(:limited)).run_at + interval '1 h', 'its end moves with it');

-- A run is put off like a task
SELECT orchestrator.define_workflow('flow', ARRAY[orchestrator.step('a', definition => 'job', input => '"$.input"')], timeout => '1 h');
SELECT orchestrator.enqueue('flow', '1', key => 'w', debounce => '10 s') AS run \gset
SELECT later(5);
SELECT is(orchestrator.enqueue('flow', '2', key => 'w', debounce => '10 s'), :run::bigint, 'a run that waits');
SELECT is((task(:run)).expire_at, (task(:run)).run_at + interval '1 h', 'its end moves with it');
SELECT later(11);
SELECT orchestrator._promote_due(100);
SELECT is((SELECT input FROM orchestrator.task t WHERE t.parent_id = :run), '2', 'its steps see the last input');

-- A key that is held for good
SELECT orchestrator.enqueue('job', '1', key => 'held') AS held \gset
SELECT is(orchestrator.enqueue('job', '2', key => 'held', debounce => '10 s'), :held::bigint, 'a task that is not debounced stands');
SELECT is((task(:held)).input, '1', 'as it is');

-- Throttle: the first of each slot
SELECT later(60 - extract(epoch FROM orchestrator._now())::bigint::int % 60 + 1);
SELECT orchestrator.enqueue('job', '1', key => 't', throttle => '1 min') AS first \gset
SELECT is(orchestrator.enqueue('job', '2', key => 't', throttle => '1 min'), :first::bigint, 'one in a slot');
SELECT is((task(:first)).input, '1', 'the first');
SELECT is((SELECT expires_at FROM orchestrator.task_key WHERE key = 't'), date_trunc('minute', orchestrator._now()) + interval '1 min', 'which ends on the minute');
SELECT later(60);
SELECT isnt(orchestrator.enqueue('job', '3', key => 't', throttle => '1 min'), :first::bigint, 'another in the next');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE key = 't'), 2::bigint, 'two in all');
SELECT orchestrator.enqueue('job', '1', key => 'd', throttle => '1 min', delay => '1 h') AS later \gset
SELECT is(state_of(:later), 'scheduled', 'a throttled task may be delayed');

SELECT * FROM finish();
ROLLBACK;
