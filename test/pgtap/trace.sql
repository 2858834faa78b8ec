-- The view trace: for each life story every event once, in order, none missing.
\ir lib/setup.psql
SELECT plan(45);
SELECT orchestrator.define('job', 'SELECT 1', 'sql', max_attempts => 2, retry_delay => '10 s', retry_jitter => 0);

-- Lead a task through a life: each word is what happens next.
CREATE FUNCTION live(words text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_id   bigint := orchestrator.enqueue('job');
  v_word text;
BEGIN
  FOREACH v_word IN ARRAY string_to_array($1, ' ') LOOP
    CASE v_word
      WHEN 'claim' THEN PERFORM later(1); PERFORM claim(1000);
      WHEN 'done' THEN PERFORM later(1), settle_completed(v_id, '1');
      WHEN 'error' THEN PERFORM later(1), settle_failed(v_id);
      WHEN 'release' THEN PERFORM later(1), settle_failed(v_id, 'released', NULL);
      WHEN 'give_back' THEN PERFORM later(1), orchestrator._settle_failed(v_id, (task(v_id)).epoch, 'released', NULL, orchestrator._now(), NULL);
      WHEN 'lose' THEN PERFORM later(1); PERFORM orchestrator._recover(array[v_id], array[(task(v_id)).epoch], array[v_id]);
      WHEN 'charge' THEN PERFORM later(1), orchestrator._charge(v_id, (task(v_id)).attempt + 1);
      WHEN 'due' THEN PERFORM later(30), orchestrator._promote_due(1000);
      WHEN 'cancel' THEN PERFORM later(1), orchestrator.cancel(v_id);
      WHEN 'pause' THEN PERFORM later(1), orchestrator.pause(v_id);
      WHEN 'stop' THEN PERFORM later(1), orchestrator.pause(v_id, true);
      WHEN 'resume' THEN PERFORM later(1), orchestrator.resume(v_id);
      WHEN 'retry' THEN PERFORM later(1), orchestrator.retry(v_id);
      WHEN 'expire' THEN
        UPDATE orchestrator.task_live t SET deadline = orchestrator._now(), expire_at = orchestrator._now() WHERE t.id = v_id;
        PERFORM later(1), orchestrator._expire(1000);
      WHEN 'strand' THEN PERFORM later(1), orchestrator._fail_unrunnable(owner_id(), 'x');
    END CASE;
  END LOOP;
  RETURN v_id;
END
$$;
CREATE TABLE life (line int GENERATED ALWAYS AS IDENTITY, words text, story text, id bigint);
INSERT INTO life (words, story) VALUES
  ('claim',                                   'created 0, started 1'),
  ('claim done',                              'created 0, started 1, completed 1'),
  ('claim error',                             'created 0, started 1, retrying 1'),
  ('claim error due claim',                   'created 0, started 1, retrying 1, started 2'),
  ('claim error due claim done',              'created 0, started 1, retrying 1, started 2, completed 2'),
  ('claim error due claim error',             'created 0, started 1, retrying 1, started 2, failed 2'),
  ('claim error due claim error retry claim done', 'created 0, started 1, retrying 1, started 2, failed 2, retrying 2, started 3, completed 3'),
  ('claim release',                           'created 0, released 1'),
  ('claim give_back claim done',              'created 0, started 1, released 1, started 1, completed 1'),
  ('claim lose',                              'created 0, started 1, retrying 1'),
  ('claim lose due claim lose',               'created 0, started 1, retrying 1, started 2, failed 2'),
  ('charge',                                  'created 0, started 1, retrying 1'),
  ('charge due charge',                       'created 0, started 1, retrying 1, started 2, failed 2'),
  ('cancel',                                  'created 0, cancelled 0'),
  ('claim cancel',                            'created 0, started 1, cancelled 1'),
  ('claim error cancel',                      'created 0, started 1, retrying 1, cancelled 1'),
  ('claim cancel retry claim done',           'created 0, started 1, cancelled 1, retrying 1, started 2, completed 2'),
  ('pause resume claim done',                 'created 0, paused 0, resumed 0, started 1, completed 1'),
  ('pause cancel',                            'created 0, paused 0, cancelled 0'),
  ('claim pause done',                        'created 0, started 1, pausing 1, completed 1'),
  ('claim pause resume done',                 'created 0, started 1, pausing 1, resumed 1, completed 1'),
  ('claim pause cancel',                      'created 0, started 1, pausing 1, cancelled 1'),
  ('claim pause lose',                        'created 0, started 1, pausing 1, retrying 1, paused 1'),
  ('claim pause error',                       'created 0, started 1, pausing 1, retrying 1, paused 1'),
  ('claim pause error resume due claim done', 'created 0, started 1, pausing 1, retrying 1, paused 1, resumed 1, started 2, completed 2'),
  ('claim pause release resume claim done',   'created 0, pausing 1, released 1, paused 0, resumed 0, started 1, completed 1'),
  ('claim stop',                              'created 0, started 1, paused 1'),
  ('claim stop resume claim done',            'created 0, started 1, paused 1, resumed 0, started 1, completed 1'),
  ('claim stop cancel',                       'created 0, started 1, paused 1, cancelled 0'),
  ('expire',                                  'created 0, failed 0'),
  ('claim error expire',                      'created 0, started 1, retrying 1, failed 1'),
  ('pause expire retry claim done',           'created 0, paused 0, failed 0, retrying 0, started 1, completed 1'),
  ('strand',                                  'created 0, failed 0'),
  ('claim error due strand retry claim',      'created 0, started 1, retrying 1, failed 1, retrying 1, started 2');
DO $$
DECLARE r record;
BEGIN
  FOR r IN SELECT * FROM life ORDER BY line LOOP
    UPDATE life SET id = live(r.words) WHERE line = r.line;
    -- Out of the way of the next.
    UPDATE orchestrator.trace_log SET owner = -1 WHERE task_id IN (SELECT t.id FROM orchestrator.task_live t);
    UPDATE orchestrator.task_live SET owner = -1;
  END LOOP;
END
$$;
SELECT is(story(id), story, words) FROM life ORDER BY line;

-- What holds in every life
SELECT is_empty($$SELECT task_id, at, event FROM orchestrator.trace GROUP BY 1, 2, 3 HAVING count(*) > 1$$, 'no event stands there twice');
SELECT is_empty($$SELECT id FROM orchestrator.task t WHERE 1 <> (SELECT count(*) FROM orchestrator.trace x WHERE x.task_id = t.id AND x.event = 'created')$$, 'each task was created once');
SELECT is_empty($$SELECT task_id, attempt FROM orchestrator.trace WHERE event IN ('completed', 'retrying', 'failed') AND attempt > 0 AND detail ? 'outcome'
                  GROUP BY 1, 2 HAVING count(*) > 1$$, 'each attempt ended once');
SELECT is_empty($$SELECT x.task_id, x.attempt FROM orchestrator.trace x WHERE x.event IN ('completed', 'retrying', 'failed') AND (x.event = 'completed' OR x.detail ? 'outcome')
                  AND NOT EXISTS (SELECT FROM orchestrator.trace s WHERE s.task_id = x.task_id AND s.event = 'started' AND s.attempt = x.attempt AND s.at <= x.at)$$, 'and was started before');
SELECT is_empty($$SELECT id FROM orchestrator.task t WHERE state IN ('completed', 'failed', 'cancelled')
                  AND t.state::text <> (SELECT x.event FROM orchestrator.trace x WHERE x.task_id = t.id ORDER BY x.at DESC LIMIT 1)$$, 'the last event of a finished task is its state');
SELECT is_empty($$SELECT DISTINCT event FROM orchestrator.trace EXCEPT VALUES ('created'), ('started'), ('completed'), ('failed'), ('retrying'), ('cancelled'), ('paused'), ('pausing'), ('resumed'), ('released')$$, 'these are the events');
SELECT is((SELECT count(DISTINCT event) FROM orchestrator.trace), 10::bigint, 'all of them occurred');
SELECT is_empty($$SELECT x.task_id FROM orchestrator.trace x JOIN orchestrator.task t ON t.id = x.task_id WHERE x.owner <> t.owner$$, 'an event belongs to the owner of its task');
SELECT is((detail_of(id, 'completed') ->> 'duration_ms')::numeric BETWEEN 1000 AND 30000, true, 'a completed attempt tells its duration') FROM life WHERE words = 'claim done';
SELECT is((detail_of(id, 'retrying') ->> 'duration_ms')::numeric BETWEEN 1000 AND 30000, true, 'so does a failed one') FROM life WHERE words = 'claim error';
SELECT is(detail_of(id, 'failed') ->> 'final', 'max_attempts', 'and why it was the last') FROM life WHERE words = 'claim error due claim error';

SELECT * FROM finish();
ROLLBACK;
