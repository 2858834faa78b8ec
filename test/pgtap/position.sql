-- The position of a task in its queue, against a count of the rows before it.
\ir lib/setup.psql
SELECT plan(29);

CREATE ROLE position_app LOGIN;
CREATE ROLE position_other LOGIN;
SELECT orchestrator.grant_usage('position_app'), orchestrator.grant_usage('position_other');
SELECT orchestrator.define('job', 'SELECT 1', 'sql');
SELECT value_of('SELECT orchestrator.define(''job'', ''SELECT 1'', ''sql'')', 'position_app');
SELECT orchestrator.define_queue('few'), orchestrator.define_queue('many');
-- The exact number, by counting.
CREATE FUNCTION before(task bigint) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM orchestrator.task_live l JOIN orchestrator.task_live t ON t.id = $1
  WHERE l.owner = t.owner AND l.queue = t.queue AND l.state = 'pending' AND l.parked_on IS NULL AND (l.sort_key, l.id) < (t.sort_key, t.id);
$$;
CREATE FUNCTION place(task bigint) RETURNS bigint LANGUAGE sql AS $$SELECT p.position FROM orchestrator.queue_position($1) p$$;
-- How far queue_position() and task_status are from it, at most, of every n-th task.
CREATE FUNCTION error_by_position(queue text, n int) RETURNS bigint LANGUAGE sql AS $$
  SELECT max(abs(place(l.id) - l.exact))
  FROM (SELECT l.id, row_number() OVER (ORDER BY l.sort_key, l.id) - 1 AS exact FROM orchestrator.task_live l JOIN orchestrator.queue q ON q.id = l.queue
        WHERE q.name = $1 AND l.state = 'pending' AND l.parked_on IS NULL) l WHERE l.exact % $2 = 0;
$$;
CREATE FUNCTION error_by_status(queue text) RETURNS bigint LANGUAGE sql AS $$
  SELECT max(abs(s.jobs_ahead - l.exact))
  FROM (SELECT l.id, row_number() OVER (ORDER BY l.sort_key, l.id) - 1 AS exact FROM orchestrator.task_live l JOIN orchestrator.queue q ON q.id = l.queue
        WHERE q.name = $1 AND l.state = 'pending' AND l.parked_on IS NULL) l JOIN orchestrator.task_status s ON s.task_id = l.id;
$$;

-- A small queue: exact, whatever happens in it
SELECT (orchestrator.enqueue_many('job', array_fill('{}'::jsonb, array[900]), queue => 'few'))[1] AS first \gset
SELECT is(place(:first), 0::bigint, 'the first stands at the front');
SELECT is(place(:first + 899), 899::bigint, 'the last has all others before it');
SELECT is(error_by_position('few', 1), 0::bigint, 'each has its place');
SELECT is(error_by_status('few'), 0::bigint, 'in task_status, too');
SELECT orchestrator.enqueue('job', priority => 5, queue => 'few') AS urgent \gset
SELECT is(place(:urgent) || ' ' || place(:first) || ' ' || place(:first + 899), '0 1 900', 'one of higher priority goes before all at once');
SELECT orchestrator.enqueue('job', priority => -50, queue => 'few') AS patient \gset
SELECT is(place(:patient), 901::bigint, 'one of lower priority goes behind');
SELECT claim(10, 'few');
SELECT is(error_by_position('few', 1), 0::bigint, 'what was claimed is not ahead');
SELECT is(place(:first), NULL, 'and stands nowhere');
SELECT orchestrator.cancel(:first + 500), orchestrator.pause(:first + 501);
SELECT is(error_by_position('few', 1), 0::bigint, 'nor what was cancelled or paused');
SELECT is(place(:first + 500) IS NULL AND place(:first + 501) IS NULL, true, 'both stand nowhere');
UPDATE orchestrator.task_live SET parked_on = 1 WHERE id BETWEEN :first + 600 AND :first + 609;
SELECT is(error_by_position('few', 1), 0::bigint, 'nor what waits for a limit');
SELECT is(place(:first + 600), NULL, 'which stands nowhere');
SELECT is((SELECT s.jobs_ahead FROM orchestrator.task_status s WHERE s.task_id = :first + 600), NULL, 'in task_status neither');
SELECT orchestrator.enqueue('job', queue => 'few', delay => '1 hour') AS later \gset
SELECT is(place(:later), NULL, 'what is due later has no place yet');
SELECT settle_completed(:first);
SELECT is(place(:first), NULL, 'a finished task has none');

-- Who may ask
SELECT value_of('SELECT orchestrator.enqueue(''job'')', 'position_app') AS app \gset
SELECT is(value_of('SELECT (orchestrator.queue_position(' || :app || ')).position', 'position_app'), '0', 'only tasks of the same owner are ahead');
SELECT is(error_of('SELECT orchestrator.queue_position(' || :app || ')', 'position_other'), '42704: task ' || :app || ' does not exist', 'somebody else''s task is none');
SELECT is(error_of('SELECT orchestrator.queue_position(99999999)'), '42704: task 99999999 does not exist', 'nor is one that is not there');
SELECT is(value_of(format('SELECT orchestrator._jobs_ahead(%s, 1, 9223372036854775807)', owner_id('position_app')), 'position_other'), NULL, 'nobody learns of others'' queues');
SELECT is(value_of(format('SELECT orchestrator._estimated_start(%s, 1, 9223372036854775807)', owner_id('position_app')), 'position_other'), NULL, 'nor of their rates');
SELECT is(orchestrator.queue_position(NULL)::text, NULL, 'null is nowhere');
SELECT is((SELECT p.estimated_start FROM orchestrator.queue_position(:patient) p), NULL, 'without a rate there is no estimate');

-- Tasks for remote workers have places of their own
SELECT orchestrator.define('far', NULL, 'remote');
SELECT orchestrator.enqueue('far') AS far1 \gset
SELECT orchestrator.enqueue('far') AS far2 \gset
SELECT is((SELECT array_agg((orchestrator.queue_position(i)).position ORDER BY n) FROM unnest(ARRAY[:far1, :far2]) WITH ORDINALITY u(i, n)), '{0,1}', 'queue_position() among those for remote workers');
SELECT is((SELECT array_agg(jobs_ahead ORDER BY task_id) FROM orchestrator.task_status WHERE task_id IN (:far1, :far2)), '{0,1}', 'so does task_status');

-- A large queue: counted once in a while. The steps of 100,000 rows are 64 apart.
SELECT count(orchestrator.enqueue_many('job', array_fill('{}'::jsonb, array[20000]), queue => 'many')) FROM generate_series(1, 5);
SELECT cmp_ok(error_by_position('many', 997), '<=', 64::bigint, 'queue_position() is exact but for a step');
SELECT cmp_ok(error_by_status('many'), '<=', 128::bigint, 'task_status is right but for two steps');
SELECT claim(30000, 'many');
SELECT cmp_ok(error_by_position('many', 997), '<=', 64::bigint, 'what has left the front is known');
SELECT pg_sleep(1.1);   -- a view remembers where the front was for a second
SELECT cmp_ok(error_by_status('many'), '<=', 128::bigint, 'in task_status after a second');
SELECT count(orchestrator.enqueue_many('job', array_fill('{}'::jsonb, array[10000]), queue => 'many'));
SELECT cmp_ok(error_by_position('many', 997), '<=', 64::bigint, 'and what came at the end');

SELECT * FROM finish();
ROLLBACK;
