-- Backpressure: max_depth and on_full of a queue; alerts on depth and age.
\ir lib/setup.psql
SELECT plan(75);

CREATE ROLE bp_app LOGIN;
CREATE ROLE bp_other LOGIN;
SELECT orchestrator.grant_usage(r) FROM unnest('{bp_app,bp_other}'::text[]) r;
SELECT value_of($$SELECT orchestrator.define('job', 'SELECT 1', 'sql')$$, 'bp_app'), value_of($$SELECT orchestrator.define('theirs', 'SELECT 1', 'sql')$$, 'bp_other');

CREATE FUNCTION define_q(options text DEFAULT '') RETURNS void LANGUAGE sql AS $$
  SELECT value_of(format('SELECT orchestrator.define_queue(''q''%s)', $1), 'bp_app');
$$;
CREATE FUNCTION try(n int DEFAULT 1, options text DEFAULT '') RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.enqueue(''job'', queue => ''q''%s) FROM generate_series(1, %s)', $2, $1), 'bp_app');
$$;
CREATE FUNCTION depth() RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM orchestrator.task t JOIN orchestrator.queue q ON q.id = t.queue AND q.name = 'q' WHERE t.state IN ('pending', 'scheduled');
$$;
CREATE FUNCTION queue_id() RETURNS int LANGUAGE sql AS $$SELECT id FROM orchestrator.queue WHERE name = 'q'$$;
CREATE FUNCTION empty() RETURNS void LANGUAGE sql AS $$DELETE FROM orchestrator.task_live$$;
\set full '^OR008: queue "q" is full \\[Try again later, or raise max_depth with orchestrator.define_queue\\(\\)\\.\\]$'

-- Parameters
SELECT matches(error_of(format('SELECT orchestrator.define_queue(''x'', %s)', o)), '^22023: ' || m, o)
FROM (VALUES ('max_depth => 0', 'max_depth must be positive'), ('on_full => ''drop''', 'unknown value "drop" of on_full'),
             ('max_depth => 1, on_full => ''wait'', full_wait => ''61 s''', 'full_wait must not exceed 1 minute to wait'),
             ('max_depth => 1, on_full => ''defer'', full_wait => ''25 h''', 'full_wait must not exceed'),
             ('max_depth => 1, full_wait => ''0''', 'full_wait must be positive'),
             ('alert_depth => 0', 'alert_depth must be positive'), ('alert_depth => 1000001', 'alert_depth must not exceed 1000000'), ('alert_age => ''-1 s''', 'alert_age must be positive')) v(o, m);

-- Reject
SELECT define_q(', max_depth => 3');
SELECT is(try(3), 'no error', 'as many as max_depth');
SELECT matches(try(), :'full', 'and no more');
SELECT is(depth(), 3::bigint, 'nothing of a refused call is left');
SELECT matches(try(1, ', delay => ''1 h'''), :'full', 'nor a scheduled one');
SELECT matches(error_of($$SELECT orchestrator.run('SELECT 1', queue => 'q')$$, 'bp_app'), :'full', 'by run()');
SELECT matches(error_of($$SELECT orchestrator.enqueue_many('job', '{1}', queue => 'q')$$, 'bp_app'), :'full', 'by enqueue_many()');
SELECT matches(error_of($$SELECT orchestrator.enqueue_batch('job', '{1}', queue => 'q')$$, 'bp_app'), :'full', 'by enqueue_batch()');
SELECT matches(error_of($$SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', definition => 'job')], queue => 'q')$$, 'bp_app'), :'full', 'by enqueue_workflow()');
SELECT is(error_of($$SELECT orchestrator.enqueue('job')$$, 'bp_app'), 'no error', 'another queue is not touched');
SELECT is((claim(2, 'q', 'bp_app')) IS NOT NULL, true, 'two are started');
SELECT is(try(2), 'no error', 'two have room');
SELECT matches(try(), :'full', 'not three');
SELECT is(value_of($$SELECT orchestrator.cancel_many(queue => 'q', states => '{pending}', max_rows => 1)$$, 'bp_app'), '1', 'one is cancelled');
SELECT is(try(), 'no error', 'its place is found');
SELECT matches(try(), :'full', 'once');
SELECT settle_failed(id) FROM orchestrator.task WHERE state = 'running' ORDER BY id;
SELECT is(depth(), 5::bigint, 'a retry is never refused');
SELECT matches(try(), :'full', 'and counts');
SELECT define_q(', max_depth => 6');
SELECT is(try(), 'no error', 'a limit that is raised is so at once');
SELECT matches(try(), :'full', 'up to where it is');
SELECT define_q();
SELECT is(try(10), 'no error', 'without one there is room for all');
SELECT define_q(', max_depth => 3');
SELECT matches(try(), :'full', 'a limit that is lowered, too');

SELECT empty();
SELECT is(try(3), 'no error', 'three again');
SELECT is(value_of($$SELECT orchestrator.pause_many(queue => 'q')$$, 'bp_app'), '3', 'paused');
SELECT matches(try(), :'full', 'they keep their places');
SELECT is(value_of($$SELECT orchestrator.resume_many(queue => 'q')$$, 'bp_app'), '3', 'for when they go on');

-- What is undone
SELECT empty();

SAVEPOINT a;
SELECT is(try(3), 'no error', 'three in a subtransaction');
SELECT matches(try(), :'full', 'fill the queue');
ROLLBACK TO a;
SELECT is(try(3), 'no error', 'undone, there is room for three');
SELECT matches(try(), :'full', 'and for no more');
SELECT empty();

-- Bulk calls: all or nothing
SELECT matches(error_of($$SELECT orchestrator.enqueue_many('job', '{1,2,3,4}', queue => 'q')$$, 'bp_app'), :'full', 'more than the queue holds');
SELECT is(depth(), 0::bigint, 'is refused as a whole');
SELECT is(error_of($$SELECT orchestrator.enqueue_many('job', '{1,2}', queue => 'q')$$, 'bp_app'), 'no error', 'what fits is taken');
SELECT matches(error_of($$SELECT orchestrator.enqueue_many('job', '{1,2}', queue => 'q')$$, 'bp_app'), :'full', 'what does not is refused');
SELECT is(depth(), 2::bigint, 'as a whole');
SELECT is(error_of($$SELECT orchestrator.enqueue_many('job', '{1}', queue => 'q', keys => '{k}')$$, 'bp_app'), 'no error', 'the last place');
SELECT is(error_of($$SELECT orchestrator.enqueue_many('job', '{1}', queue => 'q', keys => '{k}')$$, 'bp_app'), 'no error', 'a key that is taken needs none');
SELECT is(try(1, ', key => ''k'''), 'no error', 'nor by itself');
SELECT matches(try(1, ', key => ''l'''), :'full', 'another does');
SELECT is((SELECT count(*) FROM orchestrator.task_key WHERE key = 'l'), 0::bigint, 'and is not taken');
SELECT empty();

-- Runs: each needs a place, what counts is their steps
SELECT is(error_of($$SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', definition => 'job'), orchestrator.step('b', definition => 'job')], queue => 'q')$$, 'bp_app'), 'no error', 'a run of two steps');
SELECT is(depth(), 2::bigint, 'which wait');
SELECT is(try(), 'no error', 'a task beside them');
SELECT matches(error_of($$SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('a', definition => 'job')], queue => 'q')$$, 'bp_app'), :'full', 'then the queue is full');
SELECT empty();

-- Wait
SELECT define_q(', max_depth => 1, on_full => ''wait'', full_wait => ''300 ms''');
CREATE FUNCTION took(command text) RETURNS interval LANGUAGE plpgsql AS $$
DECLARE
  v_began timestamptz := clock_timestamp();
BEGIN
  EXECUTE $1;
  RETURN clock_timestamp() - v_began;
END
$$;
SELECT is(try(), 'no error', 'one has room');
SELECT ok(took($$SELECT try()$$) < '250 ms', 'whose own tasks fill the queue does not wait for them');
SELECT matches(try(), :'full', 'but is refused');
SELECT empty();

-- Defer
SELECT define_q(', max_depth => 1, on_full => ''defer''');
SELECT pg_sleep(0.15);   -- a count serves for a tenth of a second
SELECT is(try(3), 'no error', 'nobody is refused');
SELECT is((SELECT array_agg(state::text ORDER BY id) FROM orchestrator.task WHERE queue = queue_id() AND live), '{pending,scheduled,scheduled}', 'what does not fit is scheduled');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE queue = queue_id() AND live AND run_at - created_at BETWEEN '59 s' AND '61 s'), 2::bigint, 'for a minute later');
SELECT define_q(', max_depth => 1, on_full => ''defer'', full_wait => ''1 h''');
SELECT is(error_of($$SELECT orchestrator.enqueue_batch('job', '{1,2}', queue => 'q')$$, 'bp_app'), 'no error', 'so is a batch');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE queue = queue_id() AND state = 'scheduled' AND run_at > orchestrator._now() + '59 min'), 2::bigint, 'for full_wait');
SELECT is(try(1, ', delay => ''2 h'''), 'no error', 'what is later');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE queue = queue_id() AND live AND run_at > orchestrator._now() + '119 min'), 1::bigint, 'stays where it is');
SELECT empty();

-- Alerts
SELECT define_q(', alert_depth => 5, alert_age => ''1 min''');
CREATE FUNCTION alerts() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(kind || CASE WHEN raised THEN ' raised ' ELSE ' cleared ' END || round(value::numeric), ', ' ORDER BY kind) FROM orchestrator.alert_status WHERE queue = 'q';
$$;
SELECT try(4);
SELECT ok(orchestrator._check_alerts() BETWEEN orchestrator._now() + '50 s' AND orchestrator._now() + '61 s', 'the next look is when the oldest would be too old');
SELECT is(alerts(), NULL, 'below the limit there is no alert');
SELECT try();
SELECT ok(orchestrator._check_alerts() < orchestrator._now() + '2 s', 'while one is raised it is looked at');
SELECT is(alerts(), 'depth raised 5', 'at the limit it is raised');
SELECT cardinality(claim(1, 'q', 'bp_app'));
SELECT orchestrator._check_alerts();
SELECT is(alerts(), 'depth cleared 4', 'at four fifths of it it is over');
SELECT later(61);
SELECT orchestrator._check_alerts();
SELECT matches(alerts(), '^age raised 6\d, depth cleared 4$', 'age is told of, depth is over');
SELECT is(value_of('SELECT count(*) FROM orchestrator.alert_status', 'bp_app'), '2', 'its owner sees them');
SELECT is(value_of('SELECT count(*) FROM orchestrator.alert_status', 'bp_other'), '0', 'nobody else');
SELECT empty();
SELECT is(orchestrator._check_alerts(), NULL, 'with nothing waiting there is nothing to look at');
SELECT is(alerts(), 'age cleared 0, depth cleared 4', 'and all is over');
SELECT is((SELECT count(*) FROM orchestrator.alert), 2::bigint, 'each was recorded once');

-- Bounded: the supervisor looks at all of them
SELECT is(error_of($$SELECT orchestrator.define_queue('many' || i, alert_depth => 1) FROM generate_series(1, 99) i$$, 'bp_app'), 'no error', 'a hundred queues with alerts');
SELECT matches(error_of($$SELECT orchestrator.define_queue('many', alert_age => '1 s')$$, 'bp_app'), '^54000: a role may not have more than 100 queues with alerts', 'and no more');
SELECT is(error_of($$SELECT orchestrator.define_queue('many')$$, 'bp_app'), 'no error', 'without one there may be');

SELECT * FROM finish();
ROLLBACK;
