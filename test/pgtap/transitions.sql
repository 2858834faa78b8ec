-- Every verb on a task in every state, against the picture of the states in sql/50_settle.sql.
\ir lib/setup.psql

-- What comes of it: the new state (in parentheses what it is held in or for),
-- "=" nothing, "!" an error of SQLSTATE 55000. A marked task runs and is to be
-- paused; paused and held are paused from pending and from scheduled.
CREATE TABLE picture (line int GENERATED ALWAYS AS IDENTITY, state text, cancel text, pause text, pause_force text, resume text, retry text,
                      claim text, settle_completed text, settle_failed text, promote_due text, expire text);
INSERT INTO picture (state, cancel, pause, pause_force, resume, retry, claim, settle_completed, settle_failed, promote_due, expire) VALUES
--  state        cancel       pause                 pause_force           resume     retry      claim      s_completed  s_failed              promote_due expire
  ('scheduled', 'cancelled', 'paused (scheduled)', 'paused (scheduled)', '=',       '!',       '=',       '=',         '=',                  'pending',  'failed'),
  ('pending',   'cancelled', 'paused (pending)',   'paused (pending)',   '=',       '!',       'running', '=',         '=',                  '=',        'failed'),
  ('running',   'cancelled', 'running (paused)',   'paused (pending)',   '=',       '!',       '=',       'completed', 'scheduled',          '=',        '='),
  ('marked',    'cancelled', '=',                  'paused (pending)',   'running', '!',       '=',       'completed', 'paused (scheduled)', '=',        '='),
  ('waiting',   'cancelled', 'paused (waiting)',   'paused (waiting)',   '=',       '!',       '=',       '=',         '=',                  '=',        'failed'),
  ('paused',    'cancelled', '=',                  '=',                  'pending', '!',       '=',       '=',         '=',                  '=',        'failed'),
  ('held',      'cancelled', '=',                  '=',                  'pending', '!',       '=',       '=',         '=',                  '=',        'failed'),
  ('completed', '!',         '!',                  '!',                  '!',       '!',       '=',       '=',         '=',                  '=',        '='),
  ('failed',    '!',         '!',                  '!',                  '!',       'pending', '=',       '=',         '=',                  '=',        '='),
  ('cancelled', '=',         '!',                  '!',                  '!',       'pending', '=',       '=',         '=',                  '=',        '='),
  ('skipped',   '!',         '!',                  '!',                  '!',       '!',       '=',       '=',         '=',                  '=',        '=');

SELECT plan(122);
SELECT orchestrator.define('job', 'SELECT 1', 'sql');

-- A task in a state. What is scheduled is due.
CREATE FUNCTION make(state text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_id bigint := orchestrator.enqueue('job');
BEGIN
  CASE $1
    WHEN 'scheduled', 'held' THEN
      UPDATE orchestrator.task_live t SET state = 'scheduled', sort_key = NULL, run_at = orchestrator._now() - interval '1 s' WHERE t.id = v_id;
      IF $1 = 'held' THEN PERFORM orchestrator.pause(v_id); END IF;
    WHEN 'running' THEN PERFORM claim();
    WHEN 'marked' THEN PERFORM claim(); PERFORM orchestrator.pause(v_id);
    WHEN 'waiting' THEN UPDATE orchestrator.task_live t SET state = 'waiting', sort_key = NULL WHERE t.id = v_id;
    WHEN 'paused' THEN PERFORM orchestrator.pause(v_id);
    WHEN 'completed' THEN PERFORM claim(); PERFORM settle_completed(v_id);
    WHEN 'failed' THEN
      PERFORM claim();
      UPDATE orchestrator.task_live t SET max_attempts = 1 WHERE t.id = v_id;
      PERFORM settle_failed(v_id);
    WHEN 'cancelled' THEN PERFORM orchestrator.cancel(v_id);
    WHEN 'skipped' THEN
      PERFORM orchestrator.cancel(v_id);
      UPDATE orchestrator.task_finished t SET state = 'skipped' WHERE t.id = v_id;
    ELSE NULL;
  END CASE;
  RETURN v_id;
END
$$;

-- Do it to a fresh task, tell what came of it, and undo all.
CREATE FUNCTION outcome(state text, verb text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_id     bigint;
  v_before text;
  v_row    orchestrator.task;
  v_after  text;
  v_answer text := '';
BEGIN
  BEGIN
    v_id := make($1);
    IF $2 = 'expire' THEN
      UPDATE orchestrator.task t SET expire_at = orchestrator._now(), deadline = orchestrator._now() WHERE t.id = v_id;
    END IF;
    v_before := state_of(v_id);
    v_row := task(v_id);
    CASE $2
      WHEN 'cancel' THEN v_answer := orchestrator.cancel(v_id);
      WHEN 'pause' THEN v_answer := orchestrator.pause(v_id);
      WHEN 'pause_force' THEN v_answer := orchestrator.pause(v_id, true);
      WHEN 'resume' THEN v_answer := orchestrator.resume(v_id);
      WHEN 'retry' THEN v_answer := orchestrator.retry(v_id);
      WHEN 'claim' THEN PERFORM claim(100);
      WHEN 'settle_completed' THEN PERFORM settle_completed(v_id);
      WHEN 'settle_failed' THEN PERFORM settle_failed(v_id);
      WHEN 'promote_due' THEN PERFORM orchestrator._promote_due(100);
      WHEN 'expire' THEN PERFORM orchestrator._expire(100);
    END CASE;
    v_after := state_of(v_id);
    -- A verb answers with the state; what changes nothing leaves the row alone.
    IF v_answer <> '' AND v_answer <> split_part(v_after, ' ', 1) THEN
      v_after := v_after || ', answered ' || v_answer;
    ELSIF v_after = v_before THEN
      v_after := CASE WHEN task(v_id) IS NOT DISTINCT FROM v_row THEN '=' ELSE 'changed in ' || v_after END;
    END IF;
    RAISE EXCEPTION 'undo' USING ERRCODE = 'OR999';
  EXCEPTION
    WHEN SQLSTATE 'OR999' THEN RETURN v_after;
    WHEN object_not_in_prerequisite_state THEN RETURN '!';
  END;
END
$$;

SELECT is(outcome(p.state, e.key), e.value, format('%s of a %s task: %s', e.key, p.state, e.value))
FROM picture p, LATERAL json_each_text(row_to_json(p)) e
WHERE e.key NOT IN ('line', 'state')
ORDER BY p.line;

-- The table is complete, and the tasks it is tried on are what they are said to be.
SELECT is((SELECT array_agg(s::text ORDER BY s::text) FROM unnest(enum_range(NULL::orchestrator.task_state)) s),
          (SELECT array_agg(state ORDER BY state) FROM picture WHERE state NOT IN ('marked', 'held')), 'every state is in the table');
CREATE TABLE made AS SELECT state, make(state) AS id FROM picture WHERE state NOT IN ('pending');
SELECT is(state_of(id), CASE state WHEN 'marked' THEN 'running (paused)' WHEN 'paused' THEN 'paused (pending)' WHEN 'held' THEN 'paused (scheduled)' ELSE state END,
          format('a %s task is one', state)) FROM made;
SELECT is((SELECT array_agg(DISTINCT state::text) FROM orchestrator.task WHERE live AND state IN ('completed', 'failed', 'cancelled', 'skipped')
           OR NOT live AND state NOT IN ('completed', 'failed', 'cancelled', 'skipped')), NULL, 'final rows are not among the living');

SELECT * FROM finish();
ROLLBACK;
