-- Limits, as claims in SQL take them.
\ir lib/setup.psql
SELECT plan(20);

CREATE SCHEMA lib;
CREATE FUNCTION lib.echo(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
SELECT orchestrator.define_queue('lq', max_running => 3);
SELECT orchestrator.define_queue('free');
CREATE FUNCTION take(rows int, queue text DEFAULT 'lq') RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM orchestrator._claim(owner_id(), (SELECT id FROM orchestrator.queue WHERE name = $2), 4711, $1) $$;
CREATE FUNCTION end_all() RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FILTER (WHERE orchestrator._settle_completed(l.id, l.epoch, NULL, NULL, NULL)) FROM orchestrator.task_live l WHERE l.state = 'running' $$;

SELECT orchestrator.define('lj', 'lib.echo', queue => 'lq');
SELECT count(orchestrator.enqueue('lj')) FROM generate_series(1, 8);
SELECT is(take(2), 2::bigint, 'under a limit of three, two');
SELECT is(take(5), 1::bigint, 'then one');
SELECT is(take(5), 0::bigint, 'then none');
SELECT is(end_all(), 3::bigint, 'they end');
SELECT is(take(5), 3::bigint, 'and three more can be had');
SELECT orchestrator.define_queue('lq', max_running => 4);
SELECT is(take(5), 1::bigint, 'a limit that is raised');
SELECT orchestrator.cancel_many(all_tasks => true);

SELECT orchestrator.define('ld', 'lib.echo', queue => 'free', max_running => 2, concurrency_key => '$.k', key_max_running => 1);
SELECT count(orchestrator.enqueue('ld', jsonb_build_object('k', k))) FROM unnest('{a,a,b,c}'::text[]) k;
SELECT orchestrator.enqueue('ld', '{}');
SELECT is(take(9, 'free'), 2::bigint, 'of a definition two');
SELECT is((SELECT string_agg(input ->> 'k', '' ORDER BY id) FROM orchestrator.task_live WHERE state = 'running'), 'ab', 'of a key one');
SELECT is(end_all(), 2::bigint, 'they end');
SELECT is(take(9, 'free'), 2::bigint, 'the next two');
SELECT is((SELECT string_agg(input ->> 'k', '' ORDER BY id) FROM orchestrator.task_live WHERE state = 'running'), 'ac', 'in their order');
SELECT orchestrator.define('ld', 'lib.echo', queue => 'free', max_running => 3);
SELECT is(take(9, 'free'), 1::bigint, 'the current version''s limit holds for older tasks');
SELECT orchestrator.cancel_many(all_tasks => true);

SELECT orchestrator.define('lr', 'lib.echo', queue => 'free', rate_limit => 2, rate_period => '1 hour');
SELECT count(orchestrator.enqueue('lr')) FROM generate_series(1, 5);
SELECT is(take(9, 'free'), 2::bigint, 'two an hour');
SELECT is(end_all(), 2::bigint, 'which end');
SELECT is(take(9, 'free'), 0::bigint, 'and count on');
SET orchestrator.test_clock_offset = '2 h';
SELECT is(take(9, 'free'), 2::bigint, 'until the hour is over');
RESET orchestrator.test_clock_offset;
SELECT orchestrator.cancel_many(all_tasks => true);

SELECT matches(error_of($$SELECT orchestrator.define('x', 'lib.echo', key_max_running => 1)$$), '^22023: concurrency_key and its limits belong together', 'a limit of keys without a key');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'lib.echo', concurrency_key => '$.', key_max_running => 1)$$), '^22023: definition "x", key "concurrency_key": path \$. does not parse', 'a path that does not parse');
SELECT matches(error_of($$SELECT orchestrator.define_queue('x', rate_limit => 1)$$), '^22023: rate_limit and rate_period belong together', 'a rate without a period');
SELECT matches(error_of($$SELECT orchestrator.define_queue('x', max_running => 0)$$), '^22023: max_running must be positive', 'a limit of none');

SELECT * FROM finish();
ROLLBACK;
