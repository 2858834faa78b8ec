-- _recover(), _recover_all(), _charge(), _fail_unrunnable(): tasks whose worker or role is gone.
\ir lib/setup.psql
SELECT plan(46);

CREATE ROLE recover_app LOGIN;
SELECT orchestrator.grant_usage('recover_app');
SELECT orchestrator.define('job', 'SELECT 1', 'sql', retry_delay => '5 s', retry_jitter => 0), orchestrator.define('once', 'SELECT 1', 'sql', max_attempts => 1),
       orchestrator.define('never', 'SELECT 1', 'sql', never_retry => '{OR}');

CREATE FUNCTION running(worker int, definition text DEFAULT 'job') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint := orchestrator.enqueue($2);
BEGIN
  PERFORM orchestrator._claim(owner_id(), 1, $1, 1000);
  RETURN v_id;
END $$;

-- One by one
SELECT running(1) AS guilty \gset
SELECT running(1) AS innocent \gset
SELECT running(1) AS other \gset
SELECT is(orchestrator._recover(array[:innocent, :guilty]::bigint[], '{1,1}', array[:guilty]::bigint[]), 2, 'two tasks are handed back');
SELECT is(state_of(:guilty) || (task(:guilty)).attempt, 'pending1', 'the one that ran has spent its attempt, and is back at once');
SELECT is((task(:guilty)).error ->> 'sqlstate', 'OR003', 'for its worker died');
SELECT is(story(:guilty), 'created 0, started 1, retrying 1', 'its story');
SELECT is(state_of(:innocent) || (task(:innocent)).attempt, 'pending0', 'the other has not');
SELECT is((task(:innocent)).error, NULL, 'nor an error');
SELECT is(story(:innocent), 'created 0, released 1', 'its story');
SELECT is(array[(task(:guilty)).epoch, (task(:innocent)).epoch], '{2,2}', 'both are out of reach of late reports');
SELECT is(orchestrator._settle_completed(:innocent, 1, '1', NULL, NULL), false, 'such as this');
SELECT is(state_of(:other), 'running', 'the third is not concerned');
SELECT written() AS before \gset
SELECT is(orchestrator._recover(array[:innocent, :guilty]::bigint[], '{1,1}', array[:guilty]::bigint[]), 0, 'what somebody else handed back is left alone');
SELECT is(orchestrator._recover(array[:other]::bigint[], '{2}', '{}'), 0, 'as is another claim of it');
SELECT is(orchestrator._recover('{}', '{}', '{}'), 0, 'nothing to do');
SELECT is(orchestrator._recover(NULL, NULL, '{}'), 0, 'nothing at all');
SELECT is(written(), :'before', 'nothing was written');

SELECT running(1, 'once') AS task \gset
SELECT is(orchestrator._recover(array[:task]::bigint[], '{1}', array[:task]::bigint[]), 1, 'one attempt, and its worker died');
SELECT is(state_of(:task), 'failed', 'it is not run again');
SELECT is(story(:task) || ' ' || (detail_of(:task, 'failed') ->> 'outcome') || ' ' || (detail_of(:task, 'failed') ->> 'final'), 'created 0, started 1, failed 1 lost max_attempts', 'its story');
SELECT running(1, 'once') AS task \gset
SELECT orchestrator._recover(array[:task]::bigint[], '{1}', '{}');
SELECT is(state_of(:task) || (task(:task)).attempt, 'pending0', 'one attempt that was not spent is still there');
SELECT running(1, 'never') AS task \gset
SELECT orchestrator._recover(array[:task]::bigint[], array[(task(:task)).epoch], array[:task]::bigint[]);
SELECT is(state_of(:task), 'pending', 'never_retry is not about lost workers');

-- The disk is full: one try tells
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT running(1) AS a \gset
SELECT running(1) AS b \gset
CREATE SEQUENCE public.tried;
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM nextval('public.tried'); RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END$$;
CREATE TRIGGER full_disk BEFORE UPDATE ON orchestrator.task_live FOR EACH ROW EXECUTE FUNCTION full_disk();
SELECT is(orchestrator._recover(array[:a, :b]::bigint[], '{1,1}', '{}') < 0, true, 'without room: come again');
SELECT is((SELECT last_value FROM public.tried), 1::bigint, 'the others were not tried');
DROP TRIGGER full_disk ON orchestrator.task_live;
SELECT is(orchestrator._recover(array[:a, :b]::bigint[], '{1,1}', '{}'), 2, 'with room both are handed back');

-- All
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT running(1) AS a \gset
SELECT running(2) AS b \gset
SELECT running(3) AS c \gset
SELECT orchestrator.enqueue('job') AS d \gset
SELECT orchestrator.pause(:c);
SELECT is(orchestrator._recover_all(array[:a]::bigint[], array[:b, :d]::bigint[]), 2, 'all that runs and is not held by an executor is handed back');
SELECT is(state_of(:a) || ' ' || state_of(:b) || ' ' || state_of(:c) || ' ' || state_of(:d), 'pending running paused (pending) pending', 'charged, held, marked, not running');
SELECT is(orchestrator._recover_all('{}', array[:b]::bigint[]), 0, 'once');
SELECT is(orchestrator._recover_all('{}', '{}'), 1, 'with nothing held, the rest');
SELECT is(state_of(:b) || (task(:b)).attempt, 'pending0', 'not charged');
SELECT is(orchestrator._recover_all('{}', '{}'), 0, 'nothing is left');

-- A claim that a crash undid
SELECT orchestrator.enqueue('job') AS task \gset
SELECT is(orchestrator._charge(:task, 1), true, 'a lost attempt is charged');
SELECT is(state_of(:task) || (task(:task)).attempt || ((task(:task)).error ->> 'sqlstate'), 'pending1OR003', 'the attempt is spent');
SELECT is(story(:task), 'created 0, started 1, retrying 1', 'its story');
SELECT written() AS before \gset
SELECT is(orchestrator._charge(:task, 1), true, 'there is nothing to come again for');
SELECT is(written(), :'before', 'an attempt is charged once');
SELECT orchestrator._charge(:task, 2);
SELECT is((task(:task)).attempt || state_of(:task), '2scheduled', 'the next one is another; after two in a row it is retried as after any error');
SELECT is((task(:task)).run_at - time_of(:task, 'retrying'), '10 s'::interval, 'by its delay');
SELECT later(11), orchestrator._promote_due(10);
SELECT orchestrator._charge(:task, 3);
SELECT is(state_of(:task), 'failed', 'a poison step ends');
SELECT is(story(:task), 'created 0, started 1, retrying 1, started 2, retrying 2, started 3, failed 3', 'its story');
SELECT running(1) AS task \gset
SELECT orchestrator._charge(:task, 2);
SELECT is(state_of(:task) || (task(:task)).attempt, 'running1', 'a claim that stands is charged by _recover()');
SELECT is(orchestrator._charge(987654321, 1), true, 'a task that is gone is nobody''s');

-- A role that cannot run its tasks
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT value_of($$SELECT orchestrator.run('SELECT 1')$$, 'recover_app') AS a \gset
SELECT value_of($$SELECT orchestrator.run('SELECT 1', delay => '1 h')$$, 'recover_app') AS b \gset
SELECT value_of($$SELECT orchestrator.run('SELECT 1')$$, 'recover_app') AS c \gset
SELECT orchestrator.enqueue('job') AS d \gset
SELECT is(orchestrator._fail_unrunnable(owner_id('recover_app'), 'role "recover_app" may not log in'), 2, 'its ready tasks fail');
SELECT is(state_of(:a) || ' ' || state_of(:b) || ' ' || state_of(:c) || ' ' || state_of(:d), 'failed scheduled failed pending', 'nobody else''s, and none that is not due');
SELECT is((task(:a)).error, '{"sqlstate": "OR005", "message": "the task cannot run: role \"recover_app\" may not log in", "hint": "Enqueue it again as a role that may log in and connect to this database."}', 'with the reason');
SELECT is(story(:a) || (task(:a)).attempt, 'created 0, failed 00', 'no attempt is spent');
SELECT is(detail_of(:a, 'failed'), (task(:a)).error, 'the trace has the reason');
SELECT is(orchestrator._fail_unrunnable(owner_id('recover_app'), 'x'), 0, 'then there are none');

SELECT * FROM finish();
ROLLBACK;
