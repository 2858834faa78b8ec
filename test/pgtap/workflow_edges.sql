-- What the end of a step means for its dependants, its run, a batch and
-- callbacks: each cell of the table in the README.
\ir lib/setup.psql
SELECT plan(294);

SELECT orchestrator.define('told', 'SELECT 1', 'sql', queue => NULL);
SELECT orchestrator.define('step ok', 'SELECT 1', 'sql'), orchestrator.define('step bad', 'SELECT 1', 'sql');
SELECT orchestrator.define('run ok', 'SELECT 1', 'sql'), orchestrator.define('run bad', 'SELECT 1', 'sql');
SELECT orchestrator.define('job', 'SELECT 1', 'sql', max_attempts => 1, success_callback => 'step ok', failure_callback => 'step bad');
SELECT orchestrator.define('timed', 'SELECT 1', 'sql', max_attempts => 1, timeout => '1 min', timeout_policy => 'fail_workflow',
                           success_callback => 'step ok', failure_callback => 'step bad');

-- Each way a step x can end: what it is, and what is done to it.
CREATE TABLE way (way text PRIMARY KEY, x orchestrator.step_spec, act text);
INSERT INTO way VALUES
  ('completed',                 orchestrator.step('x', definition => 'job'), 'complete'),
  ('when is false',             orchestrator.step('x', definition => 'job', "when" => '$.input.no'), ''),
  ('its needs were skipped',    orchestrator.step('x', definition => 'job', needs => '{w}'), ''),
  ('skip_step',                 orchestrator.step('x', definition => 'job'), 'skip 7'),
  ('skip_step, null',           orchestrator.step('x', definition => 'job'), 'skip null'),
  ('skip_step, no output',      orchestrator.step('x', definition => 'job'), 'skip'),
  ('failed, fail',              orchestrator.step('x', definition => 'job'), 'fail'),
  ('failed, continue',          orchestrator.step('x', definition => 'job', on_failure => 'continue'), 'fail'),
  ('failed, skip_dependants',   orchestrator.step('x', definition => 'job', on_failure => 'skip_dependants'), 'fail'),
  ('failed, optional',          orchestrator.step('x', definition => 'job', optional => true), 'fail'),
  ('cancelled, fail',           orchestrator.step('x', definition => 'job'), 'cancel'),
  ('cancelled, continue',       orchestrator.step('x', definition => 'job', on_failure => 'continue'), 'cancel'),
  ('cancelled, skip_dependants', orchestrator.step('x', definition => 'job', on_failure => 'skip_dependants'), 'cancel'),
  ('cancelled, optional',       orchestrator.step('x', definition => 'job', optional => true), 'cancel'),
  ('fail_workflow, continue',   orchestrator.step('x', definition => 'timed', on_failure => 'continue'), 'time out'),
  ('fail_workflow, optional',   orchestrator.step('x', definition => 'timed', optional => true), 'time out'),
  ('fail_workflow, an error',   orchestrator.step('x', definition => 'timed', on_failure => 'continue'), 'fail'),
  ('signalled',                 orchestrator.step('x', wait_for => 'go', timeout => '1 min'), 'signal'),
  ('timeout, fail',             orchestrator.step('x', wait_for => 'go', timeout => '1 min'), 'wait'),
  ('timeout, fail, continue',   orchestrator.step('x', wait_for => 'go', timeout => '1 min', on_failure => 'continue'), 'wait'),
  ('timeout, continue',         orchestrator.step('x', wait_for => 'go', timeout => '1 min', on_timeout => 'continue'), 'wait'),
  ('timeout, branch',           orchestrator.step('x', wait_for => 'go', timeout => '1 min', on_timeout => 'branch'), 'wait'),
  ('signalled, branch',         orchestrator.step('x', wait_for => 'go', timeout => '1 min', on_timeout => 'branch'), 'signal'),
  ('skip_step, branch',         orchestrator.step('x', wait_for => 'go', timeout => '1 min', on_timeout => 'branch'), 'skip 7'),
  ('rejected, branch',          orchestrator.step('x', wait_for => 'go', timeout => '1 min', on_timeout => 'branch', on_failure => 'continue'), 'reject'),
  ('rejected',                  orchestrator.step('x', wait_for => 'go', timeout => '1 min'), 'reject');

-- The steps around it: y, which is completed before; single, which needs x;
-- join, which needs x and y.
CREATE FUNCTION plain(name text, needs text[] DEFAULT '{}', "when" text DEFAULT NULL) RETURNS orchestrator.step_spec LANGUAGE sql AS $$
  SELECT orchestrator.step($1, 'SELECT 1', 'sql', needs => $2, "when" => $3);
$$;
SELECT orchestrator.define_workflow(way,
  ARRAY[w.x, plain('y'), plain('single', '{x}'), plain('join', '{x,y}')]
  || CASE WHEN w.way LIKE '%branch' THEN ARRAY[plain('branch')] END
  || CASE WHEN w.way = 'its needs were skipped' THEN ARRAY[plain('w', '{}', '$.input.no')] END,
  success_callback => 'run ok', failure_callback => 'run bad')
FROM way w;

-- The row of a step.
CREATE FUNCTION step_of(run bigint, name text) RETURNS orchestrator.task LANGUAGE sql AS $$
  SELECT t.* FROM orchestrator.task t WHERE t.parent_id = $1 AND t.name = $2;
$$;
CREATE FUNCTION act(run bigint, act text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  x      bigint := (step_of($1, 'x')).id;
BEGIN
  CASE $2
    WHEN '' THEN NULL;
    WHEN 'complete' THEN PERFORM settle_completed(x, '"done"');
    WHEN 'fail' THEN PERFORM settle_failed(x);
    WHEN 'time out' THEN PERFORM settle_failed(x, 'timeout', NULL);
    WHEN 'cancel' THEN PERFORM orchestrator.cancel(x);
    WHEN 'skip 7' THEN PERFORM orchestrator.skip_step($1, 'x', '7');
    WHEN 'skip null' THEN PERFORM orchestrator.skip_step($1, 'x');
    WHEN 'skip' THEN PERFORM orchestrator.skip_step($1, 'x', NULL);
    WHEN 'signal' THEN PERFORM orchestrator.signal($1, 'go', '"went"');
    WHEN 'reject' THEN PERFORM orchestrator.reject($1, 'x', 'no');
    WHEN 'wait' THEN PERFORM later(61); PERFORM orchestrator._expire(1000);
  END CASE;
END $$;
-- Complete what is pending in a run.
CREATE FUNCTION finish(run bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_ids bigint[];
BEGIN
  LOOP
    PERFORM claim(1000);
    v_ids := ARRAY(SELECT t.id FROM orchestrator.task t WHERE t.parent_id = $1 AND t.state = 'running' AND t.name <> 'x');
    EXIT WHEN v_ids = '{}';
    PERFORM settle_completed(i, to_jsonb((task(i)).name)) FROM unnest(v_ids) i;
  END LOOP;
END $$;
CREATE FUNCTION calls(task bigint) RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(string_agg(d.name || ' ' || (t.input ->> 'state'), ', ' ORDER BY t.id), '-')
  FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE (t.input ->> 'task')::bigint = $1;
$$;

CREATE TABLE cell (way text, cell text, value text, PRIMARY KEY (way, cell));
CREATE FUNCTION play(way text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_act   text := (SELECT w.act FROM way w WHERE w.way = $1);
  v_run   bigint := orchestrator._enqueue_as(owner_id(), $1, '{}');
  v_batch bigint;
  x       orchestrator.task;
  r       orchestrator.task;
  v_said  boolean;
BEGIN
  PERFORM claim(1000);
  PERFORM settle_completed((step_of(v_run, 'y')).id, '"y"');
  PERFORM orchestrator.on_completion(v_run, 'told');
  x := step_of(v_run, 'x');
  v_said := x.live;
  IF v_said THEN PERFORM orchestrator.on_completion(x.id, 'told'); END IF;
  PERFORM act(v_run, v_act);
  x := step_of(v_run, 'x');
  r := task(v_run);
  INSERT INTO cell SELECT $1, v.cell, v.value FROM (VALUES
    ('the step', x.state || coalesce(' ' || x.output::text, '') || coalesce(' ' || (x.error ->> 'sqlstate'), '')),
    ('single', coalesce((step_of(v_run, 'single')).state::text, '-')),
    ('join', coalesce((step_of(v_run, 'join')).state::text, '-')),
    ('branch', CASE WHEN $1 LIKE '%branch' THEN coalesce((step_of(v_run, 'branch')).state::text, '-') END),
    ('what single sees', CASE WHEN (step_of(v_run, 'single')).state = 'pending' THEN coalesce((step_of(v_run, 'single')).input #>> '{steps,x}', 'null') || coalesce(', errors: ' || ((step_of(v_run, 'single')).input #>> '{errors,x,sqlstate}'), '') END),
    ('what join sees', CASE WHEN (step_of(v_run, 'join')).state = 'pending' THEN coalesce((step_of(v_run, 'join')).input #>> '{steps,x}', 'null') || coalesce(', errors: ' || ((step_of(v_run, 'join')).input #>> '{errors,x,sqlstate}'), '') END),
    ('remaining', CASE WHEN r.live THEN r.remaining::text ELSE 'it is final' END),
    ('callbacks of the step', calls(x.id))) v(cell, value);
  PERFORM finish(v_run);
  r := task(v_run);
  INSERT INTO cell SELECT $1, v.cell, v.value FROM (VALUES
    ('the run', r.state || coalesce(' ' || r.output::text, '')),
    ('error of the run', coalesce((r.error ->> 'sqlstate') || ' ' || (r.error ->> 'message') || ' at ' || (r.error ->> 'step'), '-')),
    ('callbacks of the run', calls(v_run))) v(cell, value);
  -- in a batch
  v_batch := orchestrator.enqueue_batch($1, '{"{}"}', on_completion => 'told');
  v_run := (SELECT t.id FROM orchestrator.task t WHERE t.parent_id = v_batch);
  PERFORM claim(1000);
  PERFORM act(v_run, v_act);
  PERFORM finish(v_run);
  r := task(v_batch);
  INSERT INTO cell SELECT $1, v.cell, v.value FROM (VALUES
    ('a batch', r.state || ' ' || (SELECT string_agg(e.key || ' ' || e.value, ', ') FROM jsonb_each(r.output) e WHERE e.value <> '0' AND e.key <> 'total')),
    ('callback of the batch', calls(v_batch))) v(cell, value);
END $$;
SELECT play(w.way) FROM way w;
DELETE FROM cell WHERE value IS NULL;

-- The table.
CREATE TABLE expected (place serial, way text, cell text, value text);
INSERT INTO expected (way, cell, value) VALUES
  ('completed', 'the step', 'completed "done"'),
  ('completed', 'single', 'pending'),
  ('completed', 'join', 'pending'),
  ('completed', 'what single sees', 'done'),
  ('completed', 'what join sees', 'done'),
  ('completed', 'remaining', '2'),
  ('completed', 'callbacks of the step', 'told completed, step ok completed'),
  ('completed', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('completed', 'error of the run', '-'),
  ('completed', 'callbacks of the run', 'told completed, run ok completed'),
  ('completed', 'a batch', 'completed completed 1'),
  ('completed', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('when is false', 'the step', 'skipped'),
  ('when is false', 'single', 'skipped'),
  ('when is false', 'join', 'pending'),
  ('when is false', 'what join sees', 'null'),
  ('when is false', 'remaining', '1'),
  ('when is false', 'callbacks of the step', '-'),
  ('when is false', 'the run', 'completed {"join": "join", "single": null}'),
  ('when is false', 'error of the run', '-'),
  ('when is false', 'callbacks of the run', 'told completed, run ok completed'),
  ('when is false', 'a batch', 'completed completed 1'),
  ('when is false', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('its needs were skipped', 'the step', 'skipped'),
  ('its needs were skipped', 'single', 'skipped'),
  ('its needs were skipped', 'join', 'pending'),
  ('its needs were skipped', 'what join sees', 'null'),
  ('its needs were skipped', 'remaining', '1'),
  ('its needs were skipped', 'callbacks of the step', '-'),
  ('its needs were skipped', 'the run', 'completed {"join": "join", "single": null}'),
  ('its needs were skipped', 'error of the run', '-'),
  ('its needs were skipped', 'callbacks of the run', 'told completed, run ok completed'),
  ('its needs were skipped', 'a batch', 'completed completed 1'),
  ('its needs were skipped', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('skip_step', 'the step', 'skipped 7'),
  ('skip_step', 'single', 'pending'),
  ('skip_step', 'join', 'pending'),
  ('skip_step', 'what single sees', '7'),
  ('skip_step', 'what join sees', '7'),
  ('skip_step', 'remaining', '2'),
  ('skip_step', 'callbacks of the step', 'told skipped'),
  ('skip_step', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('skip_step', 'error of the run', '-'),
  ('skip_step', 'callbacks of the run', 'told completed, run ok completed'),
  ('skip_step', 'a batch', 'completed completed 1'),
  ('skip_step', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('skip_step, null', 'the step', 'skipped null'),
  ('skip_step, null', 'single', 'pending'),
  ('skip_step, null', 'join', 'pending'),
  ('skip_step, null', 'what single sees', 'null'),
  ('skip_step, null', 'what join sees', 'null'),
  ('skip_step, null', 'remaining', '2'),
  ('skip_step, null', 'callbacks of the step', 'told skipped'),
  ('skip_step, null', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('skip_step, null', 'error of the run', '-'),
  ('skip_step, null', 'callbacks of the run', 'told completed, run ok completed'),
  ('skip_step, null', 'a batch', 'completed completed 1'),
  ('skip_step, null', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('skip_step, no output', 'the step', 'skipped'),
  ('skip_step, no output', 'single', 'skipped'),
  ('skip_step, no output', 'join', 'pending'),
  ('skip_step, no output', 'what join sees', 'null'),
  ('skip_step, no output', 'remaining', '1'),
  ('skip_step, no output', 'callbacks of the step', 'told skipped'),
  ('skip_step, no output', 'the run', 'completed {"join": "join", "single": null}'),
  ('skip_step, no output', 'error of the run', '-'),
  ('skip_step, no output', 'callbacks of the run', 'told completed, run ok completed'),
  ('skip_step, no output', 'a batch', 'completed completed 1'),
  ('skip_step, no output', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('failed, fail', 'the step', 'failed 22012'),
  ('failed, fail', 'single', '-'),
  ('failed, fail', 'join', '-'),
  ('failed, fail', 'remaining', 'it is final'),
  ('failed, fail', 'callbacks of the step', 'told failed, step bad failed'),
  ('failed, fail', 'the run', 'failed'),
  ('failed, fail', 'error of the run', '22012 step "x" failed: no at x'),
  ('failed, fail', 'callbacks of the run', 'told failed, run bad failed'),
  ('failed, fail', 'a batch', 'completed failed 1'),
  ('failed, fail', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('failed, continue', 'the step', 'failed 22012'),
  ('failed, continue', 'single', 'pending'),
  ('failed, continue', 'join', 'pending'),
  ('failed, continue', 'what single sees', 'null, errors: 22012'),
  ('failed, continue', 'what join sees', 'null, errors: 22012'),
  ('failed, continue', 'remaining', '2'),
  ('failed, continue', 'callbacks of the step', 'told failed, step bad failed'),
  ('failed, continue', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('failed, continue', 'error of the run', '-'),
  ('failed, continue', 'callbacks of the run', 'told completed, run ok completed'),
  ('failed, continue', 'a batch', 'completed completed 1'),
  ('failed, continue', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('failed, skip_dependants', 'the step', 'failed 22012'),
  ('failed, skip_dependants', 'single', 'skipped'),
  ('failed, skip_dependants', 'join', 'skipped'),
  ('failed, skip_dependants', 'remaining', 'it is final'),
  ('failed, skip_dependants', 'callbacks of the step', 'told failed, step bad failed'),
  ('failed, skip_dependants', 'the run', 'completed {"join": null, "single": null}'),
  ('failed, skip_dependants', 'error of the run', '-'),
  ('failed, skip_dependants', 'callbacks of the run', 'told completed, run ok completed'),
  ('failed, skip_dependants', 'a batch', 'completed completed 1'),
  ('failed, skip_dependants', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('failed, optional', 'the step', 'failed 22012'),
  ('failed, optional', 'single', 'skipped'),
  ('failed, optional', 'join', 'pending'),
  ('failed, optional', 'what join sees', 'null, errors: 22012'),
  ('failed, optional', 'remaining', '1'),
  ('failed, optional', 'callbacks of the step', 'told failed, step bad failed'),
  ('failed, optional', 'the run', 'completed {"join": "join", "single": null}'),
  ('failed, optional', 'error of the run', '-'),
  ('failed, optional', 'callbacks of the run', 'told completed, run ok completed'),
  ('failed, optional', 'a batch', 'completed completed 1'),
  ('failed, optional', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('cancelled, fail', 'the step', 'cancelled OR001'),
  ('cancelled, fail', 'single', '-'),
  ('cancelled, fail', 'join', '-'),
  ('cancelled, fail', 'remaining', 'it is final'),
  ('cancelled, fail', 'callbacks of the step', 'told cancelled, step bad cancelled'),
  ('cancelled, fail', 'the run', 'failed'),
  ('cancelled, fail', 'error of the run', format('OR001 step "x" was cancelled: cancelled by "%s" at x', current_user)),
  ('cancelled, fail', 'callbacks of the run', 'told failed, run bad failed'),
  ('cancelled, fail', 'a batch', 'completed failed 1'),
  ('cancelled, fail', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('cancelled, continue', 'the step', 'cancelled OR001'),
  ('cancelled, continue', 'single', 'pending'),
  ('cancelled, continue', 'join', 'pending'),
  ('cancelled, continue', 'what single sees', 'null, errors: OR001'),
  ('cancelled, continue', 'what join sees', 'null, errors: OR001'),
  ('cancelled, continue', 'remaining', '2'),
  ('cancelled, continue', 'callbacks of the step', 'told cancelled, step bad cancelled'),
  ('cancelled, continue', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('cancelled, continue', 'error of the run', '-'),
  ('cancelled, continue', 'callbacks of the run', 'told completed, run ok completed'),
  ('cancelled, continue', 'a batch', 'completed completed 1'),
  ('cancelled, continue', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('cancelled, skip_dependants', 'the step', 'cancelled OR001'),
  ('cancelled, skip_dependants', 'single', 'skipped'),
  ('cancelled, skip_dependants', 'join', 'skipped'),
  ('cancelled, skip_dependants', 'remaining', 'it is final'),
  ('cancelled, skip_dependants', 'callbacks of the step', 'told cancelled, step bad cancelled'),
  ('cancelled, skip_dependants', 'the run', 'completed {"join": null, "single": null}'),
  ('cancelled, skip_dependants', 'error of the run', '-'),
  ('cancelled, skip_dependants', 'callbacks of the run', 'told completed, run ok completed'),
  ('cancelled, skip_dependants', 'a batch', 'completed completed 1'),
  ('cancelled, skip_dependants', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('cancelled, optional', 'the step', 'cancelled OR001'),
  ('cancelled, optional', 'single', 'skipped'),
  ('cancelled, optional', 'join', 'pending'),
  ('cancelled, optional', 'what join sees', 'null, errors: OR001'),
  ('cancelled, optional', 'remaining', '1'),
  ('cancelled, optional', 'callbacks of the step', 'told cancelled, step bad cancelled'),
  ('cancelled, optional', 'the run', 'completed {"join": "join", "single": null}'),
  ('cancelled, optional', 'error of the run', '-'),
  ('cancelled, optional', 'callbacks of the run', 'told completed, run ok completed'),
  ('cancelled, optional', 'a batch', 'completed completed 1'),
  ('cancelled, optional', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('fail_workflow, continue', 'the step', 'failed OR004'),
  ('fail_workflow, continue', 'single', '-'),
  ('fail_workflow, continue', 'join', '-'),
  ('fail_workflow, continue', 'remaining', 'it is final'),
  ('fail_workflow, continue', 'callbacks of the step', 'told failed, step bad failed'),
  ('fail_workflow, continue', 'the run', 'failed'),
  ('fail_workflow, continue', 'error of the run', 'OR004 step "x" failed: the step ran longer than 00:01:00 at x'),
  ('fail_workflow, continue', 'callbacks of the run', 'told failed, run bad failed'),
  ('fail_workflow, continue', 'a batch', 'completed failed 1'),
  ('fail_workflow, continue', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('fail_workflow, optional', 'the step', 'failed OR004'),
  ('fail_workflow, optional', 'single', '-'),
  ('fail_workflow, optional', 'join', '-'),
  ('fail_workflow, optional', 'remaining', 'it is final'),
  ('fail_workflow, optional', 'callbacks of the step', 'told failed, step bad failed'),
  ('fail_workflow, optional', 'the run', 'failed'),
  ('fail_workflow, optional', 'error of the run', 'OR004 step "x" failed: the step ran longer than 00:01:00 at x'),
  ('fail_workflow, optional', 'callbacks of the run', 'told failed, run bad failed'),
  ('fail_workflow, optional', 'a batch', 'completed failed 1'),
  ('fail_workflow, optional', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('fail_workflow, an error', 'the step', 'failed 22012'),
  ('fail_workflow, an error', 'single', 'pending'),
  ('fail_workflow, an error', 'join', 'pending'),
  ('fail_workflow, an error', 'what single sees', 'null, errors: 22012'),
  ('fail_workflow, an error', 'what join sees', 'null, errors: 22012'),
  ('fail_workflow, an error', 'remaining', '2'),
  ('fail_workflow, an error', 'callbacks of the step', 'told failed, step bad failed'),
  ('fail_workflow, an error', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('fail_workflow, an error', 'error of the run', '-'),
  ('fail_workflow, an error', 'callbacks of the run', 'told completed, run ok completed'),
  ('fail_workflow, an error', 'a batch', 'completed completed 1'),
  ('fail_workflow, an error', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('signalled', 'the step', 'completed "went"'),
  ('signalled', 'single', 'pending'),
  ('signalled', 'join', 'pending'),
  ('signalled', 'what single sees', 'went'),
  ('signalled', 'what join sees', 'went'),
  ('signalled', 'remaining', '2'),
  ('signalled', 'callbacks of the step', 'told completed'),
  ('signalled', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('signalled', 'error of the run', '-'),
  ('signalled', 'callbacks of the run', 'told completed, run ok completed'),
  ('signalled', 'a batch', 'completed completed 1'),
  ('signalled', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('timeout, fail', 'the step', 'failed OR004'),
  ('timeout, fail', 'single', '-'),
  ('timeout, fail', 'join', '-'),
  ('timeout, fail', 'remaining', 'it is final'),
  ('timeout, fail', 'callbacks of the step', 'told failed'),
  ('timeout, fail', 'the run', 'failed'),
  ('timeout, fail', 'error of the run', 'OR004 step "x" failed: signal "go" did not come within 00:01:00 at x'),
  ('timeout, fail', 'callbacks of the run', 'told failed, run bad failed'),
  ('timeout, fail', 'a batch', 'completed failed 1'),
  ('timeout, fail', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('timeout, fail, continue', 'the step', 'failed OR004'),
  ('timeout, fail, continue', 'single', 'pending'),
  ('timeout, fail, continue', 'join', 'pending'),
  ('timeout, fail, continue', 'what single sees', 'null, errors: OR004'),
  ('timeout, fail, continue', 'what join sees', 'null, errors: OR004'),
  ('timeout, fail, continue', 'remaining', '2'),
  ('timeout, fail, continue', 'callbacks of the step', 'told failed'),
  ('timeout, fail, continue', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('timeout, fail, continue', 'error of the run', '-'),
  ('timeout, fail, continue', 'callbacks of the run', 'told completed, run ok completed'),
  ('timeout, fail, continue', 'a batch', 'completed completed 1'),
  ('timeout, fail, continue', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('timeout, continue', 'the step', 'completed {"timed_out": true}'),
  ('timeout, continue', 'single', 'pending'),
  ('timeout, continue', 'join', 'pending'),
  ('timeout, continue', 'what single sees', '{"timed_out": true}'),
  ('timeout, continue', 'what join sees', '{"timed_out": true}'),
  ('timeout, continue', 'remaining', '2'),
  ('timeout, continue', 'callbacks of the step', 'told completed'),
  ('timeout, continue', 'the run', 'completed {"join": "join", "single": "single"}'),
  ('timeout, continue', 'error of the run', '-'),
  ('timeout, continue', 'callbacks of the run', 'told completed, run ok completed'),
  ('timeout, continue', 'a batch', 'completed completed 1'),
  ('timeout, continue', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('timeout, branch', 'the step', 'completed {"timed_out": true}'),
  ('timeout, branch', 'single', 'skipped'),
  ('timeout, branch', 'join', 'skipped'),
  ('timeout, branch', 'branch', 'pending'),
  ('timeout, branch', 'remaining', '1'),
  ('timeout, branch', 'callbacks of the step', 'told completed'),
  ('timeout, branch', 'the run', 'completed {"join": null, "branch": "branch", "single": null}'),
  ('timeout, branch', 'error of the run', '-'),
  ('timeout, branch', 'callbacks of the run', 'told completed, run ok completed'),
  ('timeout, branch', 'a batch', 'completed completed 1'),
  ('timeout, branch', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('signalled, branch', 'the step', 'completed "went"'),
  ('signalled, branch', 'single', 'pending'),
  ('signalled, branch', 'join', 'pending'),
  ('signalled, branch', 'branch', 'skipped'),
  ('signalled, branch', 'what single sees', 'went'),
  ('signalled, branch', 'what join sees', 'went'),
  ('signalled, branch', 'remaining', '2'),
  ('signalled, branch', 'callbacks of the step', 'told completed'),
  ('signalled, branch', 'the run', 'completed {"join": "join", "branch": null, "single": "single"}'),
  ('signalled, branch', 'error of the run', '-'),
  ('signalled, branch', 'callbacks of the run', 'told completed, run ok completed'),
  ('signalled, branch', 'a batch', 'completed completed 1'),
  ('signalled, branch', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('skip_step, branch', 'the step', 'skipped 7'),
  ('skip_step, branch', 'single', 'pending'),
  ('skip_step, branch', 'join', 'pending'),
  ('skip_step, branch', 'branch', 'skipped'),
  ('skip_step, branch', 'what single sees', '7'),
  ('skip_step, branch', 'what join sees', '7'),
  ('skip_step, branch', 'remaining', '2'),
  ('skip_step, branch', 'callbacks of the step', 'told skipped'),
  ('skip_step, branch', 'the run', 'completed {"join": "join", "branch": null, "single": "single"}'),
  ('skip_step, branch', 'error of the run', '-'),
  ('skip_step, branch', 'callbacks of the run', 'told completed, run ok completed'),
  ('skip_step, branch', 'a batch', 'completed completed 1'),
  ('skip_step, branch', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('rejected, branch', 'the step', 'failed OR006'),
  ('rejected, branch', 'single', 'pending'),
  ('rejected, branch', 'join', 'pending'),
  ('rejected, branch', 'branch', 'skipped'),
  ('rejected, branch', 'what single sees', 'null, errors: OR006'),
  ('rejected, branch', 'what join sees', 'null, errors: OR006'),
  ('rejected, branch', 'remaining', '2'),
  ('rejected, branch', 'callbacks of the step', 'told failed'),
  ('rejected, branch', 'the run', 'completed {"join": "join", "branch": null, "single": "single"}'),
  ('rejected, branch', 'error of the run', '-'),
  ('rejected, branch', 'callbacks of the run', 'told completed, run ok completed'),
  ('rejected, branch', 'a batch', 'completed completed 1'),
  ('rejected, branch', 'callback of the batch', 'told completed');
INSERT INTO expected (way, cell, value) VALUES
  ('rejected', 'the step', 'failed OR006'),
  ('rejected', 'single', '-'),
  ('rejected', 'join', '-'),
  ('rejected', 'remaining', 'it is final'),
  ('rejected', 'callbacks of the step', 'told failed'),
  ('rejected', 'the run', 'failed'),
  ('rejected', 'error of the run', format('OR006 step "x" failed: rejected by "%s" at x', current_user)),
  ('rejected', 'callbacks of the run', 'told failed, run bad failed'),
  ('rejected', 'a batch', 'completed failed 1'),
  ('rejected', 'callback of the batch', 'told completed');
SELECT is((SELECT c.value FROM cell c WHERE c.way = e.way AND c.cell = e.cell), e.value, format('%s: %s', e.way, e.cell)) FROM expected e ORDER BY e.place;
SELECT is((SELECT count(*) FROM cell), (SELECT count(*) FROM expected), 'and there are no other cells');

SELECT * FROM finish();
ROLLBACK;
