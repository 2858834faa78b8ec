-- enqueue(), enqueue_many(), run(): what is written, and what is refused.
\ir lib/setup.psql
SELECT plan(94);

CREATE ROLE enqueue_app LOGIN;
CREATE ROLE enqueue_silent;
CREATE ROLE enqueue_barred LOGIN;
CREATE ROLE enqueue_stranger LOGIN;
SELECT orchestrator.grant_usage('enqueue_app'), orchestrator.grant_usage('enqueue_silent'), orchestrator.grant_usage('enqueue_barred');
SELECT orchestrator.define_queue('q'), orchestrator.define_queue('other');
SELECT orchestrator.define('job', 'SELECT 1', 'sql');
SELECT orchestrator.define('tuned', 'SELECT 1', 'sql', 'q', priority => 5, max_attempts => 7, queue_timeout => '1 hour');

-- A row, without what differs from run to run.
CREATE FUNCTION row_of(id bigint) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_strip_nulls(to_jsonb(t) - '{id,created_at,sort_key,definition,queue,owner}'::text[]) FROM orchestrator.task t WHERE t.id = $1;
$$;
CREATE FUNCTION sort_time(t orchestrator.task) RETURNS interval LANGUAGE sql AS $$
  SELECT make_interval(secs => t.sort_key / 1e6) - (t.created_at - '2000-01-01 00:00:00+00');
$$;

SELECT orchestrator.enqueue('job') AS task \gset
SELECT is(row_of(:task), '{"state": "pending", "live": true, "attempt": 0, "max_attempts": 3, "epoch": 0, "priority": 0, "input": {}}', 'a plain task');
SELECT is((task(:task)).owner, owner_id(), 'belongs to who enqueued it');
SELECT is((task(:task)).queue, 1, 'waits in queue "default"');
SELECT is(sort_time(task(:task)), '0'::interval, 'is ready since it was created');
SELECT is(orchestrator._now() - (task(:task)).created_at < '1 minute', true, 'which was now');
SELECT cmp_ok(orchestrator.enqueue('job'), '>', :task::bigint, 'ids rise');

SELECT orchestrator.enqueue('job', '{"a": [1]}', 'my name', 3, queue => 'q', metadata => '{"m": 1}', deadline => '2999-01-01', traceparent => '00-ab-cd-01') AS task \gset
SELECT is(row_of(:task), '{"state": "pending", "live": true, "attempt": 0, "max_attempts": 3, "epoch": 0, "priority": 3, "input": {"a": [1]}, "name": "my name",
  "metadata": {"m": 1}, "deadline": "2999-01-01T00:00:00+00:00", "expire_at": "2999-01-01T00:00:00+00:00", "traceparent": "00-ab-cd-01"}', 'every option');
SELECT is((SELECT q.name FROM orchestrator.queue q WHERE q.id = (task(:task)).queue), 'q', 'and the queue');
SELECT is(sort_time(task(:task)), '-3 minutes'::interval, 'a step of priority is a minute of waiting');
SELECT orchestrator.enqueue('job', NULL) AS task \gset
SELECT is((task(:task)).input, '{}', 'no input is an empty one');
SELECT orchestrator.enqueue('job', 'null') AS task \gset
SELECT is((task(:task)).input, 'null', 'a null of JSON is kept');

SELECT orchestrator.enqueue('tuned') AS task \gset
SELECT is(row_of(:task) - 'expire_at', '{"state": "pending", "live": true, "attempt": 0, "max_attempts": 7, "epoch": 0, "priority": 5, "input": {}}', 'the definition gives the defaults');
SELECT is((SELECT q.name FROM orchestrator.queue q WHERE q.id = (task(:task)).queue), 'q', 'and the queue');
SELECT is((task(:task)).expire_at - (task(:task)).created_at, '1 hour'::interval, 'and how long it may wait');
SELECT orchestrator.enqueue('tuned', queue => 'other', priority => -2, deadline => orchestrator._now() + interval '10 minutes') AS task \gset
SELECT is((task(:task)).priority || (SELECT q.name FROM orchestrator.queue q WHERE q.id = (task(:task)).queue), '-2other', 'the call overrides them');
SELECT is((task(:task)).expire_at, (task(:task)).deadline, 'the deadline, when it is first, is when it expires');

-- Times
SELECT orchestrator.enqueue('job', run_at => '2999-01-01') AS task \gset
SELECT is(row_of(:task), '{"state": "scheduled", "live": true, "attempt": 0, "max_attempts": 3, "epoch": 0, "priority": 0, "input": {}, "run_at": "2999-01-01T00:00:00+00:00"}', 'a time to come');
SELECT is((task(:task)).sort_key, NULL, 'is not ready');
SELECT orchestrator.enqueue('job', run_at => '2001-01-01') AS task \gset
SELECT is(state_of(:task) || coalesce((task(:task)).run_at::text, '-'), 'pending-', 'a time that passed is now');
SELECT is(sort_time(task(:task)), '0'::interval, 'and no way before others');
SELECT orchestrator.enqueue('job', delay => '10 minutes') AS task \gset
SELECT is((task(:task)).run_at - (task(:task)).created_at, '10 minutes'::interval, 'a delay counts from now');
SELECT orchestrator.enqueue('job', delay => '-10 minutes') AS task \gset
SELECT is(state_of(:task), 'pending', 'a negative one is none');
SELECT orchestrator.enqueue('tuned', delay => '1 day') AS task \gset
SELECT is((task(:task)).expire_at - (task(:task)).run_at, '1 hour'::interval, 'the time to wait in the queue begins when it is due');
SELECT orchestrator.enqueue('job', deadline => 'infinity') AS task \gset
SELECT is((task(:task)).expire_at, NULL, 'a deadline that never comes');

-- Many
SELECT orchestrator.enqueue_many('job', '{"1","{\"a\": 2}",NULL,"4"}'::jsonb[]) AS ids \gset
SELECT is((SELECT array_agg(input::text ORDER BY o) FROM unnest(:'ids'::bigint[]) WITH ORDINALITY u(i, o) JOIN orchestrator.task t ON t.id = u.i),
          array['1', '{"a": 2}', '{}', '4'], 'one task for each input, ids in their order');
SELECT is((SELECT array_agg(DISTINCT priority) FROM orchestrator.task WHERE id = ANY (:'ids')), '{-10}', 'bulk calls stand behind');
SELECT is((SELECT count(DISTINCT sort_key) FROM orchestrator.task WHERE id = ANY (:'ids')), 4::bigint, 'each has a sort key of its own');
SELECT is((SELECT array_agg(id ORDER BY sort_key) FROM orchestrator.task WHERE id = ANY (:'ids')), :'ids'::bigint[], 'in the order of the inputs');
SELECT orchestrator.enqueue_many('tuned', '{1,2}', 'n', 1, delay => '1 hour', queue => 'other', metadata => '{"m": 1}', deadline => '2999-01-01', traceparent => 't') AS ids \gset
SELECT is((SELECT array_agg(DISTINCT row_of(t.id) - '{input,run_at,expire_at}'::text[]) FROM orchestrator.task t WHERE id = ANY (:'ids')),
          array['{"state": "scheduled", "live": true, "attempt": 0, "max_attempts": 7, "epoch": 0, "priority": 1, "name": "n", "metadata": {"m": 1},
                  "deadline": "2999-01-01T00:00:00+00:00", "traceparent": "t"}'::jsonb], 'the options are those of all');
SELECT (orchestrator.enqueue_many('tuned', '{1}'))[1] AS task \gset
SELECT is((task(:task)).priority, -5, 'bulk is 10 below the definition''s priority');
SELECT is(orchestrator.enqueue_many('job', '{}'), '{}', 'no input, no task');
SELECT throws_ok($$SELECT orchestrator.enqueue_many('nothing', '{}')$$, '42704', NULL, 'but its definition is looked for');
SELECT throws_ok($$SELECT orchestrator.enqueue_many('job', '{}', queue => 'nothing')$$, '42704', NULL, 'and its queue');
SELECT is(cardinality(orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[2500]))), 2500, 'more than fit in one write');
SELECT is((SELECT count(*) FROM (SELECT FROM orchestrator.task WHERE priority = -10 GROUP BY id) x), 2504::bigint, 'are all there');

-- One-off commands
SELECT orchestrator.run('SELECT 1', '{"i": 1}', 'once') AS task \gset
SELECT is(row_of(:task), '{"state": "pending", "live": true, "attempt": 0, "max_attempts": 1, "epoch": 0, "priority": 0, "input": {"i": 1}, "name": "once", "command": "SELECT 1"}', 'run()');
SELECT is((SELECT d.name || ' ' || d.kind || ' ' || d.is_current FROM orchestrator.definition d WHERE d.id = (task(:task)).definition),
          'orchestrator.run.sql sql false', 'has a definition of the engine');
SELECT orchestrator.run('SELECT 2') AS task2 \gset
SELECT is((task(:task2)).definition, (task(:task)).definition, 'the same for the same options');
SELECT orchestrator.run('VACUUM', kind => 'utility', max_attempts => 4, timeout => '1 min', queue => 'q', priority => 2, delay => '1 h') AS task \gset
SELECT is((SELECT array[d.name, d.kind, d.timeout::text, (task(:task)).max_attempts::text, (task(:task)).priority::text, state_of(:task), q.name]
           FROM orchestrator.definition d, orchestrator.queue q WHERE d.id = (task(:task)).definition AND q.id = (task(:task)).queue),
          '{orchestrator.run.utility,utility,00:01:00,4,2,scheduled,q}', 'its options');
SELECT orchestrator.run('SELECT 3', timeout => '2 s') AS task \gset
SELECT is((SELECT d.timeout FROM orchestrator.definition d WHERE d.id = (task(:task)).definition), '2 s', 'another timeout, another version');

-- Where it can be called
CREATE TABLE source (n int);
CREATE TABLE made (task bigint);
CREATE FUNCTION on_source() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO made VALUES (orchestrator.enqueue('job', to_jsonb(NEW))); RETURN NULL; END $$;
CREATE TRIGGER t AFTER INSERT ON source FOR EACH ROW EXECUTE FUNCTION on_source();
INSERT INTO source VALUES (1), (2);
SELECT is((SELECT array_agg(t.input::text ORDER BY t.id) FROM made JOIN orchestrator.task t ON t.id = made.task), array['{"n": 1}', '{"n": 2}'], 'in a trigger');
SELECT value_of($$SELECT orchestrator.run('SELECT 1')$$, 'enqueue_app') AS task \gset
SELECT is((task(:task)).owner, owner_id('enqueue_app'), 'from a plain role, whose task it is');
CREATE FUNCTION as_definer() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS $$SELECT orchestrator.run('SELECT 1')$$;
SELECT value_of('SELECT as_definer()', 'enqueue_app') AS task \gset
SELECT is((task(:task)).owner, owner_id(), 'in a definer function the task is the definer''s');
SAVEPOINT s;
SELECT orchestrator.enqueue('job', '"undone"');
ROLLBACK TO s;
SELECT is((SELECT count(*) FROM orchestrator.task WHERE input = '"undone"'), 0::bigint, 'rolled back, there is no task');

-- What is refused
SELECT written() AS before \gset
SELECT is(error_of(call), message, call)
FROM (VALUES
  ($$SELECT orchestrator.enqueue('nope')$$, '42704: definition "nope" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ($$SELECT orchestrator.enqueue('orchestrator.run.sql')$$, '42704: definition "orchestrator.run.sql" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ($$SELECT orchestrator.enqueue(NULL)$$, '22004: definition must not be null'),
  ($$SELECT orchestrator.enqueue('job', queue => 'nope')$$, '42704: queue "nope" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]'),
  ($$SELECT orchestrator.enqueue('job', deadline => orchestrator._now() - interval '1 s')$$, '22023: deadline is in the past [Give a deadline after the present time, or none.]'),
  ($$SELECT orchestrator.enqueue('job', deadline => '-infinity')$$, '22023: deadline is in the past [Give a deadline after the present time, or none.]'),
  ($$SELECT orchestrator.enqueue('job', run_at => '2999-01-01', delay => '1 s')$$, '22023: run_at and delay cannot both be given'),
  ($$SELECT orchestrator.enqueue('job', run_at => 'infinity')$$, '22023: run_at must be finite'),
  ($$SELECT orchestrator.enqueue('job', delay => '300000 years')$$, '22008: timestamp out of range'),
  ($$SELECT orchestrator.enqueue('job', name => repeat('x', 201))$$, '54000: name is longer than 200 bytes'),
  ($$SELECT orchestrator.enqueue('job', traceparent => repeat('x', 201))$$, '54000: traceparent is longer than 200 bytes'),
  ($$SELECT orchestrator.enqueue('job', key => '')$$, '22023: key must not be empty [Leave it null for no key.]'),
  ($$SELECT orchestrator.enqueue('job', key => repeat('x', 201))$$, '54000: key is longer than 200 bytes [Use a hash of it, such as md5().]'),
  ($$SELECT orchestrator.enqueue('job', key => 'k', key_window => '0')$$, '22023: key_window must be positive, and not exceed 100 years'),
  ($$SELECT orchestrator.enqueue('job', key => 'k', key_window => '-1 s')$$, '22023: key_window must be positive, and not exceed 100 years'),
  ($$SELECT orchestrator.enqueue('job', key_window => '1 h')$$, '22023: key_window needs a key [It is how long the key is held: give key, or leave it out.]'),
  ($$SELECT orchestrator.enqueue_many('job', '{1}', key_window => '1 h')$$, '22023: key_window needs a key [It is how long the key is held: give keys, or leave it out.]'),
  ($$SELECT orchestrator.enqueue_many('job', '{1}', keys => '{k}', key_window => '0')$$, '22023: key_window must be positive, and not exceed 100 years'),
  ($$SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('s', 'SELECT 1', 'sql')], key_window => '1 h')$$, '22023: key_window needs a key [It is how long the key is held: give key, or leave it out.]'),
  ($$SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('s', 'SELECT 1', 'sql')], key => 'k', key_window => '-1 s')$$, '22023: key_window must be positive, and not exceed 100 years'),
  ($$SELECT orchestrator.run('SELECT 1', key_window => '1 h')$$, '22023: key_window needs a key [It is how long the key is held: give key, or leave it out.]'),
  ($$SELECT orchestrator.enqueue_many('nope', '{1}')$$, '42704: definition "nope" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ($$SELECT orchestrator.enqueue_many('job', NULL)$$, '22004: inputs must not be null'),
  ($$SELECT orchestrator.enqueue_many(NULL, '{1}')$$, '22004: definition must not be null'),
  ($$SELECT orchestrator.enqueue_many('job', '{1,2}', keys => '{a}')$$, '2202E: keys must have as many elements as inputs'),
  ($$SELECT orchestrator.enqueue_many('job', '{1,2}', keys => array['a', ''])$$, '22023: key must not be empty [Leave it null for no key.]'),
  ($$SELECT orchestrator.enqueue_many('job', '{1,2}', keys => array['a', repeat('x', 201)])$$, '54000: key is longer than 200 bytes [Use a hash of it, such as md5().]'),
  ($$SELECT orchestrator.enqueue_many('job', '{1,2}', deadline => '2001-01-01')$$, '22023: deadline is in the past [Give a deadline after the present time, or none.]'),
  ($$SELECT orchestrator.run(NULL)$$, '22004: sql must not be null'),
  ($$SELECT orchestrator.run('SELECT 1', kind => NULL)$$, '22004: kind must not be null'),
  ($$SELECT orchestrator.run('SELECT 1', kind => 'function')$$, '22023: run() takes no command of kind "function" [Say sql, or utility for a command that cannot run in a transaction block.]'),
  ($$SELECT orchestrator.run('SELECT 1', max_attempts => 0)$$, '22023: max_attempts must be between 1 and 10000'),
  ($$SELECT orchestrator.run('SELECT 1', timeout => '0')$$, '22023: timeout must be positive, and not exceed 100 years')
) bad(call, message);
SELECT matches(error_of(call), '^54000: ' || what || ' of \d+ bytes is larger than 1048576 bytes \[Store large data in a table and pass its key, or raise orchestrator.max_input_size.\]', what || ' over the bound')
FROM (VALUES
  ('input', $$SELECT orchestrator.enqueue('job', to_jsonb(repeat('x', 1024 * 1024)))$$),
  ('metadata', $$SELECT orchestrator.enqueue('job', metadata => to_jsonb(repeat('x', 1024 * 1024)))$$),
  ('input', $$SELECT orchestrator.enqueue_many('job', array['1', to_jsonb(repeat('x', 1024 * 1024))])$$),
  ('command', $$SELECT orchestrator.run(repeat('x', 1024 * 1024))$$)
) big(what, call);
SELECT is(error_of($$SELECT orchestrator.run('SELECT 1')$$, 'enqueue_silent'),
          '55000: role "enqueue_silent" cannot run tasks: it may not log in [ALTER ROLE enqueue_silent LOGIN, or enqueue as a role that may log in.]', 'a role that may not log in')
WHERE current_setting('server_version_num')::int < 170000
UNION ALL SELECT pass('since 17 a role that may not log in runs tasks') WHERE current_setting('server_version_num')::int >= 170000;
DO $$BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database()); END$$;
SELECT matches(error_of($$SELECT orchestrator.run('SELECT 1')$$, 'enqueue_barred'),
          '^55000: role "enqueue_barred" cannot run tasks: it may not connect to database "\w+" \[GRANT CONNECT ON DATABASE \w+ TO enqueue_barred.\]', 'a role that may not connect');
SELECT is(error_of($$SELECT orchestrator.enqueue('job')$$, 'enqueue_stranger'), '42501: permission denied for schema orchestrator', 'a role without usage');
SELECT is(written(), :'before', 'nothing of all this was written');
SELECT is(error_of($$SELECT orchestrator.enqueue('job')$$), 'no error', 'and the next one is');

-- Priorities whose place in the queue can be reckoned
SELECT is(error_of(format($$SELECT orchestrator.enqueue('job', priority => %s)$$, p)), 'no error', 'priority ' || p) FROM unnest('{-1000000,1000000}'::int[]) p;

SELECT orchestrator.enqueue('job') AS task \gset
SELECT matches(error_of(format('SELECT orchestrator.wait(%s)', :task)), '^55000: task \d+ was changed by this transaction, which is not committed \[Commit first', 'waiting for a task of one''s own transaction');
SELECT matches(error_of('SELECT orchestrator.wait(1234567890123)'), '^42704: task 1234567890123 does not exist', 'waiting for an unknown task');

-- Whatever indexes an administrator made besides
CREATE INDEX own_name ON orchestrator.task_live (lower(name)) WHERE attempt >= 0;
CREATE INDEX own_key ON orchestrator.task_live (key, id);
SELECT orchestrator.enqueue('job', name => 'Indexed', key => 'indexed') AS task \gset
SELECT orchestrator.enqueue_many('job', '{1,2}', name => 'Indexed') AS many \gset
SET LOCAL enable_seqscan = off;
SELECT is((SELECT array_agg(id ORDER BY id) FROM orchestrator.task_live WHERE lower(name) = 'indexed' AND attempt >= 0), :task || :'many'::bigint[], 'by an index on an expression');
SELECT is((SELECT id FROM orchestrator.task_live WHERE key = 'indexed'), :task::bigint, 'and by one that was made after it');

-- A column that somebody added
ALTER TABLE orchestrator.task ADD COLUMN own text DEFAULT 'own';
SELECT matches(error_of($$SELECT orchestrator.enqueue('job')$$), '^55000: table orchestrator.task does not fit the loaded library \[.*Columns that were added must be dropped', 'a column besides');
ALTER TABLE orchestrator.task DROP COLUMN own;
SELECT is(error_of($$SELECT orchestrator.enqueue('job'), orchestrator.enqueue_many('job', '{1}'), orchestrator.enqueue_batch('job', '{1}')$$), 'no error', 'that is dropped again');

SELECT * FROM finish();
ROLLBACK;
