-- Rows are looked for by their ids or keys, whatever the statistics of their
-- tables say: they are of another hour, in which nothing was scheduled, ran,
-- was to expire, or had a key. So are plans that a session made then.
\ir lib/setup.psql
SELECT plan(10);

SELECT orchestrator.define('job', 'SELECT 1', 'sql');
SELECT orchestrator.define_workflow('run', array[orchestrator.step('a', definition => 'job')]);

-- Live rows, keys and traces that a query fetches.
CREATE FUNCTION fetched() RETURNS bigint LANGUAGE sql AS $$
  SELECT sum(s.idx_tup_fetch + s.seq_tup_read)::bigint FROM pg_stat_xact_user_tables s
  WHERE s.schemaname = 'orchestrator' AND s.relname ~ '^(task_live|task_key|trace_log)';
$$;
CREATE FUNCTION fetched_by(query text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_before bigint := fetched();
BEGIN
  EXECUTE $1;
  RETURN fetched() - v_before;
END
$$;

-- Plans of an hour with next to nothing
CREATE FUNCTION claimed() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_task bigint := orchestrator.enqueue('job', priority => 200);
BEGIN
  PERFORM claim(1);
  RETURN v_task;
END
$$;
CREATE FUNCTION failed(id bigint) RETURNS orchestrator.task_state LANGUAGE sql AS $$
  SELECT orchestrator._settle_failed($1, 1, 'error', NULL, NULL, NULL);
$$;
SELECT orchestrator.enqueue('job', key => 'k1') \g /dev/null
ANALYZE orchestrator.task_live, orchestrator.task_key;
SELECT count(failed(claimed())) + count(orchestrator.enqueue('job', key => 'k1')) FROM generate_series(1, 10) \g /dev/null
SELECT orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[1000])) \g /dev/null
SELECT claimed() AS a \gset
SELECT cmp_ok(fetched_by(format('SELECT failed(%s)', :a)), '<', 100::bigint, 'a running task, when its step failed');
SELECT is(state_of(:a), 'scheduled', 'which is retried');
SELECT orchestrator.cancel_many(all_tasks => true) \g /dev/null

-- Such an hour, after others
SELECT orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[1000]), delay => '1 minute') \g /dev/null
SELECT orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[1000]), deadline => orchestrator._now() + interval '1 hour') \g /dev/null
SELECT cardinality(claim(1000)) \g /dev/null
SELECT orchestrator.cancel_many(all_tasks => true) \g /dev/null
SELECT orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[5000])) \g /dev/null
ANALYZE orchestrator.task_live;

SELECT orchestrator.enqueue_many('run', array_fill('1'::jsonb, array[1000]), delay => '1 minute') AS runs \gset
SELECT later(61);
SELECT cmp_ok(fetched_by('SELECT orchestrator._promote_due(10)'), '<', 2000::bigint, 'runs that are due, by their time and ids');

SELECT orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[1000]), priority => 100, deadline => orchestrator._now() + interval '1 minute') \g /dev/null
SELECT cardinality(claim(1000)) \g /dev/null
SELECT max(id) AS a FROM orchestrator.task_live WHERE state = 'running' \gset
SELECT cmp_ok(fetched_by(format('SELECT failed(%s)', :a)), '<', 100::bigint, 'one of many that run, when its step failed');
SELECT is(state_of(:a), 'scheduled', 'which is retried, without a look at the trace');
SELECT cmp_ok(fetched_by(format('SELECT orchestrator._recover(array[%s], array[0], ''{}'')', :a - 1)), '<', 100::bigint, 'when its worker is gone');

SELECT orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[10]), deadline => orchestrator._now() + interval '61 seconds') AS late \gset
SELECT later(62);
SELECT cmp_ok(fetched_by('SELECT orchestrator._expire(11)'), '<', 3000::bigint, 'those that are late, behind some that run');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE id = ANY (:'late') AND state = 'failed'), 10::bigint, 'which fail');

-- A join that compares each with each takes a minute
SET LOCAL statement_timeout = '8s';
SELECT is(cardinality(orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[40000]), keys => (SELECT array_agg('k' || n) FROM generate_series(1, 40000) n))),
          40000, 'many keys are looked up one by one');
SELECT cmp_ok(fetched_by($$SELECT orchestrator.enqueue('job', key => 'k2')$$), '<', 100::bigint, 'and one by one');

SELECT * FROM finish();
ROLLBACK;
