-- _claim(): which tasks, in which order, and what becomes of their rows.
\ir lib/setup.psql
SELECT plan(26);

CREATE ROLE claim_app LOGIN;
SELECT orchestrator.grant_usage('claim_app');
SELECT orchestrator.define_queue('q');
SELECT orchestrator.define('job', 'SELECT 1', 'sql');

SELECT is(claim(), '{}', 'nothing to claim');
SELECT orchestrator.enqueue('job', '1') AS a \gset
SELECT orchestrator.enqueue('job', '2') AS b \gset
SELECT orchestrator.enqueue('job', '3') AS c \gset
SELECT is(claim(2), array[:a, :b]::bigint[], 'the oldest first, as many as asked for');
SELECT is(jsonb_strip_nulls(to_jsonb(t) - '{id,created_at,started_at,sort_key,definition,owner}'::text[]),
          '{"state": "running", "live": true, "attempt": 1, "epoch": 1, "worker": 4711, "queue": 1, "priority": 0, "max_attempts": 3, "input": 1}', 'a claimed row')
FROM task(:a) t;
SELECT is((task(:a)).started_at BETWEEN (task(:a)).created_at AND orchestrator._now(), true, 'started now');
SELECT is(state_of(:c), 'pending', 'the others wait');
SELECT is(claim(10), array[:c]::bigint[], 'what is claimed is not claimed again');
SELECT is(claim(10), '{}', 'then there is nothing left');
SELECT is((SELECT array_agg(c.state || ' ' || c.attempt || ' ' || c.epoch) FROM orchestrator._claim(owner_id(), 1, 1, 1) c), NULL, 'no row comes back for nothing');

-- Whose, and where
SELECT orchestrator.enqueue('job') AS a \gset
SELECT orchestrator.enqueue('job', queue => 'q') AS b \gset
SELECT value_of($$SELECT orchestrator.run('SELECT 1')$$, 'claim_app') AS c \gset
SELECT is(claim(10, 'q'), array[:b]::bigint[], 'only of the queue');
SELECT is(claim(10, 'default', 'claim_app'), array[:c]::bigint[], 'only of the owner');
SELECT is(claim(10), array[:a]::bigint[], 'and nothing is left out');
SELECT orchestrator.enqueue('job') AS a \gset
SELECT is((SELECT array_agg(c.id || c.state::text || c.attempt || c.epoch || c.worker) FROM orchestrator._claim(owner_id(), 1, 12, 1) c), array[:a || 'running1112'], 'it returns the rows as they are now');

-- Order: priority is time
SELECT orchestrator.enqueue('job', priority => 0) AS zero \gset
SELECT orchestrator.enqueue('job', priority => -1) AS low \gset
SELECT orchestrator.enqueue('job', priority => 2) AS high \gset
SELECT orchestrator.enqueue('job', priority => 0) AS zero2 \gset
SELECT is(claim(10), array[:high, :zero, :zero2, :low]::bigint[], 'higher priority first, then by age');
SELECT orchestrator.enqueue('job', priority => 0) AS old \gset
SELECT later(110);
SELECT orchestrator.enqueue('job', priority => 2) AS new \gset
SELECT is(claim(10), array[:new, :old]::bigint[], 'two steps of priority outweigh 110 seconds');
SELECT orchestrator.enqueue('job', priority => 0) AS old \gset
SELECT later(130);
SELECT orchestrator.enqueue('job', priority => 2) AS new \gset
SELECT is(claim(10), array[:old, :new]::bigint[], 'and 130 seconds outweigh two steps: priority ages');
SELECT orchestrator.enqueue_many('job', '{1,2}') AS bulk \gset
SELECT orchestrator.enqueue('job') AS one \gset
SELECT is(claim(1), array[:one]::bigint[], 'a single task passes the bulk');
SELECT is(claim(10), :'bulk'::bigint[], 'which keeps its order');
SELECT orchestrator.enqueue('job') AS a \gset
SELECT orchestrator.enqueue('job') AS b \gset
UPDATE orchestrator.task_live SET sort_key = 5 WHERE id IN (:a, :b);
SELECT is(claim(10), array[:a, :b]::bigint[], 'of equal sort keys the lower id first');

-- States
SELECT orchestrator.enqueue('job', delay => '1 hour') AS scheduled \gset
SELECT orchestrator.enqueue('job') AS paused \gset
SELECT orchestrator.pause(:paused);
SELECT orchestrator.enqueue('job') AS waiting \gset
UPDATE orchestrator.task_live SET state = 'waiting', sort_key = NULL WHERE id = :waiting;
SELECT is(claim(10), '{}', 'scheduled, paused and waiting tasks are not claimed');
SELECT orchestrator.resume(:paused);
SELECT is(claim(10), array[:paused]::bigint[], 'resumed, one is');

-- Paused queue, expiry
SELECT orchestrator.enqueue('job', queue => 'q') AS a \gset
SELECT orchestrator.pause_queue('q');
SELECT is(claim(10, 'q'), '{}', 'a paused queue gives nothing');
SELECT orchestrator.resume_queue('q');
SELECT is(claim(10, 'q'), array[:a]::bigint[], 'resumed, it does');
SELECT orchestrator.enqueue('job', deadline => orchestrator._now() + interval '1 minute') AS late \gset
SELECT orchestrator.enqueue('job', deadline => orchestrator._now() + interval '1 hour') AS early \gset
SELECT later(60);
SELECT is(claim(10), array[:early]::bigint[], 'what has expired is skipped');
SELECT is(state_of(:late), 'pending', 'and left to _expire()');
SELECT orchestrator.enqueue('job') AS a \gset
SELECT is(claim(1), array[:a]::bigint[], 'it does not use up the limit');

-- Again
SELECT settle_failed(:a);
SELECT later(10), orchestrator._promote_due(10);
SELECT claim(10);
SELECT is(array[t.attempt, t.epoch], '{2,3}', 'the next claim is the next attempt; the epoch rises with each change of hands') FROM task(:a) t;

SELECT * FROM finish();
ROLLBACK;
