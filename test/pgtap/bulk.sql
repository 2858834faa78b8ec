-- cancel_many(), pause_many(), resume_many(), retry_many().
\ir lib/setup.psql
SELECT plan(100);

CREATE ROLE bulk_app LOGIN;
CREATE ROLE bulk_other LOGIN;
CREATE ROLE bulk_boss LOGIN;
SELECT orchestrator.grant_usage('bulk_app'), orchestrator.grant_usage('bulk_other'), orchestrator.grant_usage('bulk_boss', 'admin');
SELECT orchestrator.define_queue('q');
SELECT orchestrator.define('job', 'SELECT 1', 'sql'), orchestrator.define('other', 'SELECT 1', 'sql', max_attempts => 1);
-- The states of all tasks, oldest first.
CREATE FUNCTION states() RETURNS text LANGUAGE sql AS $$SELECT string_agg(t.state::text, ' ' ORDER BY t.id) FROM orchestrator.task t$$;
CREATE FUNCTION fresh() RETURNS void LANGUAGE sql AS $$DELETE FROM orchestrator.task$$;

-- The guard
SELECT orchestrator.enqueue('job');
SELECT written() AS before \gset
SELECT is(error_of(format('SELECT orchestrator.%s_many()', verb)), format('22023: %s_many() without a filter [Name a definition, queue, states or older_than, or say all_tasks => true.]', verb), verb || '_many() without a filter')
FROM unnest('{cancel,pause,resume,retry}'::text[]) verb;
SELECT matches(error_of(format('SELECT orchestrator.%s_many(max_rows => 5)', verb)), '^22023: ' || verb || '_many\(\) without a filter', 'max_rows is none: ' || verb || '_many()')
FROM unnest('{cancel,pause,resume,retry}'::text[]) verb;
SELECT matches(error_of('SELECT orchestrator.cancel_many(all_tasks => NULL)'), '^22023: cancel_many\(\) without a filter', 'all_tasks => null is none');
SELECT is(error_of($$SELECT orchestrator.cancel_many('job', max_rows => 0)$$), '22023: max_rows must be positive', 'max_rows => 0');
SELECT is(error_of(format('SELECT orchestrator.%s_many(states => %L)', verb, states)), format('22023: %s_many() cannot act on tasks in the state "%s" [It can on: %s.]', verb, wrong, possible), format('%s_many() of %s', verb, states))
FROM (VALUES
  ('cancel', '{pending,completed}', 'completed', 'scheduled, pending, running, waiting, paused'),
  ('pause',  '{paused}',            'paused',    'scheduled, pending, running, waiting'),
  ('resume', '{pending}',           'pending',   'paused'),
  ('retry',  '{completed}',         'completed', 'failed, cancelled'),
  ('retry',  '{failed,skipped}',    'skipped',   'failed, cancelled'),
  ('cancel', '{nonsense}',          'nonsense',  'scheduled, pending, running, waiting, paused'),
  ('cancel', '{NULL}',              '',          'scheduled, pending, running, waiting, paused')
) wrong(verb, states, wrong, possible);
SELECT is(error_of($$SELECT orchestrator.retry_many('job', attempts => 0)$$), '22023: attempts must be between 1 and 10000', 'retry_many() with 0 attempts');
SELECT is(error_of(format('SELECT orchestrator.%s_many(%s => ''nope'', all_tasks => true)', verb, filter)), message, format('%s_many() of an unknown %s', verb, filter))
FROM unnest('{cancel,pause,resume,retry}'::text[]) verb,
     (VALUES ('definition', error_of($$SELECT orchestrator.enqueue('nope')$$)), ('queue', error_of($$SELECT orchestrator.enqueue('job', queue => 'nope')$$))) enqueue(filter, message);
SELECT is(written(), :'before', 'what is refused changes nothing');

-- Filters, by the example of cancel
CREATE FUNCTION sample() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM fresh();
  PERFORM orchestrator.enqueue('job'), orchestrator.enqueue('other'), orchestrator.enqueue('job', queue => 'q'), orchestrator.enqueue('job', delay => '1 day');
END $$;
SELECT sample();
SELECT is(orchestrator.cancel_many('other'), 1::bigint, 'by definition');
SELECT is(states(), 'pending cancelled pending scheduled', 'that and no other');
SELECT is(orchestrator.cancel_many('other'), 0::bigint, 'once');
SELECT sample();
SELECT is(orchestrator.cancel_many(queue => 'q'), 1::bigint, 'by queue');
SELECT is(states(), 'pending pending cancelled scheduled', 'that and no other');
SELECT sample();
SELECT is(orchestrator.cancel_many(states => '{scheduled}'), 1::bigint, 'by state');
SELECT is(states(), 'pending pending pending cancelled', 'that and no other');
SELECT is(orchestrator.cancel_many(states => '{}'), 0::bigint, 'no state, no task');
SELECT sample();
SELECT is(orchestrator.cancel_many('job', 'q', '{scheduled}'), 0::bigint, 'filters are all to hold');
SELECT is(orchestrator.cancel_many('job', 'default', '{scheduled,pending}'), 2::bigint, 'each');
SELECT is(states(), 'cancelled pending pending cancelled', 'that and no other');
SELECT sample();
SELECT later(100);
SELECT orchestrator.enqueue('job');
SELECT is(orchestrator.cancel_many(older_than => '1 hour'), 0::bigint, 'by age');
SELECT is(orchestrator.cancel_many(older_than => '50 s'), 4::bigint, 'of creation');
SELECT is(states(), 'cancelled cancelled cancelled cancelled pending', 'the younger stay');
SELECT sample();
SELECT is(orchestrator.cancel_many(all_tasks => true, max_rows => 3), 3::bigint, 'at most max_rows');
SELECT is(states(), 'cancelled cancelled cancelled scheduled', 'the oldest first');
SELECT is(orchestrator.cancel_many(all_tasks => true, reason => 'enough'), 1::bigint, 'the rest');
SELECT is((SELECT error ->> 'detail' FROM orchestrator.task ORDER BY id DESC LIMIT 1), 'enough', 'with a reason');
SELECT is((SELECT array_agg(DISTINCT t.event || ' ' || (t.detail ->> 'by')) FROM orchestrator.trace_log t JOIN orchestrator.task USING (owner) WHERE t.task_id = task.id), array['cancelled ' || current_user], 'and a trace of each');
SELECT is((SELECT count(*) FROM orchestrator.trace_log t WHERE t.task_id IN (SELECT id FROM orchestrator.task)), 4::bigint, 'one line');

-- What each can act on
CREATE FUNCTION each() RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_id bigint;
BEGIN
  PERFORM fresh();
  v_id := orchestrator.enqueue('other'); PERFORM claim(1), settle_completed(v_id);
  v_id := orchestrator.enqueue('other'); PERFORM claim(1), settle_failed(v_id);
  v_id := orchestrator.enqueue('other'); PERFORM orchestrator.cancel(v_id);
  v_id := orchestrator.enqueue('other'); PERFORM claim(1);
  v_id := orchestrator.enqueue('other'); PERFORM orchestrator.pause(v_id);
  v_id := orchestrator.enqueue('other', delay => '1 day');
  v_id := orchestrator.enqueue('other'); UPDATE orchestrator.task_live SET state = 'waiting', sort_key = NULL WHERE id = v_id;
  v_id := orchestrator.enqueue('other');
END $$;
SELECT each();
SELECT is(states(), 'completed failed cancelled running paused scheduled waiting pending', 'tasks in each state');
SELECT is(orchestrator.cancel_many(all_tasks => true), 5::bigint, 'cancel_many() acts on all that is not finished');
SELECT is(states(), 'completed failed cancelled cancelled cancelled cancelled cancelled cancelled', 'and leaves the rest');
SELECT is((SELECT array_agg(story(id) ORDER BY id) FROM orchestrator.task WHERE attempt = 1 AND state = 'cancelled'), '{"created 0, started 1, cancelled 1"}', 'what ran has been started');
SELECT each();
SELECT is(orchestrator.pause_many(all_tasks => true), 4::bigint, 'pause_many() acts on all that is not finished or paused');
SELECT is(states(), 'completed failed cancelled running paused paused paused paused', 'what runs goes on');
SELECT is((SELECT array_agg(held_state::text ORDER BY id) FROM orchestrator.task WHERE live), '{paused,pending,scheduled,waiting,pending}', 'with a mark; the others keep their states');
SELECT is((SELECT story(id) FROM orchestrator.task WHERE state = 'running'), 'created 0, started 1, pausing 1', 'the trace says so');
SELECT is(orchestrator.pause_many(all_tasks => true, force => true), 1::bigint, 'with force');
SELECT is(states(), 'completed failed cancelled paused paused paused paused paused', 'what runs is stopped');
SELECT is(orchestrator.pause_many(all_tasks => true, force => true), 0::bigint, 'once');
SELECT is(orchestrator.resume_many(all_tasks => true), 5::bigint, 'resume_many() acts on what is paused');
SELECT is(states(), 'completed failed cancelled pending pending scheduled waiting pending', 'and gives the states back');
SELECT is(orchestrator.resume_many(all_tasks => true), 0::bigint, 'once');
SELECT each();
SELECT is(orchestrator.retry_many(all_tasks => true), 1::bigint, 'retry_many() acts on what failed');
SELECT is(states(), 'completed pending cancelled running paused scheduled waiting pending', 'and nothing else');
SELECT is(orchestrator.retry_many(states => '{cancelled}', attempts => 3), 1::bigint, 'and on what was cancelled, when it is named');
SELECT is((SELECT array_agg(max_attempts ORDER BY id) FROM orchestrator.task WHERE state = 'pending'), '{2,3,1}', 'with more attempts');
SELECT each();
SELECT is(orchestrator.retry_many(states => '{failed,cancelled}'), 2::bigint, 'on both');
SELECT is(orchestrator.retry_many(all_tasks => true), 0::bigint, 'once');

-- Batches
SELECT fresh();
SELECT cardinality(orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[2345])));
SELECT is(orchestrator.pause_many('job'), 2345::bigint, 'more than a batch: pause');
SELECT is((SELECT array_agg(DISTINCT state || ' ' || held_state) FROM orchestrator.task), '{paused pending}', 'all of them');
SELECT is(orchestrator.resume_many('job', max_rows => 1500), 1500::bigint, 'a bound that is no multiple of a batch');
SELECT is((SELECT count(*) FROM orchestrator.task WHERE state = 'pending'), 1500::bigint, 'is kept');
SELECT is((SELECT max(id) FROM orchestrator.task WHERE state = 'pending') < (SELECT min(id) FROM orchestrator.task WHERE state = 'paused'), true, 'the oldest first');
SELECT is(orchestrator.cancel_many('job'), 2345::bigint, 'more than a batch: cancel');
SELECT is((SELECT count(*) FROM orchestrator.task_live), 0::bigint, 'all of them');
SELECT is(orchestrator.retry_many('job', states => '{cancelled}'), 2345::bigint, 'more than a batch: retry');
SELECT is((SELECT count(*) FROM orchestrator.task_live WHERE state = 'pending'), 2345::bigint, 'all of them');
SELECT is((SELECT count(*) FROM orchestrator.task_finished), 0::bigint, 'and none twice');
SELECT is((SELECT array_agg(event || ' ' || n ORDER BY event) FROM (SELECT event, count(*) AS n FROM orchestrator.trace_log JOIN orchestrator.task ON task_id = id GROUP BY 1) x), '{cancelled 2345,paused 2345,resumed 1500,retrying 2345}', 'one line for each change');

-- Whose tasks
SELECT fresh();
SELECT value_of($$SELECT orchestrator.run('SELECT 1')$$, role) FROM unnest('{bulk_app,bulk_other,bulk_app}'::text[]) role;
SELECT is(value_of('SELECT orchestrator.cancel_many(all_tasks => true, max_rows => 1)', 'bulk_other'), '1', 'a role acts on its own tasks');
SELECT is(states(), 'pending cancelled pending', 'not on a stranger''s, though they are older');
SELECT is(value_of('SELECT orchestrator.pause_many(all_tasks => true)', 'bulk_other'), '0', 'pause_many()');
SELECT is(value_of('SELECT orchestrator.pause_many(all_tasks => true)', 'bulk_app'), '2', 'its owner''s');
SELECT is(value_of('SELECT orchestrator.resume_many(all_tasks => true)', 'bulk_other'), '0', 'resume_many()');
SELECT is(value_of($$SELECT orchestrator.cancel_many('orchestrator.run.sql')$$, 'bulk_boss'), '2', 'an administrator acts on everybody''s');
SELECT is(value_of($$SELECT orchestrator.retry_many(states => '{cancelled}')$$, 'bulk_other'), '1', 'retry_many()');
SELECT is(states(), 'cancelled pending cancelled', 'of its own');

-- What a name may mean
CREATE FUNCTION cancelled(filter text, role text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN value_of(format('SELECT orchestrator.cancel_many(%s)', $1), $2);
EXCEPTION WHEN undefined_object THEN
  RETURN sqlerrm;
END $$;
SELECT fresh();
SELECT value_of($$SELECT orchestrator.define('theirs', 'SELECT 1', 'sql')$$, 'bulk_app'), value_of($$SELECT orchestrator.define_queue('line')$$, 'bulk_app');
SELECT is(cancelled(filter, 'bulk_app'), '0', filter || ' is its owner''s') FROM unnest(ARRAY[$$'theirs'$$, $$queue => 'line'$$]) filter;
SELECT is(cancelled(filter, 'bulk_boss'), '0', 'an administrator''s') FROM unnest(ARRAY[$$'theirs'$$, $$queue => 'line'$$]) filter;
SELECT is(cancelled($$'theirs'$$, 'bulk_other'), 'definition "theirs" does not exist', 'no stranger''s');
SELECT is(cancelled($$queue => 'line'$$, 'bulk_other'), 'queue "line" does not exist', 'no stranger''s');
SELECT value_of($$SELECT orchestrator.share_definition('theirs', 'bulk_other'), orchestrator.share_queue('line', 'bulk_other')$$, 'bulk_app');
SELECT is(cancelled(filter, 'bulk_other'), '0', 'but one''s with whom it is shared') FROM unnest(ARRAY[$$'theirs'$$, $$queue => 'line'$$]) filter;
SELECT value_of($$SELECT orchestrator.enqueue('theirs', queue => 'line')$$, 'bulk_other') AS task \gset
SELECT value_of($$SELECT orchestrator.unshare_definition('theirs', 'bulk_other'), orchestrator.unshare_queue('line', 'bulk_other')$$, 'bulk_app');
SELECT is(cancelled($$'theirs', 'line'$$, 'bulk_other'), '1', 'and no longer, but for its tasks');
SELECT is(cancelled($$'theirs', 'line'$$, 'bulk_other'), '0', 'as long as there are any');
SELECT fresh();
SELECT is(cancelled($$'theirs'$$, 'bulk_other'), 'definition "theirs" does not exist', 'then none');
SELECT value_of($$SELECT orchestrator.drop_definition('theirs')$$, 'bulk_app');
SELECT is(cancelled($$'theirs'$$, 'bulk_app'), '0', 'one that was dropped is known by its versions');
SELECT is(cancelled($$queue => 'default'$$, 'bulk_app'), '0', '"default" is everybody''s');
SELECT is(cancelled($$'orchestrator.run.utility'$$, 'bulk_app'), '0', 'names of the engine''s own are not looked up: they are made when they are needed');

SELECT * FROM finish();
ROLLBACK;
