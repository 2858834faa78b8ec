-- Who is next: priority that ages, the turns of tenants, presets.
\ir lib/setup.psql
SELECT plan(59);

CREATE FUNCTION enqueue(tenant text, options text DEFAULT '', definition text DEFAULT 'turn') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint;
BEGIN
  EXECUTE format('SELECT orchestrator.enqueue(%L, %L %s)', $3, jsonb_build_object('tenant', $1), $2) INTO v_id;
  RETURN v_id;
END $$;
CREATE FUNCTION enqueue_many(tenants text[], options text DEFAULT '', definition text DEFAULT 'turn') RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE v_ids bigint[];
BEGIN
  EXECUTE format('SELECT orchestrator.enqueue_many(%L, %L::jsonb[] %s)', $3,
                 ARRAY(SELECT jsonb_build_object('tenant', t) FROM unnest($1) t), $2) INTO v_ids;
  RETURN v_ids;
END $$;
-- Whose tasks are claimed next, one claim after the other, and settled.
CREATE FUNCTION next(n int DEFAULT 1, queue text DEFAULT 'turns') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_id  bigint;
  v_all text[] := '{}';
BEGIN
  FOR i IN 1 .. $1 LOOP
    v_id := (claim(1, $2))[1];
    EXIT WHEN v_id IS NULL;
    v_all := v_all || coalesce((task(v_id)).input #>> '{tenant}', (task(v_id)).input #>> '{input,tenant}', '-');
    PERFORM settle_completed(v_id);
  END LOOP;
  RETURN array_to_string(v_all, ' ');
END $$;
CREATE FUNCTION how_often(said text, tenant text) RETURNS int LANGUAGE sql AS $$SELECT count(*)::int FROM string_to_table($1, ' ') t WHERE t = $2$$;

SELECT orchestrator.define('job', 'SELECT 1', 'sql');

-- Priority ages: by a minute for each step of it.
SELECT orchestrator.define_queue('aging');
SELECT enqueue('old', ', priority => 0, queue => ''aging''', 'job') AS old \gset
SELECT enqueue('high', ', priority => 2, queue => ''aging''', 'job') AS high \gset
SELECT is((task(:high)).sort_key - (task(:old)).sort_key BETWEEN -120e6 AND -60e6, true, 'two steps of priority are worth two minutes');
SELECT later(119);
SELECT enqueue('in time', ', priority => 2, queue => ''aging''', 'job');
SELECT later(2);
SELECT enqueue('too late', ', priority => 2, queue => ''aging''', 'job'), enqueue('bulk', ', priority => -10, queue => ''aging''', 'job');
SELECT is(next(9, 'aging'), 'high in time old too late bulk', 'who came two minutes later is behind');
SELECT is((SELECT priority FROM task((orchestrator.enqueue_many('job', '{1}'))[1])), -10, 'bulk is ten steps lower');
SELECT is(claim(9) <> '{}', true);
SELECT orchestrator.define('frail', 'SELECT 1', 'sql', retry_delay => '0');
SELECT enqueue('a', '', 'frail') AS frail \gset
SELECT is(claim(), array[:frail]::bigint[], 'a task runs');
SELECT settle_failed(:frail);
SELECT is((task(:frail)).priority, -1, 'its retry is a step lower');
SELECT enqueue('b', '', 'job') AS newer \gset
SELECT is(claim(9), array[:newer, :frail]::bigint[], 'and behind what came since');

-- Turns
SELECT orchestrator.define_queue('turns', tenant => '$.tenant');
SELECT orchestrator.define('turn', 'SELECT 1', 'sql', queue => 'turns', retry_delay => '0');
SELECT enqueue_many(array_fill('big'::text, '{50}')) AS big \gset
SELECT is((SELECT array_agg(id ORDER BY sort_key) FROM orchestrator.task WHERE id = ANY (:'big')), :'big'::bigint[], 'the tasks of one tenant keep their order');
SELECT is(next(3), 'big big big', 'who is alone has every turn');
SELECT enqueue('small', ', priority => -10');
SELECT is(next(3), 'small big big', 'another''s single task is next');
SELECT enqueue_many('{x,x,x,y,y,y}'::text[]);
SELECT is(next(9), 'x y big x y big x y big', 'and who has more takes turns');
SELECT enqueue('big', ', priority => -10') AS last \gset
SELECT is(next(100) LIKE '%big' AND (task(:last)).state = 'completed', true, 'a late one of a tenant comes after its others');
SELECT is(next(), '', 'all are done');
SELECT enqueue_many('{a,a,a,a}'::text[]), next(2);
SELECT enqueue_many('{b,b,b,b}'::text[]);
SELECT is(next(9), 'b a b a b b', 'what was had before does not count');

-- Priority within
SELECT enqueue_many('{a,a,a}'::text[]), enqueue('b'), enqueue('a'), enqueue('a', ', priority => 1');
SELECT is(next(3), 'a b a', 'priority comes before turns');
SELECT is(next(9), 'a a a', 'and bulk last');
SELECT enqueue_many(array_fill('a'::text, '{601}'), ', priority => 0'), enqueue('b', ', priority => -1');
SELECT is(how_often(next(599), 'b'), 0, 'a step of priority is 600 turns');
SELECT is(next(4) LIKE '%b%', true, 'and no more');

-- Nobody waits for ever: tenants without end move the clock.
SELECT enqueue_many('{a,a}'::text[], ', priority => 0'), next(1);
SELECT is((SELECT min(i) BETWEEN 5 AND 40 FROM (SELECT i, enqueue('new' || i), next() AS whose FROM generate_series(1, 100) i) s WHERE whose = 'a'), true,
          'new tenants without end do not keep an old one waiting');
SELECT next(200) IS NOT NULL AS done \gset

-- Weights
SELECT orchestrator.define_queue('turns', tenant => '$.tenant', tenant_weights => '{"gold": 4, "iron": 0.5, "7": 2}');
SELECT enqueue_many(array_fill('gold'::text, '{40}') || array_fill('plain'::text, '{40}') || array_fill('iron'::text, '{40}'));
SELECT next(44) AS said \gset
SELECT is(how_often(:'said', 'gold') || ' ' || how_often(:'said', 'plain') || ' ' || how_often(:'said', 'iron') IN ('32 8 4', '31 8 5', '32 7 5', '31 9 4', '33 7 4', '33 8 3', '32 9 3'),
          true, 'four, one and a half: ' || (SELECT string_agg(n::text, ' ') FROM unnest(array[how_often(:'said', 'gold'), how_often(:'said', 'plain'), how_often(:'said', 'iron')]) n));
SELECT next(200) IS NOT NULL AS done \gset
SELECT orchestrator.enqueue_many('turn', array_fill('{"tenant": 7}'::jsonb, '{20}') || array_fill('{"tenant": 8}'::jsonb, '{20}'));
SELECT next(15) AS said \gset
SELECT is(how_often(:'said', '7') BETWEEN 9 AND 11, true, 'a tenant may be a number');
SELECT next(200) IS NOT NULL AS done \gset
SELECT orchestrator.enqueue_many('turn', array_fill('{}'::jsonb, '{3}') || array_fill('{"other": 1}'::jsonb, '{3}') || '{"tenant": "a"}'::jsonb);
SELECT is(next(2) LIKE '%a%', true, 'tasks without a tenant are one together');
SELECT next(200) IS NOT NULL AS done \gset
SELECT enqueue_many(array_fill('deep'::text, '{3}'), ', priority => 0'), orchestrator.enqueue('turn', '{"input": {"input": {"tenant": "deep"}}}') AS deep \gset
SELECT enqueue('a');
SELECT is(next(2), 'deep a', 'the tenant of an inner input');
SELECT next(200) IS NOT NULL AS done \gset

-- Every way to become ready
SELECT enqueue_many(array_fill('big'::text, '{50}'), ', priority => 0'), next();
SELECT enqueue('due', ', delay => ''1 minute''');
SELECT enqueue_many('{dues,dues}'::text[], ', priority => 0, delay => ''1 minute''');
SELECT later(61);
SELECT orchestrator._promote_due(100);
SELECT is(next(3) IN ('due dues big', 'dues due big'), true, 'what becomes due has its tenant''s turn');
SELECT is(next(2), 'dues big', 'and then the next one');
SELECT enqueue('frail') AS frail \gset
SELECT is(claim(1, 'turns'), array[:frail]::bigint[], 'a task runs');
SELECT enqueue('frail') AS second \gset
SELECT settle_failed(:frail);
SELECT is((task(:frail)).sort_key > (task(:second)).sort_key, true, 'its retry is behind others of its tenant');
SELECT (claim(1, 'turns'))[1] AS back \gset
SELECT settle_failed(:back, 'released');
SELECT is((claim(1, 'turns'))[1], :back::bigint, 'what was given back has its old place');
SELECT settle_completed(:back);
SELECT enqueue('held') AS held \gset
SELECT orchestrator.pause(:held), next(2);
SELECT orchestrator.resume(:held);
SELECT is(next(), 'held', 'resume()');
SELECT enqueue('again') AS again \gset
SELECT orchestrator.cancel(:again);
SELECT orchestrator.retry(:again);
SELECT is(next(2) LIKE '%again%', true, 'retry()');
SELECT orchestrator.define_workflow('flow', ARRAY[orchestrator.step('a', definition => 'turn'), orchestrator.step('b', definition => 'turn', needs => '{a}')]::orchestrator.step_spec[], queue => 'turns');
SELECT orchestrator.enqueue('flow', '{"tenant": "run"}');
SELECT is(next(), 'run', 'a step has its run''s tenant');
SELECT is(next(2) LIKE '%run%', true, 'each step');
SELECT orchestrator.enqueue_batch('turn', array_fill('{"tenant": "b1"}'::jsonb, '{5}') || array_fill('{"tenant": "b2"}'::jsonb, '{5}'), priority => 0);
SELECT next(6) AS said \gset
SELECT is(how_often(:'said', 'b1') || ' ' || how_often(:'said', 'b2') || ' ' || how_often(:'said', 'big'), '2 2 2', 'the items of a batch, each its tenant''s');
SELECT next(200) IS NOT NULL AS done \gset

-- What will not be claimed does not count.
SELECT enqueue_many(array_fill('other'::text, '{50}'), ', priority => 0');
SELECT orchestrator.cancel_many(all_tasks => true) FROM (SELECT enqueue_many(array_fill('mistaken'::text, '{100}'), ', priority => 0')) e;
SELECT orchestrator.pause_queue('turns');
SELECT enqueue_many(array_fill('other'::text, '{50}'), ', priority => 0'), enqueue('mistaken') AS good \gset
SELECT orchestrator.resume_queue('turns');
SELECT is(next(2) LIKE '%mistaken%', true, 'tasks that were cancelled');
SELECT enqueue_many(array_fill('held'::text, '{100}'), ', priority => 0') AS held \gset
SELECT orchestrator.pause(i) FROM unnest(:'held'::bigint[]) i;
SELECT enqueue('held');
SELECT is(next(3) LIKE '%held%', true, 'or paused');
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT orchestrator.define('hasty', 'SELECT 1', 'sql', queue => 'turns', queue_timeout => '1 minute');
SELECT enqueue_many(array_fill('late'::text, '{100}'), ', priority => 0', 'hasty');
SELECT later(61);
SELECT is(orchestrator._expire(1000), 100, 'or expired');
SELECT enqueue_many(array_fill('other'::text, '{50}'), ', priority => 0'), enqueue('late');
SELECT is(next(2) LIKE '%late%', true, 'a tenant''s next one is not behind them');
SELECT next(200) IS NOT NULL AS done \gset

-- What a restart forgets is read from the tasks that wait.
SELECT enqueue_many(array_fill('big'::text, '{20}'), ', priority => 0') AS big \gset
SELECT next(5);
SELECT orchestrator._forget_turns((SELECT id FROM orchestrator.queue WHERE name = 'turns'));
SELECT enqueue('small'), enqueue('big') AS last \gset
SELECT is(next(2), 'small big', 'after a restart, another''s task is next');
SELECT is((SELECT max(sort_key) FROM orchestrator.task WHERE id = ANY (:'big')) < (task(:last)).sort_key, true, 'and a tenant''s comes after those that wait');
SELECT next(200) IS NOT NULL AS done \gset

-- Tenants are taken away while tasks wait, and come back.
SELECT enqueue_many(array_fill('big'::text, '{20}') || array_fill('small'::text, '{2}'), ', priority => 0');
SELECT orchestrator.define_queue('turns');
SELECT enqueue('late');
SELECT is(next(22) || ',' || next(), rtrim(repeat('big ', 20)) || ' small small,late', 'without tenants it is first come, first served, also of what waits');
SELECT enqueue_many(array_fill('big'::text, '{20}'), ', priority => 0');
SELECT orchestrator.define_queue('turns', tenant => '$.tenant');
SELECT enqueue('small');
SELECT is(next(2) LIKE '%small%', true, 'with them, turns again');
SELECT next(200) IS NOT NULL AS done \gset

-- More tenants than are remembered
SELECT cardinality(enqueue_many(ARRAY(SELECT 't' || i FROM generate_series(1, 20000) i))) AS many \gset
SELECT is(cardinality(claim(30000, 'turns')), 20000, 'twenty thousand tenants');
SELECT enqueue_many('{t1,t1,t2}'::text[]);
SELECT is(next(2) IN ('t1 t2', 't2 t1'), true, 'still take turns');
SELECT next(2) IS NOT NULL AS done \gset

-- The queue decides, not the role or the definition
CREATE ROLE fair_app LOGIN;
SELECT orchestrator.grant_usage('fair_app');
SELECT orchestrator.share_queue('turns', 'fair_app');
SELECT value_of($$SELECT orchestrator.run('SELECT 1', queue => 'turns', input => '{"tenant": "x"}')$$, 'fair_app') AS theirs \gset
SELECT is(claim(9, 'turns', 'fair_app'), array[:theirs]::bigint[], 'owners do not share turns');

-- Refused
SELECT is(error_of($$SELECT orchestrator.define_queue('bad', tenant_weights => '{"a": 1}')$$), '22023: tenant_weights needs tenant', 'weights of nobody');
SELECT is(error_of($$SELECT orchestrator.define_queue('bad', tenant => '$.t', tenant_weights => '{"a": 0}')$$),
          '22023: the weight of tenant "a" must be a number between 0.001 and 1000', 'no weight');
SELECT matches(error_of($$SELECT orchestrator.define_queue('bad', tenant => '$.')$$), '^22023: queue, key "tenant": path \$\. does not parse', 'no path');
SELECT is(error_of(format('SELECT orchestrator.define_queue(''bad'', tenant => %L)', p)),
          format('22023: tenant %s is not a plain path [Write members only, like $.tenant or $.customer.id.]', p), 'a path that could fail or take long')
FROM unnest(array['$.** ? (@ like_regex "(a*)*b")', '$.a % 2', '$.a[*]', '$.a.datetime()']) p;
SELECT is(error_of($$SELECT orchestrator.define_queue('bad', weight => 0)$$), '22023: weight must be between 1 and 1000', 'a queue without weight');

-- Presets
SELECT orchestrator.define_queue('chat', preset => 'chat');
SELECT is(array[max_running::text, rate_limit::text, rate_period::text], '{5,10,00:00:01}', 'a queue for chat') FROM orchestrator.queue WHERE name = 'chat';
SELECT orchestrator.define_queue('chat', preset => 'chat', max_running => 7, tenant => '$.user');
SELECT is(array[max_running::text, rate_limit::text, tenant], '{7,10,$.user}', 'what is given counts') FROM orchestrator.queue WHERE name = 'chat';
SELECT is(error_of($$SELECT orchestrator.define_queue('x', preset => 'tea')$$), '22023: unknown preset "tea" of a queue [The only preset is chat.]', 'an unknown one');
SELECT orchestrator.define(p, 'SELECT 1', 'sql', preset => p) FROM unnest('{light,heavy,bulk}'::text[]) p;
SELECT is(array_agg(name || ' ' || max_attempts || ' ' || priority || ' ' || retry_priority_step ORDER BY priority DESC), '{light 3 5 5,heavy 2 0 5,bulk 1 -10 5}',
          'presets of definitions') FROM orchestrator.definition WHERE name IN ('light', 'heavy', 'bulk');
SELECT orchestrator.define('light', 'SELECT 1', 'sql', preset => 'light', max_attempts => 9, priority => 1, retry_priority_step => 0);
SELECT is(array[max_attempts, priority, retry_priority_step], '{9,1,0}', 'what is given counts') FROM orchestrator.definition WHERE name = 'light' AND is_current;
SELECT is(error_of($$SELECT orchestrator.define('x', 'SELECT 1', 'sql', preset => 'tea')$$),
          '22023: unknown preset "tea" of a definition [Presets are light, heavy and bulk.]', 'an unknown one');
SELECT orchestrator.enqueue_many('light', '{1}', queue => 'aging'), orchestrator.enqueue('bulk', queue => 'aging'), orchestrator.enqueue('heavy', queue => 'aging');
SELECT is((SELECT array_agg(d.name ORDER BY l.sort_key) FROM orchestrator.task_live l JOIN orchestrator.definition d ON d.id = l.definition
           JOIN orchestrator.queue q ON q.id = l.queue WHERE q.name = 'aging' AND l.state = 'pending'), '{heavy,light,bulk}', 'what a user waits for comes before bulk');

SELECT * FROM finish();
ROLLBACK;
