-- _promote_due(), _expire(), _next_due(): what becomes of tasks with time.
\ir lib/setup.psql
SELECT plan(52);

CREATE ROLE due_app LOGIN;
SELECT orchestrator.grant_usage('due_app');
SELECT orchestrator.define_queue('q');
SELECT orchestrator.define('job', 'SELECT 1', 'sql');
SELECT orchestrator.define('hasty', 'SELECT 1', 'sql', queue_timeout => '1 minute');

SELECT is(orchestrator._promote_due(10), 0, 'nothing is due');
SELECT is(orchestrator._expire(10), 0, 'nothing expired');
SELECT is(orchestrator._next_due(), NULL, 'and nothing will be');

-- Promotion
SELECT orchestrator.enqueue('job', delay => '10 minutes', priority => 3) AS a \gset
SELECT orchestrator.enqueue('job', delay => '5 minutes') AS b \gset
SELECT orchestrator.enqueue('job', delay => '20 minutes') AS c \gset
SELECT is(orchestrator._next_due(), (task(:b)).run_at, 'the first that will be due');
SELECT is(orchestrator._promote_due(10), 0, 'before its time nothing is due');
SELECT later(301);
SELECT is(orchestrator._promote_due(10), 1, 'one is');
SELECT is(state_of(:a) || ' ' || state_of(:b) || ' ' || state_of(:c), 'scheduled pending scheduled', 'the one whose time it is');
SELECT is((task(:b)).sort_key, orchestrator._sort_key((task(:b)).run_at, 0), 'its place in the queue is that of its time');
SELECT is(orchestrator._promote_due(10), 0, 'once');
SELECT later(3600);
SELECT is(orchestrator._promote_due(1), 1, 'as many as asked for');
SELECT is(state_of(:a) || ' ' || state_of(:c), 'pending scheduled', 'the earliest first');
SELECT is((task(:a)).sort_key, orchestrator._sort_key((task(:a)).run_at, 3), 'priority counts');
SELECT is(orchestrator._promote_due(10), 1, 'the rest');
SELECT is(claim(10), array[:b, :a, :c]::bigint[], 'they are claimed by when they were due');
SELECT is(orchestrator._next_due(), NULL, 'nothing else is to come');

-- Many at the same time
SELECT orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[50]), delay => '1 minute') AS bulk \gset
SELECT orchestrator.enqueue_many('job', array_fill('1'::jsonb, array[10]), delay => '1 minute', queue => 'q') AS inq \gset
SELECT is((SELECT count(DISTINCT run_at) FROM orchestrator.task WHERE id = ANY (:'bulk')), 1::bigint, 'a bulk is due at once');
SELECT orchestrator.enqueue('job', run_at => (task((:'bulk'::bigint[])[1])).run_at, priority => -10) AS twin \gset
SELECT later(61);
SELECT is(orchestrator._promote_due(1000), 61, 'and is promoted at once');
SELECT is((SELECT count(DISTINCT sort_key) FROM orchestrator.task WHERE id = ANY (:'bulk'::bigint[] || :twin::bigint)), 51::bigint, 'each has a sort key of its own');
SELECT is((SELECT array_agg(id ORDER BY sort_key) FROM orchestrator.task WHERE id = ANY (:'bulk')), :'bulk'::bigint[], 'in the order of the ids');
SELECT is((SELECT min(sort_key) FROM orchestrator.task WHERE id = ANY (:'bulk')), orchestrator._sort_key((task((:'bulk'::bigint[])[1])).run_at, -10), 'from their time on');
SELECT cmp_ok((SELECT max(sort_key) - min(sort_key) FROM orchestrator.task WHERE id = ANY (:'bulk')), '<=', 60::bigint, 'and not far from it');
SELECT is((SELECT count(DISTINCT sort_key) FROM orchestrator.task WHERE id = ANY (:'inq')), 10::bigint, 'in each queue');
SELECT is((SELECT min(sort_key) FROM orchestrator.task WHERE id = ANY (:'inq')), orchestrator._sort_key((task((:'inq'::bigint[])[1])).run_at, -10), 'by itself');
SELECT is(claim(100), :'bulk'::bigint[] || :twin::bigint, 'they are claimed in that order');

-- Expiry
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT orchestrator.enqueue('hasty') AS a \gset
SELECT orchestrator.enqueue('job', deadline => orchestrator._now() + interval '2 minutes') AS b \gset
SELECT orchestrator.enqueue('job') AS never \gset
SELECT is(orchestrator._next_due(), (task(:a)).expire_at, 'the next to expire');
SELECT is(orchestrator._expire(10), 0, 'not before its time');
SELECT later(61);
SELECT is(orchestrator._expire(10), 1, 'in its time');
SELECT is(state_of(:a), 'failed', 'it fails');
SELECT matches((task(:a)).error ->> 'message', '^not started within the queue_timeout of its definition, until 20', 'with the reason');
SELECT is((task(:a)).error ->> 'sqlstate', 'OR002', 'and a code');
SELECT is(array[t.attempt, t.epoch]::text || t.live || coalesce(t.started_at::text, '-') || (t.finished_at IS NOT NULL) || coalesce(t.sort_key, 0), '{0,0}false-true0', 'a finished row that was never started') FROM task(:a) t;
SELECT is(story(:a), 'created 0, failed 0', 'its story');
SELECT is(detail_of(:a, 'failed'), (task(:a)).error, 'and the reason in it');
SELECT is(orchestrator._next_due(), (task(:b)).expire_at, 'next the deadline');
SELECT later(60);
SELECT is(orchestrator._expire(10), 1, 'passes');
SELECT matches((task(:b)).error ->> 'message', '^deadline 20.* passed before the task was finished$', 'and says so');
SELECT is(state_of(:never), 'pending', 'others are not concerned');

SELECT orchestrator.enqueue('hasty') AS running \gset
SELECT claim(10);
SELECT orchestrator.enqueue('hasty', delay => '10 s') AS scheduled \gset
SELECT orchestrator.enqueue('hasty') AS held \gset
SELECT orchestrator.enqueue('job', deadline => orchestrator._now() + interval '1 minute') AS held_late \gset
SELECT orchestrator.enqueue('job', deadline => orchestrator._now() + interval '1 minute') AS waiting \gset
SELECT orchestrator.pause(:held), orchestrator.pause(:held_late);
UPDATE orchestrator.task_live SET state = 'waiting', sort_key = NULL WHERE id = :waiting;
SELECT is(orchestrator._next_due(), (task(:scheduled)).run_at, 'the next is due before any expires');
SELECT later(65);
SELECT is(orchestrator._next_due(), (task(:scheduled)).run_at, 'and stays so until it is promoted');
SELECT is(orchestrator._expire(1), 1, 'as many as asked for');
SELECT is(orchestrator._expire(10), 1, 'the rest');
SELECT is(state_of(:held_late) || ' ' || state_of(:waiting), 'failed failed', 'paused and waiting tasks have deadlines');
SELECT is(state_of(:held), 'paused (pending)', 'a paused one waits as long as it likes');
SELECT is(state_of(:scheduled), 'scheduled', 'the time in the queue begins when a task is due');
SELECT is(state_of(:running), 'running', 'what runs is its executor''s');
SELECT later(10);
SELECT is(orchestrator._expire(10), 1, 'due and not started');
SELECT is(state_of(:scheduled), 'failed', 'a scheduled task expires');
SELECT is(orchestrator._next_due(), NULL, 'running and paused tasks are no business of the clock');
SELECT settle_failed(:running, 'released', NULL);
SELECT is(orchestrator._next_due(), (task(:running)).expire_at, 'given back, it is again');
SELECT is(orchestrator._expire(10), 1, 'and expires');

-- Other roles' tasks
SELECT value_of($$SELECT orchestrator.run('SELECT 1', delay => '1 s', deadline => orchestrator._now() + interval '1 day')$$, 'due_app') AS theirs \gset
SELECT later(2);
SELECT is(orchestrator._promote_due(10), 1, 'tasks of every role are promoted');
SELECT later(86400);
SELECT is(orchestrator._expire(10), 1, 'and expire');

SELECT * FROM finish();
ROLLBACK;
