-- Adaptive queues: the rule, by simulation, and what is written of its decisions.
\ir lib/setup.psql
SELECT plan(69);

-- The mean time of a step when n run at once.
CREATE FUNCTION latency(model text, k float8, base float8, n int) RETURNS float8 LANGUAGE sql AS $$
  SELECT $3 * CASE $1 WHEN 'knee' THEN CASE WHEN $4 <= $2 THEN 1 ELSE ($4 / $2) ^ 2 END   -- throughput is best at k
                      WHEN 'serial' THEN $4                                               -- one at a time does it
                      WHEN 'free' THEN 1 END;                                             -- the more the better
$$;
-- Look each second at a queue, from a state on; steps that run beside more than
-- fail_above others fail. What it comes to in the last quarter of the time.
CREATE TABLE looks (at float8, running int, was int, reason text);
CREATE FUNCTION simulate(model text, k float8, base float8, noise float8, lo int, hi int, seconds int, fail_above int DEFAULT 1000,
    waiting boolean DEFAULT true, pressure text DEFAULT NULL, INOUT state bytea DEFAULT NULL, from_second int DEFAULT 0,
    OUT running float8, OUT rate float8, OUT changes int) LANGUAGE plpgsql AS $$
DECLARE
  n int; r text; v_latency float8; v_steps float8; v_n int := 0; v_now int;
BEGIN
  changes := 0; running := 0; rate := 0;
  SELECT a.state, a.running INTO state, n FROM orchestrator._adapt(simulate.state, lo, hi, from_second, 0, 0, 0, 0, 0, waiting, NULL) a;
  FOR t IN 1..seconds LOOP
    v_latency := latency(model, k, base, n);
    v_steps := n / v_latency;
    IF t > seconds * 3 / 4 THEN
      v_n := v_n + 1; running := running + n; rate := rate + v_steps;
    END IF;
    v_now := n;
    SELECT a.state, a.running, a.reason INTO state, n, r
      FROM orchestrator._adapt(simulate.state, lo, hi, from_second + t, v_steps, CASE WHEN n > fail_above THEN v_steps * (n - fail_above) / n ELSE 0 END, 0,
                               v_steps * v_latency * exp(noise * (random() + random() + random() - 1.5)), noise * 3, waiting, pressure) a;
    IF r IS NOT NULL THEN
      changes := changes + 1;
      INSERT INTO looks VALUES (from_second + t, n, v_now, r);
    END IF;
  END LOOP;
  running := running / v_n; rate := rate / v_n;
END
$$;

-- It finds the best limit within a minute, from above and from below, with noise.
SELECT setseed(0.25);
SELECT ok(abs(s.running - k) <= greatest(0.15 * k, 1) AND s.rate >= 0.85 * k / 0.05,
          format('best at %s of %s, noise %s: at %s, %s of its throughput', k, hi, noise, round(s.running::numeric, 1), round((s.rate * 0.05 / k)::numeric, 3)))
FROM (VALUES (2, 16), (3, 16), (6, 16), (6, 64), (10, 64), (16, 16), (20, 64), (40, 100), (50, 256), (100, 256)) v(k, hi), (VALUES (0.0), (0.1), (0.2)) p(noise),
     LATERAL simulate('knee', k, 0.05, noise, 1, hi, 60) s;
SELECT ok(abs(s.running - 6) <= 1 AND s.rate >= 0.85 * 6, 'with steps of a second, too: at ' || round(s.running::numeric, 1)) FROM simulate('knee', 6, 1, 0.1, 1, 16, 60) s;
SELECT ok(s.changes <= 25, 'it does not keep changing: ' || s.changes || ' times in a minute') FROM simulate('knee', 6, 0.05, 0.1, 1, 16, 60) s;
SELECT ok(s.running > 29, 'it takes all when more is better: ' || s.running) FROM simulate('free', 1, 0.05, 0.1, 1, 32, 60) s;
SELECT ok(s.running < 2.5, 'and no more than help: ' || s.running) FROM simulate('serial', 1, 0.02, 0.1, 1, 32, 60) s;
TRUNCATE looks;
SELECT ok(s.running < 5.5, 'or than min_running: ' || s.running) FROM simulate('serial', 1, 0.02, 0.1, 4, 32, 60) s;
SELECT is((SELECT min(running) FROM looks), 4, 'which it never goes below');

-- It follows a change.
SELECT state AS high FROM simulate('knee', 20, 0.05, 0.1, 1, 64, 60) \gset
SELECT ok(s.running BETWEEN 4 AND 6.5, 'the knee falls from 20 to 5: at ' || round(s.running::numeric, 1)) FROM simulate('knee', 5, 0.05, 0.1, 1, 64, 60, state => :'high', from_second => 60) s;
SELECT ok(s.running BETWEEN 34 AND 46, 'and rises to 40: at ' || round(s.running::numeric, 1)) FROM simulate('knee', 40, 0.05, 0.1, 1, 64, 60, state => :'high', from_second => 60) s;

-- Failures
TRUNCATE looks;
SELECT ok(s.running BETWEEN 6 AND 9, 'steps fail above 8: it stays near, at ' || round(s.running::numeric, 1)) FROM simulate('free', 1, 0.05, 0, 1, 64, 60, fail_above => 8) s;
SELECT ok(count(*) BETWEEN 1 AND 6, 'and seldom tries again') FROM looks WHERE reason LIKE '%failed%';
SELECT matches(min(reason), '^\d+ of \d+ steps failed, 0 of them timed out$', 'for this reason') FROM looks WHERE reason LIKE '%failed%';
SELECT is(s.running, 1::float8, 'when all fail it is as small as can be') FROM simulate('free', 1, 0.05, 0, 1, 64, 30, fail_above => 0) s;
SELECT is(a.running, 2, 'a single failure is none') FROM orchestrator._adapt(NULL, 1, 4, 1, 1, 1, 0, 0.1, 0, true, NULL) a;
SELECT matches(b.running || ': ' || b.reason, '^1: 2 of 2 steps failed, 2 of them timed out$', 'time limits count, at the first look')
FROM orchestrator._adapt(NULL, 1, 4, 1, 0, 0, 0, 0, 0, true, NULL) a, orchestrator._adapt(a.state, 1, 4, 2, 2, 0, 2, 60, 0, true, NULL) b;
SELECT is(a.reason, NULL, 'two of twenty-one may fail') FROM orchestrator._adapt(NULL, 1, 16, 1, 21, 2, 0, 0.1, 0, true, NULL) a;
SELECT is(a.reason, '2 of 20 steps failed, 1 of them timed out', 'but not of twenty') FROM orchestrator._adapt(NULL, 1, 16, 1, 20, 1, 1, 0.1, 0, true, NULL) a;

-- Pressure
TRUNCATE looks;
SELECT state AS pressed, running AS pressed_to FROM simulate('free', 1, 0.05, 0, 1, 16, 20, pressure => 'too bad') \gset
SELECT is(:pressed_to, 1, 'while the database is short of something it shrinks');
SELECT is((SELECT array_agg(running ORDER BY at) FROM looks), '{2,1}', 'step by step, every other second');
SELECT is((SELECT array_agg(DISTINCT reason) FROM looks), '{too bad}', 'and says why');
SELECT ok(s.running > 12, 'and comes back: ' || s.running) FROM simulate('free', 1, 0.05, 0, 1, 16, 60, state => :'pressed', from_second => 20) s;
SELECT is(c.running, a.running, 'what is over at the next look is nothing')
FROM orchestrator._adapt(NULL, 1, 16, 1, 0, 0, 0, 0, 0, true, NULL) a, orchestrator._adapt(a.state, 1, 16, 2, 0, 0, 0, 0, 0, true, 'too bad') b,
     orchestrator._adapt(b.state, 1, 16, 3, 0, 0, 0, 0, 0, true, NULL) c;

-- Nobody waits
SELECT is(s.changes || ' ' || s.running, '0 4', 'nothing is tried when nobody waits') FROM simulate('free', 1, 0.05, 0, 1, 16, 20, waiting => false) s;
SELECT state AS at_best FROM simulate('knee', 6, 0.05, 0, 1, 16, 25) \gset
SELECT is(s.changes, 0, 'while it holds, neither') FROM simulate('knee', 6, 0.05, 0, 1, 16, 60, waiting => false, state => (SELECT a.state FROM orchestrator._adapt(:'at_best', 1, 16, 26, 0, 0, 0, 0, 0, false, NULL) a), from_second => 26) s;
SELECT is(b.running || ' ' || c.running || ': ' || c.reason, '8 4: nobody waits at 8: back to 4', 'a probe at which nobody waits is over')
FROM orchestrator._adapt(NULL, 1, 16, 0, 0, 0, 0, 0, 0, true, NULL) a, orchestrator._adapt(a.state, 1, 16, 1, 80, 0, 0, 4, 0, true, NULL) b,
     orchestrator._adapt(b.state, 1, 16, 2, 80, 0, 0, 4, 0, false, NULL) c;
TRUNCATE looks;
DO $$
DECLARE
  s bytea; n int; r text; v_changes int := 0;
BEGIN
  SELECT a.state, a.running INTO s, n FROM orchestrator._adapt(NULL, 1, 16, 0, 0, 0, 0, 0, 0, true, NULL) a;
  FOR t IN 1..60 LOOP
    SELECT a.state, a.running, a.reason INTO s, n, r FROM orchestrator._adapt(s, 1, 16, t, n * 20, 0, 0, n, 0, n <= 4, NULL) a;
    v_changes := v_changes + (r IS NOT NULL)::int;
  END LOOP;
  INSERT INTO looks VALUES (0, n, NULL, v_changes::text);
END $$;
SELECT ok(reason::int < 16 AND running BETWEEN 3 AND 5, 'and seldom repeated: ' || reason || ' changes in a minute') FROM looks;

-- Bounds that change
SELECT is(b.running || ': ' || b.reason, '3: max_running is 3', 'a smaller max_running') FROM orchestrator._adapt(NULL, 1, 64, 1, 0, 0, 0, 0, 0, true, NULL) a, orchestrator._adapt(a.state, 1, 3, 2, 0, 0, 0, 0, 0, true, NULL) b;
SELECT is(b.running || ': ' || b.reason, '12: min_running is 12', 'a larger min_running') FROM orchestrator._adapt(NULL, 1, 64, 1, 0, 0, 0, 0, 0, true, NULL) a, orchestrator._adapt(a.state, 12, 64, 2, 0, 0, 0, 0, 0, true, NULL) b;

-- What is written
CREATE ROLE adaptive_app LOGIN;
CREATE ROLE adaptive_other LOGIN;
SELECT orchestrator.grant_usage('adaptive_app'), orchestrator.grant_usage('adaptive_other');
SELECT value_of($$SELECT orchestrator.define_queue('elastic', max_running => 64, adaptive => true)$$, 'adaptive_app');
SELECT id AS q FROM orchestrator.queue WHERE name = 'elastic' \gset
SELECT is(value_of($$SELECT (max_running, effective_max_running, decided_at, decision)::text FROM orchestrator.queue_status WHERE queue = 'elastic'$$, 'adaptive_app'), '(64,8,,)', 'a queue that never ran');
SELECT orchestrator._decide(:q, NULL, 8, 'start', '{}'), orchestrator._decide(:q, 8, 16, 'trying 16', '{"steps": 5}');
SELECT is(value_of($$SELECT effective_max_running || ' ' || decision || (decided_at <= orchestrator._now()) FROM orchestrator.queue_status WHERE queue = 'elastic'$$, 'adaptive_app'), '16 trying 16true', 'queue_status: the last decision');
SELECT is(value_of($$SELECT string_agg(concat_ws(' ', queue, owner, number, before, running, reason, measured), ', ' ORDER BY number) FROM orchestrator.queue_decisions$$, 'adaptive_app'),
          'elastic adaptive_app 1 8 start {}, elastic adaptive_app 2 8 16 trying 16 {"steps": 5}', 'queue_decisions: all');
SELECT is(value_of($$SELECT string_agg((task_id IS NULL) || ' ' || (detail ->> 'running'), ', ' ORDER BY at, detail ->> 'before' NULLS FIRST) FROM orchestrator.trace WHERE event = 'decision'$$, 'adaptive_app'), 'true 8, true 16', 'and they are traces');
SELECT is(value_of(format('SELECT count(*) FROM orchestrator.%s', view), 'adaptive_other'), '0', 'which others do not see in ' || view) FROM unnest('{queue_decisions,queue_decision,trace}'::text[]) view;
SELECT value_of($$SELECT orchestrator.share_queue('elastic', 'adaptive_other')$$, 'adaptive_app');
SELECT is(value_of('SELECT count(*) FROM orchestrator.queue_decisions', 'adaptive_other'), '2', 'but those that may use the queue do');
SELECT is((SELECT count(*) FROM (SELECT orchestrator._decide(:q, 16, 15 + i % 2, 'again', '{}') FROM generate_series(1, 1500) i) x), 1500::bigint, 'many decisions');
SELECT is((SELECT array[min(number), max(number), count(*)] FROM orchestrator.queue_decision), '{503,1502,1000}'::bigint[], 'of which the last thousand are kept');
SELECT value_of($$SELECT orchestrator.define_queue('elastic', max_running => 64)$$, 'adaptive_app');
SELECT is(value_of($$SELECT (max_running, effective_max_running, decided_at, decision)::text FROM orchestrator.queue_status WHERE queue = 'elastic'$$, 'adaptive_app'), '(64,64,,)', 'adaptive no more');

SELECT ok(l.lag = 0 AND l.lock_waits = 0 AND l.active >= 1 AND l.free BETWEEN 1 AND current_setting('max_connections')::int - 4, 'what the database is short of: nothing') FROM orchestrator._load() l;

SELECT * FROM finish();
ROLLBACK;
