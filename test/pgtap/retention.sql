-- Retention: which ranges of finished tasks may go, what stays of them, what goes with them; purge().
\ir lib/setup.psql
SELECT plan(117);

CREATE ROLE retention_app LOGIN;
CREATE ROLE retention_other LOGIN;
SELECT orchestrator.grant_usage('retention_app'), orchestrator.grant_usage('retention_other');
SELECT orchestrator.define('job', 'SELECT 1', 'sql'), orchestrator.define('once', 'SELECT 1', 'sql', max_attempts => 1), orchestrator.define('keep', 'SELECT 1', 'sql', queue => 'default');
SELECT orchestrator.define_queue('short', retention => '1 hour'), orchestrator.define_queue('long', retention => '90 days', retention_failed => '2 hours');
SELECT orchestrator.define_workflow('flow', ARRAY[orchestrator.step('a', definition => 'job'), orchestrator.step('b', definition => 'job', needs => '{a}')]::orchestrator.step_spec[]);

-- The next ids are of this range.
CREATE FUNCTION next_range(range bigint) RETURNS void LANGUAGE sql AS $$
  SELECT setval('orchestrator.task_id_seq', $1 * 1000000);
$$;
-- n tasks that ended, as if they had been run.
CREATE FUNCTION done(n int DEFAULT 1, definition text DEFAULT 'job', queue text DEFAULT 'default', role text DEFAULT current_user) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  v_ids bigint[];
BEGIN
  PERFORM set_config('role', $4, true);
  v_ids := orchestrator.enqueue_many($2, array_fill('{}'::jsonb, ARRAY[$1]), queue => $3);
  PERFORM set_config('role', 'none', true);
  PERFORM claim($1, $3, $4);
  PERFORM settle_completed(i) FROM unnest(v_ids) i;
  RETURN v_ids;
END
$$;
CREATE FUNCTION failed(queue text DEFAULT 'default') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_id bigint := orchestrator.run('SELECT 1', queue => $1, max_attempts => 1);
BEGIN
  PERFORM claim(1, $1);
  PERFORM settle_failed(v_id);
  RETURN v_id;
END
$$;
-- What becomes of a range, as the worker would do it.
CREATE FUNCTION judged(range bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator._retention_due();
  RETURN CASE WHEN orchestrator._glance($1) THEN orchestrator._judge($1) ELSE 'keep' END;
END
$$;
CREATE FUNCTION look_at(range bigint) RETURNS interval LANGUAGE sql AS $$
  SELECT date_trunc('minute', look_at - orchestrator._now() + '30 s') FROM orchestrator.partition_state s WHERE s.range = $1;
$$;
CREATE FUNCTION detach(range bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('ALTER TABLE orchestrator.task_finished DETACH PARTITION orchestrator.task_finished_%s', $1);
  EXECUTE format('ALTER TABLE orchestrator.trace_log DETACH PARTITION orchestrator.trace_log_%s', $1);
END
$$;
CREATE FUNCTION dropped(range bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator._close_expired($1), orchestrator._drop_expired($1);
END
$$;
CREATE FUNCTION forget(range bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_from bigint := $1 * 1000000;
BEGIN
  WHILE v_from IS NOT NULL LOOP
    v_from := orchestrator._forget_range($1, v_from);
  END LOOP;
END
$$;

-- Defaults
SELECT is(array[orchestrator._default_retention(false), orchestrator._default_retention(true)], '{7 days,30 days}', 'a week, and a month for what failed');
SELECT is((SELECT string_agg(coalesce(q.name, '-') || ' ' || c.failed || ' ' || c.keep, ', ' ORDER BY q.name, c.failed) FROM orchestrator._cutoffs() c LEFT JOIN orchestrator.queue q ON q.id = c.queue),
  'default false 7 days, default true 30 days, long false 90 days, long true 02:00:00, short false 01:00:00, short true 01:00:00, - false 7 days, - true 30 days', 'as each queue says');
SELECT is((SELECT bool_and(orchestrator._now() - c.cutoff BETWEEN c.keep AND c.keep + '1 s'::interval) FROM orchestrator._cutoffs() c), true, 'what finished before is due');

-- A range that is in use is not looked at
SELECT done(3);
SELECT is(orchestrator._is_open(0), true, 'new ids are of this range');
SELECT is(orchestrator._retention_next(), NULL, 'there is nothing to look at');
SELECT is(orchestrator._retention_due(), '{}', 'nor is it');
SELECT next_range(2);
SELECT is(orchestrator._is_open(0), false, 'a range that is full');
SELECT is(orchestrator._retention_next() <= orchestrator._now(), true, 'is looked at');
SELECT is(judged(0), 'keep', 'and kept: it is young');
SELECT is(look_at(0), '7 days', 'until everything in it is old enough');
SELECT is(orchestrator._retention_next() > orchestrator._now() + '6 days'::interval, true, 'nothing is done before');
SELECT is(orchestrator._retention_due(), '{}', 'by nobody');
SELECT later(7 * 86400 + 60);
SELECT is(judged(0), 'drop', 'then it goes');

-- What is enqueued in it pins nothing, but is not dropped past
SELECT next_range(10);
SELECT done(30);
SELECT orchestrator.enqueue('job', delay => '1 year', key => 'waits') AS waits \gset
SELECT orchestrator._note(:waits, owner_id(), 0, 0, orchestrator._now(), 'notice', '{"message": "kept"}');
SELECT (done(1))[1] AS chatty \gset
SELECT orchestrator._note(:chatty, owner_id(), 0, 0, orchestrator._now(), 'notice', '{"message": "gone"}');
SELECT failed() AS failed \gset
SELECT next_range(11);
SELECT is(judged(10), 'keep', 'young');
SELECT is(look_at(10), '7 days', 'what a failed one keeps is little: it is looked at when the others are due');
SELECT later(7 * 86400 + 60);
SELECT is(judged(10), 'rewrite', 'the few that stay move');
SELECT lives_ok('SELECT orchestrator._rewrite(10)', 'to new partitions');
SELECT is((SELECT array_agg(id ORDER BY id) FROM orchestrator.task WHERE id / 1000000 = 10), array[:waits, :failed]::bigint[], 'the failed one and the live one are there');
SELECT is((SELECT tableoid::regclass::text FROM orchestrator.task WHERE id = :failed), 'orchestrator.task_finished_10', 'where they were');
SELECT is((task(:failed)).error ->> 'message', 'no', 'with all that they had');
SELECT is((SELECT detail ->> 'message' FROM orchestrator.trace_log WHERE task_id = :waits), 'kept', 'traces of a live task stay');
SELECT is((SELECT count(*) > 0 FROM orchestrator.trace_log WHERE task_id = :failed), true, 'and those of the failed one');
SELECT is((SELECT count(*) FROM orchestrator.trace_log WHERE task_id = :chatty), 0::bigint, 'others go');
SELECT is((SELECT count(*) FROM orchestrator.expired_task_finished_10), 32::bigint, 'what it was is set aside');
SELECT is((SELECT string_agg(indexname, ' ' ORDER BY indexname) FROM pg_indexes WHERE schemaname = 'orchestrator' AND tablename IN ('task_finished_10', 'trace_log_10')),
  'task_finished_10_id task_finished_10_parent trace_log_10_task', 'the new ones have their indexes, by their names');
SELECT is((SELECT count(*) FROM pg_constraint WHERE conrelid IN ('orchestrator.task_finished_10'::regclass, 'orchestrator.trace_log_10'::regclass) AND contype = 'c'), 0::bigint, 'and nothing more');
SELECT is((SELECT bool_and(relrowsecurity AND relforcerowsecurity) FROM pg_class WHERE relnamespace = 'orchestrator'::regnamespace AND relname ~ '_10$' AND relkind = 'r'), true, 'all with row-level security');
SELECT is(10 = ANY (orchestrator._retention_due()), false, 'what is set aside goes first');
SELECT is(orchestrator._archive(10), true, 'nobody wants to archive it');
SELECT forget(10);
SELECT dropped(10);
SELECT is(to_regclass('orchestrator.expired_task_finished_10'), NULL, 'it is dropped');
SELECT is((SELECT count(*) FROM orchestrator.task_key WHERE task_id = :waits), 1::bigint, 'the key of a live task is held');
SELECT is(judged(10), 'keep', 'what is left stays');
SELECT is(look_at(10), '22 days 23:59:00', 'as long as failed ones do');
SELECT later(24 * 86400);
SELECT is(judged(10), 'rewrite', 'a live task of the range: never without a partition');
SELECT orchestrator._rewrite(10), dropped(10);
SELECT is(judged(10), 'keep', 'an empty one waits for it');
SELECT is(look_at(10), '1 day', 'and is looked at daily');

-- A look at some of it spares the count where clearly more than a tenth stays
SELECT next_range(15);
SELECT done(40);
SELECT failed() FROM generate_series(1, 8);
SELECT next_range(16);
SELECT orchestrator._retention_due();
SELECT later(7 * 86400 + 60);
SELECT is((w.rows, w.kept, date_trunc('minute', w.look - orchestrator._now() + '30 s'))::text, '(48,8,"22 days 23:59:00")', 'a sixth stays') FROM orchestrator._weigh(15, true) w;
SELECT is(orchestrator._glance(15), true, 'that is worth a count');
SELECT is(orchestrator._judge(15), 'keep', 'which says no');
SELECT failed() FROM generate_series(1, 3);
UPDATE orchestrator.task_finished SET id = id - 500000 WHERE id / 1000000 = 16;
UPDATE orchestrator.partition_state SET look_at = orchestrator._now() WHERE range = 15;
SELECT is(orchestrator._glance(15), false, 'more than a fifth is not');
SELECT is(look_at(15), '30 days', 'it is looked at when they are due');
SELECT later(30 * 86400 + 60);
SELECT is(judged(15), 'drop', 'then it goes');

-- A range is counted as it is, or some of it
SELECT is((SELECT sum(c.rows) FROM orchestrator._count_rows('orchestrator.task_finished_15', false) c), 51::numeric, 'every row');
INSERT INTO orchestrator.task_finished_15 SELECT r.*
  FROM (SELECT to_jsonb(x) AS x FROM orchestrator.task_finished_15 x LIMIT 1) t, generate_series(1, 5000) i,
       jsonb_populate_record(NULL::orchestrator.task_finished_15, t.x || jsonb_build_object('id', 15600000 + i, 'metadata', jsonb_build_object('x', repeat('x', 1000)))) r;
SELECT is((SELECT sum(c.rows) FROM orchestrator._count_rows('orchestrator.task_finished_15', false) c), 5051::numeric, 'all of many blocks');
SELECT is((SELECT sum(c.rows) BETWEEN 500 AND 4000 FROM orchestrator._count_rows('orchestrator.task_finished_15', true) c), true, 'a sample has less');
SELECT is((SELECT sum(c.rows) FROM orchestrator._count_rows('orchestrator.task_finished_15', false) c), (SELECT count(*)::numeric FROM orchestrator.task_finished_15 WHERE true), 'as SQL counts');

-- More than a tenth stays: nothing is moved
SELECT next_range(20);
SELECT done(8);
SELECT failed() AS f1 \gset
SELECT failed() AS f2 \gset
SELECT next_range(21);
SELECT judged(20);
SELECT is(look_at(20), '30 days', 'a range of which a fifth failed is kept as long as they are');
SELECT done(2, queue => 'short') AS s;
SELECT next_range(22);
SELECT judged(21);
SELECT is(look_at(21), '01:00:00', 'a queue that says less');
SELECT orchestrator.define_queue('short', retention => '5 hours');
SELECT is((SELECT count(*) FROM orchestrator.partition_state WHERE look_at > orchestrator._now()), 0::bigint, 'when it says otherwise, everything is looked at again');
SELECT judged(21);
SELECT is(look_at(21), '05:00:00', 'and its word counts');
SELECT orchestrator.define_queue('short', retention => '5 hours', description => 'same');
SELECT is((SELECT count(*) FROM orchestrator.partition_state WHERE look_at > orchestrator._now()) > 0, true, 'not when it says the same');

-- What stays of a range with runs: live ones, with what is done of them, and those of which the time has not come
SELECT next_range(25);
SELECT done(120);
SELECT orchestrator.enqueue('flow') AS held \gset
SELECT orchestrator.define_workflow('fails', ARRAY[orchestrator.step('x', definition => 'job'), orchestrator.step('y', definition => 'once', needs => '{x}')]::orchestrator.step_spec[]);
SELECT orchestrator.enqueue('fails') AS lost, orchestrator.enqueue('flow') AS due \gset
SELECT claim(5);
SELECT settle_completed(id) FROM orchestrator.task WHERE parent_id IN (:held, :lost, :due) AND state = 'running';
SELECT claim(5);
SELECT settle_failed(id) FROM orchestrator.task WHERE parent_id = :lost AND state = 'running';
SELECT settle_completed(id) FROM orchestrator.task WHERE parent_id = :due AND state = 'running';
SELECT is((SELECT string_agg(state::text, ' ' ORDER BY id) FROM orchestrator.task WHERE id IN (:held, :lost, :due)), 'waiting failed completed', 'three runs');
SELECT next_range(26);
SELECT later(8 * 86400);
SELECT is(judged(25), 'rewrite', 'few of many');
SELECT orchestrator._rewrite(25);
SELECT is((SELECT array_agg(ARRAY[run, n] ORDER BY run) FROM (SELECT coalesce(parent_id, id), count(*) FROM orchestrator.task_finished_25 GROUP BY 1) x(run, n)),
  ARRAY[ARRAY[:held, 1], ARRAY[:lost, 3]]::bigint[], 'the step that the live run has done, the failed run with its two');
SELECT dropped(25);

-- Runs: their steps stay as long as they do
SELECT next_range(30);
SELECT orchestrator.enqueue('flow', name => 'live') AS run \gset
SELECT id AS a FROM orchestrator.task WHERE parent_id = :run AND step = 1 \gset
SELECT claim(5);
SELECT settle_completed(:a, '1');
SELECT is((task(:a)).state, 'completed', 'a step is done');
SELECT next_range(31);
SELECT later(400 * 86400);
SELECT is(judged(30), 'keep', 'its run is live: it stays');
SELECT is(look_at(30), '1 day', 'and is looked at daily');
-- its second step is of another range
SELECT id AS b FROM orchestrator.task WHERE parent_id = :run AND step = 2 \gset
SELECT next_range(32);
SELECT claim(5);
SELECT settle_completed(:b, '2');
SELECT is((task(:run)).state, 'completed', 'the run is done');
SELECT judged(30);
SELECT is(look_at(30), '7 days', 'its week begins');
SELECT later(7 * 86400 + 60);
SELECT is(judged(30), 'drop', 'after it all go');
SELECT is(:b / 1000000, 30, 'made in its range, finished in it');

SELECT next_range(40);
SELECT orchestrator.enqueue('flow') AS run2 \gset
SELECT id AS a2 FROM orchestrator.task WHERE parent_id = :run2 AND step = 1 \gset
SELECT claim(5);
SELECT next_range(41);
SELECT settle_completed(:a2, '1');
SELECT orchestrator.add_steps(:run2, ARRAY[orchestrator.step('late', definition => 'job', needs => '{}')]::orchestrator.step_spec[]);
SELECT id AS late FROM orchestrator.task WHERE parent_id = :run2 AND id > 41000000 ORDER BY id DESC LIMIT 1 \gset
SELECT is(:late / 1000000, 41, 'a step of a later range');
SELECT claim(5);
SELECT settle_completed(id) FROM orchestrator.task WHERE parent_id = :run2 AND state = 'running';
SELECT claim(5);
SELECT settle_completed(id) FROM orchestrator.task WHERE parent_id = :run2 AND state = 'running';
SELECT is((task(:run2)).state, 'completed', 'its run ends');
SELECT next_range(42);
SELECT later(20 * 86400);
SELECT is(judged(41), 'keep', 'a step waits for its run''s row to go first');
SELECT is(judged(40), 'drop', 'which may');
SELECT detach(40);
SELECT orchestrator._look_later(41, orchestrator._now() - '1 h'::interval);
SELECT is(judged(41), 'drop', 'then the step may, too');

-- Compensation: the run is final, its undo steps are not
SELECT orchestrator.define_workflow('saga', ARRAY[orchestrator.step('x', definition => 'job', undo => 'job'), orchestrator.step('y', definition => 'once', needs => '{x}')]::orchestrator.step_spec[]);
SELECT next_range(45);
SELECT orchestrator.enqueue('saga') AS saga \gset
SELECT claim(5);
SELECT settle_completed(id) FROM orchestrator.task WHERE parent_id = :saga AND state = 'running';
SELECT claim(5);
SELECT settle_failed(id) FROM orchestrator.task WHERE parent_id = :saga AND state = 'running';
SELECT next_range(46);
SELECT later(100 * 86400);
SELECT is(concat((task(:saga)).state, (SELECT count(*) FROM orchestrator.task_live WHERE root_id = :saga)), 'failed1', 'the run failed, and is being undone');
SELECT is(judged(45), 'keep', 'what is being undone stays');
SELECT is(orchestrator.purge(states => '{failed}', max_rows => 1000) >= 0 AND (task(:saga)).state = 'failed', true, 'purge() leaves it, too');
SELECT claim(5);
SELECT settle_completed(id) FROM orchestrator.task WHERE root_id = :saga AND state = 'running';
SELECT orchestrator._look_later(45, orchestrator._now());
SELECT is(judged(45), 'drop', 'then it is as others');

-- An older transaction may still bring a task of the range
SELECT next_range(50);
SELECT done(2);
SELECT next_range(51);
SELECT later(8 * 86400);
SELECT orchestrator._retention_due();
UPDATE orchestrator.partition_state SET closed_at = '-infinity' WHERE range = 50;
SELECT is(judged(50), 'drop', 'nobody is older');

-- What is detached makes room: a late task makes its range again
SELECT orchestrator.enqueue('job', delay => '10 years') AS late2 \gset
UPDATE orchestrator.task_live SET id = 50500000 WHERE id = :late2;
SELECT detach(50);
SELECT orchestrator.cancel(50500000);
SELECT is((SELECT tableoid::regclass::text || ' ' || state FROM orchestrator.task WHERE id = 50500000), 'orchestrator.task_finished_50 cancelled', 'a task that outlived its range has a place');
SELECT is((SELECT count(*) FROM orchestrator.expired_task_finished_50), 2::bigint, 'the old partition is set aside');
SELECT is(50 = ANY (orchestrator._expired_ranges()), true, 'to be dropped');
SELECT dropped(50);
SELECT is((task(50500000)).state, 'cancelled', 'which leaves the new one alone');

-- What somebody else detached is not ours
SELECT next_range(55);
SELECT done(2);
SELECT detach(55);
SELECT is(55 = ANY (orchestrator._expired_ranges()), false, 'a table that an administrator detached stays');
SELECT matches(error_of('SELECT orchestrator._make_partitions(55000000)'), '^55000: table "task_finished_55" has the name of a partition', 'and is not taken for a partition');
ALTER TABLE orchestrator.task_finished ATTACH PARTITION orchestrator.task_finished_55 FOR VALUES FROM (55000000) TO (56000000);
ALTER TABLE orchestrator.trace_log ATTACH PARTITION orchestrator.trace_log_55 FOR VALUES FROM (55000000) TO (56000000);

-- What hangs on a task goes with it
SELECT next_range(60);
SELECT orchestrator.enqueue('job', key => 'k1') AS k1 \gset
SELECT orchestrator.enqueue('job', key => 'k2', key_window => '1 year') AS k2 \gset
SELECT claim(5);
SELECT settle_completed(i) FROM unnest(ARRAY[:k1, :k2]::bigint[]) i;
INSERT INTO orchestrator.signal (task_id, owner, name, payload, sent_by, sent_at) VALUES (:k1, owner_id(), 's', '{}', 'x', now());
INSERT INTO orchestrator.checkpoint (task_id, owner, name, steps, created_at) VALUES (:k1, owner_id(), 'c', '{}', now());
INSERT INTO orchestrator.run_context (task_id, owner, value) VALUES (:k1, owner_id(), '{}');
INSERT INTO orchestrator.step_memo (task_id, name, owner, created_at) VALUES (:k1, 'm', owner_id(), now());
INSERT INTO orchestrator.added_step (task_id, step, owner, spec) VALUES (:k1, 1, owner_id(), '{}');
SELECT orchestrator._note(:k1, owner_id(), 0, 0, orchestrator._now(), 'notice', '{}');
CREATE FUNCTION hanging() RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', (SELECT string_agg(key, ',' ORDER BY key) FROM orchestrator.task_key WHERE task_id / 1000000 = 60), (SELECT count(*) FROM orchestrator.signal WHERE task_id / 1000000 = 60),
    (SELECT count(*) FROM orchestrator.checkpoint WHERE task_id / 1000000 = 60), (SELECT count(*) FROM orchestrator.run_context WHERE task_id / 1000000 = 60),
    (SELECT count(*) FROM orchestrator.step_memo WHERE task_id / 1000000 = 60), (SELECT count(*) FROM orchestrator.added_step WHERE task_id / 1000000 = 60));
$$;
SELECT is(hanging(), 'k1,k2 1 1 1 1 1', 'a task with everything');
SELECT forget(60);
SELECT is(hanging(), 'k1,k2 1 1 1 1 1', 'loses nothing while it is there');
SELECT next_range(61);
SELECT later(8 * 86400);
SELECT is(judged(60), 'drop', 'its range is due');
-- Archive hooks of two roles, of which one has tasks there
SELECT is(error_of($$SELECT orchestrator.archive_with('nothing')$$, 'retention_app'), '42704: definition "nothing" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]', 'archive_with() knows the definition');
SELECT matches(error_of($$SELECT orchestrator.archive_with('job', 'retention_other')$$, 'retention_app'), '^42501: must be a member of role "retention_other"', 'and is for one''s own');
SELECT value_of($$SELECT orchestrator.define('store', 'SELECT 1', 'sql')$$, r), value_of($$SELECT orchestrator.archive_with('store')$$, r) FROM unnest('{retention_app,retention_other}'::text[]) r;
SELECT detach(60);
SELECT is(60 = ANY (orchestrator._expired_ranges()), true, 'set aside');
SELECT is(orchestrator._archive(60), true, 'no role with a hook has tasks there');
INSERT INTO orchestrator.expired_task_finished_60 SELECT (r).* FROM (SELECT jsonb_populate_record(t, jsonb_build_object('id', 60700000, 'owner', owner_id('retention_app'))) AS r FROM orchestrator.expired_task_finished_60 t LIMIT 1) x;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO retention_other;   -- they are for no table or view of the engine
SELECT is(orchestrator._archive(60), false, 'one has: wait for it');
SELECT task_id AS archiver FROM orchestrator.archive_run WHERE range = 60 AND owner = owner_id('retention_app') \gset
SELECT is((SELECT count(*) FROM orchestrator.archive_run WHERE range = 60), 1::bigint, 'for one task');
SELECT is((task(:archiver)).input - 'until', format('{"tasks": "orchestrator.archive_task_60_%1$s", "traces": "orchestrator.archive_trace_60_%1$s", "from_id": 60000000, "to_id": 60999999}', owner_id('retention_app'))::jsonb, 'which is told where the rows are');
SELECT is(value_of(format('SELECT string_agg(id::text, '','') FROM %s', (task(:archiver)).input ->> 'tasks'), 'retention_app'), '60700000', 'and sees its own');
SELECT matches(error_of('SELECT * FROM orchestrator.expired_task_finished_60', 'retention_app'), '^42501', 'no others');
SELECT matches(error_of(format('SELECT * FROM %s', (task(:archiver)).input ->> 'tasks'), 'retention_other'), '^42501', 'nor does another role');
SELECT is(orchestrator._archive(60), false, 'it is not done');
SELECT claim(5, role => 'retention_app');
SELECT settle_completed(:archiver);
SELECT is(orchestrator._archive(60), true, 'now it is');
SELECT forget(60);
SELECT is(hanging(), 'k2 0 0 0 0 0', 'what hung on the tasks goes; a key that was taken for a time stays');
-- Closed, it is for nobody any more, also where its worker dies before it is dropped
ALTER TABLE orchestrator.expired_task_finished_60 ADD CONSTRAINT task_finished_60_of_a_dba UNIQUE (id, owner);
SELECT orchestrator._close_expired(60);
SELECT is((SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = 'orchestrator'::regnamespace AND relname ~ 'archive_.*_60|task_finished_60_|trace_log_60_'), NULL, 'closed, it has no views and no indexes, whoever made them');
DELETE FROM orchestrator.archive_run WHERE range = 60;
SELECT is(orchestrator._archive(60), true, 'nobody archives what is closed');
SELECT is((SELECT count(*) FROM orchestrator.archive_run WHERE range = 60), 0::bigint, 'no task is enqueued for it');
SELECT is(60 = ANY (orchestrator._expired_ranges()), true, 'it is still to be dropped');
SELECT lives_ok('SELECT orchestrator._close_expired(60)', 'and closed again by the next worker');
SELECT is((SELECT freeing FROM orchestrator.partition_state WHERE range = 60), true, 'which knows');
SELECT orchestrator._drop_expired(60);
SELECT is((SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = 'orchestrator'::regnamespace AND relname ~ '(expired|archive)_.*_60'), NULL, 'nothing is left');
SELECT is((SELECT leaving OR freeing FROM orchestrator.partition_state WHERE range = 60), false, 'and its range is as any other');
SELECT later(370 * 86400);
SELECT is(orchestrator._forget_keys(), 1, 'the key goes when its time has passed');
SELECT is(hanging(), '0 0 0 0 0', 'and nothing is left of the tasks');

-- purge()
SELECT next_range(70);
SELECT is(error_of('SELECT orchestrator.purge()'), '22023: purge() without a filter [Name a definition, queue, states or older_than, or say all_tasks => true.]', 'purge() wants a filter');
SELECT is(error_of($$SELECT orchestrator.purge(states => '{running}')$$), '22023: purge() cannot act on tasks in the state "running" [It can on: completed, failed, cancelled, skipped.]', 'and acts on finished tasks');
SELECT is(error_of(call), message, call) FROM (VALUES
  ($$SELECT orchestrator.purge('nope')$$, '42704: definition "nope" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ($$SELECT orchestrator.purge(queue => 'nope')$$, '42704: queue "nope" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]')
) bad(call, message);
SELECT done(3, 'keep') AS kept, (done(2))[1] AS old \gset
SELECT later(3600);
SELECT (done(1))[1] AS young \gset
SELECT orchestrator.enqueue('flow') AS run3 \gset
SELECT claim(5);
SELECT settle_completed(id) FROM orchestrator.task WHERE parent_id = :run3 AND state = 'running';
SELECT is(orchestrator.purge('job', older_than => '30 minutes') > 0 AND (task(:old)).id IS NULL, true, 'what finished before then goes');
SELECT is((task(:young)).id, :young::bigint, 'what finished since does not');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE id = ANY (:'kept')), 3::bigint, 'nor another definition');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE parent_id = :run3), 2::bigint, 'nor a step of a run that is live');
SELECT is(value_of('SELECT orchestrator.purge(all_tasks => true)', 'retention_other')::int, 0, 'a role purges its own');
SELECT claim(5);
SELECT settle_completed(id) FROM orchestrator.task WHERE parent_id = :run3 AND state = 'running';
SELECT is(orchestrator.purge('flow', max_rows => 1), 1::bigint, 'a run counts as one');
SELECT is(orchestrator.purge('keep', max_rows => 2), 2::bigint, 'max_rows bounds it');
SELECT is(orchestrator.purge(all_tasks => true) > 0, true, 'everything');
SELECT is((SELECT count(*) FROM orchestrator.task f WHERE NOT live AND parent_id IS NULL AND NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.root_id = f.id)), 0::bigint, 'is gone');
SELECT is((SELECT count(*) FROM orchestrator.trace_log g WHERE g.task_id IN (:old, :run3, :young)), 0::bigint, 'with its traces');

SELECT * FROM finish();
ROLLBACK;
