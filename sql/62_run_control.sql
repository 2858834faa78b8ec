-- Control of runs: retry, rerun_from, restore, fork, skip_step; signals and
-- approvals; steps, context and checkpoints from outside; batches, callbacks.

CREATE FUNCTION orchestrator.rerun_from(task bigint, step text) RETURNS orchestrator.task_state
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.rerun_from(bigint, text) IS
  'Runs a step of a run again, and all that depend on it; outputs of what went before are kept. Also of a run that is finished. Returns the new state of the run';

CREATE FUNCTION orchestrator.restore(task bigint, checkpoint text) RETURNS orchestrator.task_state
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.restore(bigint, text) IS
  'Takes a run back to a checkpoint: steps that were not completed then run again, and its context is as it was. Returns the new state of the run';

CREATE FUNCTION orchestrator.fork(task bigint, step text) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.fork(bigint, text) IS
  'Makes a new run that has the outputs of the steps before the given one and goes on from there; the old run stays as it is. Returns the id of the new one';

CREATE FUNCTION orchestrator.skip_step(task bigint, step text, output jsonb DEFAULT 'null', reason text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.skip_step(bigint, text, jsonb, text) IS
  'Skips a step of a run that is not finished, started or not; its dependants go on with the output given here. With a null output they are skipped too, unless they have other needs';

CREATE FUNCTION orchestrator.signal(task bigint, name text, payload jsonb DEFAULT '{}') RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.signal(bigint, text, jsonb) IS
  'Sends a signal to a task: one step of it, or below it, that waits for this name goes on with the payload as its output. Kept until a step waits for it';

CREATE FUNCTION orchestrator.approve(task bigint, step text, payload jsonb DEFAULT '{}') RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.approve(bigint, text, jsonb) IS
  'Approves a waiting step of a run, also before it begins to wait; its output is {approved, by, at, payload}';

CREATE FUNCTION orchestrator.reject(task bigint, step text, reason text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.reject(bigint, text, text) IS
  'Rejects a waiting step of a run, also before it begins to wait: it fails with SQLSTATE OR006';

CREATE FUNCTION orchestrator.add_steps(task bigint, steps orchestrator.step_spec[], delay interval DEFAULT NULL, token text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.add_steps(bigint, orchestrator.step_spec[], interval, text) IS
  'Adds steps to a run that is not finished. Inside a step, leave the task out: they become its siblings, if it completes. A remote worker gives its task and token for that';

CREATE FUNCTION orchestrator.context(task bigint) RETURNS jsonb
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.context(bigint) IS 'The state that the steps of a run keep with set_context(); null: none. Any task of the run names it';

CREATE FUNCTION orchestrator.set_context(task bigint, value jsonb, token text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.set_context(bigint, jsonb, text) IS
  'Replaces the context of a run. Inside a step, leave the task out: it is kept if the step completes. A remote worker gives its task and token for that';

CREATE FUNCTION orchestrator.checkpoint(task bigint, name text, context jsonb, token text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.checkpoint(bigint, text, jsonb, text) IS
  'Names the present point of a run, for restore(); with a context that is not null, sets it. A name that exists is moved. Inside a step, leave the task out. A remote worker gives its task and token: then it is the point at which the step completes';

CREATE FUNCTION orchestrator.on_completion(task bigint, definition text DEFAULT NULL, input jsonb DEFAULT NULL, endpoint text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.on_completion(bigint, text, jsonb, text) IS
  'Enqueues a task of a definition when a task ends, as the role that owns it, with {task, name, definition, state, output, error, input}; at once if it has ended. With an endpoint instead, a webhook of that is posted there';

CREATE FUNCTION orchestrator.enqueue_workflow(steps orchestrator.step_spec[], input jsonb DEFAULT '{}', name text DEFAULT NULL,
    priority int DEFAULT NULL, run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, key text DEFAULT NULL,
    key_window interval DEFAULT NULL, queue text DEFAULT NULL, metadata jsonb DEFAULT NULL,
    deadline timestamptz DEFAULT NULL, traceparent text DEFAULT NULL) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.enqueue_workflow(orchestrator.step_spec[], jsonb, text, int, timestamptz, interval, text, interval, text, jsonb, timestamptz, text) IS
  'Enqueues a graph of steps once, without a definition; returns its id';

CREATE FUNCTION orchestrator.enqueue_batch(definition text, inputs jsonb[], on_completion text DEFAULT NULL, completion_input jsonb DEFAULT NULL,
    name text DEFAULT NULL, priority int DEFAULT NULL, queue text DEFAULT NULL, metadata jsonb DEFAULT NULL,
    deadline timestamptz DEFAULT NULL, traceparent text DEFAULT NULL) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.enqueue_batch(text, jsonb[], text, jsonb, text, int, text, jsonb, timestamptz, text) IS
  'Enqueues one task for each input, followed and finished as one; returns the id of the batch, which is a task. Its output counts its items by state; on_completion names a definition enqueued then';

CREATE FUNCTION orchestrator.wait_batch(batch bigint, timeout interval DEFAULT NULL) RETURNS orchestrator.task_result
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_wait';
COMMENT ON FUNCTION orchestrator.wait_batch(bigint, interval) IS 'Sleeps until all items of a batch are finished; as wait()';

-- Lock a run that the caller may control.
CREATE FUNCTION orchestrator._lock_run(caller oid, task bigint, verb text) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t orchestrator.task := orchestrator._lock_task($1, $2, false);
BEGIN
  IF t.remaining IS NULL THEN
    PERFORM orchestrator._refuse(t, $3, 'It has no steps.');
  END IF;
  RETURN t;
END
$$;

-- Bring a final run back to the live rows, where it waits. Nothing, when it
-- lives.
CREATE FUNCTION orchestrator._reopen(task bigint, detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  p orchestrator.task;
BEGIN
  DELETE FROM orchestrator.task_finished f WHERE f.id = $1 RETURNING f.* INTO p;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  PERFORM orchestrator._trace(p, NULL, p.attempt, 'retrying', $2);
  p.live := true;
  p.state := 'waiting';
  p.epoch := p.epoch + 1;
  p.finished_at := NULL;
  p.error := NULL;
  p.output := CASE WHEN orchestrator._kind(p.definition) IN ('workflow', 'map', 'batch') THEN NULL ELSE p.output END;
  p.deadline := CASE WHEN p.deadline > orchestrator._now() THEN p.deadline END;
  p.run_at := NULL;
  p.expire_at := least(p.deadline, orchestrator._now() + (SELECT d.timeout FROM orchestrator.definition d WHERE d.id = p.definition AND d.kind = 'workflow'));
  INSERT INTO orchestrator.task_live SELECT p.*;
  PERFORM orchestrator._tell(p, 'retrying');
  PERFORM orchestrator._due(p.expire_at);
END
$$;

-- Retry of a failed or cancelled run: the steps it ended for run again,
-- completed ones stay. Those that are runs come last, since one may end at
-- once, and this run with it: what is left then stays as it ended.
CREATE FUNCTION orchestrator._revive_run(task bigint, attempts int, detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  p      orchestrator.task;
  t      orchestrator.task;
  v_runs bigint[];
  v_run  bigint;
  v_run_at timestamptz;
BEGIN
  v_run_at := (orchestrator._task($1)).run_at;
  PERFORM orchestrator._reopen($1, $3);
  SELECT l.* INTO p FROM orchestrator.task_live l WHERE l.id = $1;
  IF v_run_at > orchestrator._now() AND orchestrator._kind(p.definition) = 'workflow'
     AND NOT EXISTS (SELECT FROM orchestrator._step_rows(p.id, NULL)) THEN
    -- it was cancelled before its time
    UPDATE orchestrator.task_live l SET state = 'scheduled', run_at = v_run_at WHERE l.id = p.id;
    PERFORM orchestrator._due(v_run_at);
    RETURN;
  END IF;
  v_runs := ARRAY(SELECT f.id FROM orchestrator.task_finished f
                  WHERE f.parent_id = $1 AND f.id > $1 AND f.state IN ('failed', 'cancelled') AND f.remaining IS NOT NULL AND f.compensation IS NULL
                    AND (f.state = 'cancelled' OR f.step IS NULL
                         OR orchestrator._fails_above(f, orchestrator._step_spec(f.plan, CASE WHEN f.item IS NULL THEN p.id ELSE p.parent_id END, f.step)))
                  ORDER BY 1);
  FOR t IN SELECT f.* FROM orchestrator.task_finished f
           WHERE f.parent_id = $1 AND f.id > $1 AND f.state IN ('failed', 'cancelled')
             AND (f.remaining IS NULL OR f.compensation IS NOT NULL AND f.item IS NULL)
             AND (f.state = 'cancelled' OR f.step IS NULL
                  OR orchestrator._fails_above(f, orchestrator._step_spec(f.plan, CASE WHEN f.item IS NULL THEN p.id ELSE p.parent_id END, f.step)))
           ORDER BY f.id LOOP
    IF orchestrator._kind(t.definition) = 'wait' OR t.step IS NOT NULL AND t.item IS NULL AND t.attempt = 0 OR t.compensation IS NOT NULL THEN
      PERFORM orchestrator._reset_row(t);   -- it had not begun, or was undone: from its needs on
    ELSE
      PERFORM orchestrator._retry_locked(ARRAY[t.id], $2, $3);
    END IF;
  END LOOP;
  PERFORM orchestrator._count_remaining($1);
  UPDATE orchestrator.task_live l SET remaining = l.remaining + cardinality(v_runs) WHERE l.id = $1;
  FOREACH v_run IN ARRAY v_runs LOOP
    EXIT WHEN NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = $1);
    PERFORM orchestrator._revive_run(v_run, $2, $3);
  END LOOP;
  IF EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = $1) THEN
    PERFORM orchestrator._go_on($1);
  END IF;
END
$$;

-- How many steps of a live run are not final.
CREATE FUNCTION orchestrator._count_remaining(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  p       orchestrator.task;
  v_total int;
BEGIN
  SELECT l.* INTO p FROM orchestrator.task_live l WHERE l.id = $1;
  CASE orchestrator._kind(p.definition)   -- not one expression: of a workflow, items may be anything
    WHEN 'map' THEN v_total := jsonb_array_length(p.input -> 'items');
    WHEN 'batch' THEN v_total := (SELECT count(*) FROM orchestrator.task x WHERE x.parent_id = $1);
    ELSE v_total := orchestrator._step_count(p);
  END CASE;
  UPDATE orchestrator.task_live l
    SET remaining = v_total - (SELECT count(*) FROM orchestrator.task_finished f WHERE f.parent_id = $1 AND f.id > $1 AND coalesce(f.step, 1) > 0)
    WHERE l.id = $1;
END
$$;

-- Start what can be of a live run that was changed.
CREATE FUNCTION orchestrator._go_on(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  p orchestrator.task;
BEGIN
  SELECT l.* INTO p FROM orchestrator.task_live l WHERE l.id = $1;
  IF orchestrator._kind(p.definition) = 'map' THEN
    PERFORM orchestrator._start_items(p,
      coalesce((orchestrator._step_spec(p.plan, p.parent_id, p.step) ->> 'max_parallel')::int, 2147483647 / 2)
      - (SELECT count(*)::int FROM orchestrator.task_live l WHERE l.parent_id = p.id));
  ELSE
    PERFORM orchestrator._try_steps(p, ARRAY(SELECT generate_series(1, orchestrator._step_count(p))));
  END IF;
  PERFORM orchestrator._close_if_done($1);
END
$$;

-- Make a step as if it had not begun; what was below it goes. Its output and
-- error stand in the trace.
CREATE FUNCTION orchestrator._reset_row(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
  PERFORM orchestrator._forget_steps(t);
  IF t.state = 'running' THEN
    PERFORM orchestrator._interrupt(t.id, t.epoch);
  END IF;
  PERFORM orchestrator._trace(t, NULL, t.attempt, 'reset', jsonb_strip_nulls(jsonb_build_object('state', t.state, 'output', t.output, 'error', t.error)));
  DELETE FROM orchestrator.task_live l WHERE l.id = t.id;
  DELETE FROM orchestrator.task_finished f WHERE f.id = t.id;
  t.live := true;
  t.state := 'waiting';
  t.held_state := NULL;
  t.held_by := NULL;
  t.epoch := t.epoch + 1;
  t.attempt := 0;
  t.worker := NULL;
  t.started_at := NULL;
  t.finished_at := NULL;
  t.run_at := NULL;
  t.sort_key := NULL;
  t.parked_on := orchestrator._remote_lane(t.definition, t.queue);
  t.expire_at := NULL;
  t.iteration := NULL;
  t.remaining := NULL;
  t.output := NULL;
  t.error := NULL;
  t.compensation := NULL;
  INSERT INTO orchestrator.task_live SELECT t.*;
  DELETE FROM orchestrator.step_memo m WHERE m.task_id = t.id;
END
$$;

-- A step runs again: what was below it goes.
CREATE FUNCTION orchestrator._forget_steps(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_below bigint[];
BEGIN
  IF t.remaining IS NULL THEN
    RETURN;
  END IF;
  PERFORM orchestrator._cancel_below(t.id, '{"by": "orchestrator", "reason": "the step above runs again"}');
  LOOP
    v_below := ARRAY(SELECT f.id FROM orchestrator.task_finished f WHERE f.root_id = t.root_id AND f.parent_id = t.id AND f.id > t.id LIMIT 10000);
    EXIT WHEN v_below = '{}';
    PERFORM orchestrator._forget_below(v_below);
    DELETE FROM orchestrator.task_finished f WHERE f.id = ANY (v_below);
  END LOOP;
  DELETE FROM orchestrator.added_step a WHERE a.task_id = t.id;
END
$$;

-- Drop the finished rows below some.
CREATE FUNCTION orchestrator._forget_below(ids bigint[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_below bigint[] := ARRAY(SELECT f.id FROM orchestrator.task_finished f WHERE f.parent_id = ANY ($1));
BEGIN
  IF v_below <> '{}' THEN
    PERFORM orchestrator._forget_below(v_below);
    DELETE FROM orchestrator.task_finished f WHERE f.id = ANY (v_below);
  END IF;
END
$$;

-- A step and all that depend on it, at any distance.
CREATE FUNCTION orchestrator._closure(p orchestrator.task, steps int[]) RETURNS int[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_found int[] := $2;
  v_level int[] := $2;
BEGIN
  WHILE v_level <> '{}' LOOP
    v_level := ARRAY(SELECT DISTINCT d FROM unnest(v_level) s,
                       unnest(orchestrator._dependants(orchestrator._step_spec(p.definition, p.id, s), p.id, s)) d
                     WHERE d <> ALL (v_found));
    v_found := v_found || v_level;
  END LOOP;
  RETURN v_found;
END
$$;

-- Run steps of a locked run again, and all that depend on them.
CREATE FUNCTION orchestrator._rerun(p orchestrator.task, steps int[], detail jsonb) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- and those that the run ended for, as in retry()
  v_steps int[] := orchestrator._closure(p, $2 || ARRAY(
    SELECT r.step FROM orchestrator._step_rows(p.id, NULL) r
    WHERE r.state = 'cancelled' OR r.state = 'failed' AND orchestrator._fails_run(r, orchestrator._step_spec(p.definition, p.id, r.step))));
  v_live  bigint[];
  t       orchestrator.task;
BEGIN
  IF orchestrator._is_undone(p) THEN
    PERFORM orchestrator._refuse(p, 'go back in', 'What it did was undone: enqueue it anew.');
  ELSIF p.step IS NOT NULL AND NOT p.live THEN
    PERFORM orchestrator._refuse(p, 'go back in', format('It is a finished step: go back in task %s.', p.root_id));
  ELSIF orchestrator._kind(p.definition) NOT IN ('workflow') AND orchestrator._kind(p.definition) IN ('map', 'batch') THEN
    PERFORM orchestrator._refuse(p, 'go back in', 'Its items have no order; retry() runs the failed ones again.');
  ELSIF orchestrator._kind(p.definition) = ANY (orchestrator._call_kinds()) THEN
    PERFORM orchestrator._refuse(p, 'go back in', 'A model said what its steps are; retry() runs the failed ones again.');
  END IF;
  PERFORM orchestrator._reopen(p.id, $3);
  PERFORM orchestrator._leave_plan(p.id);
  v_live := orchestrator._lock_live_rows(ARRAY(SELECT r.id FROM orchestrator._step_rows(p.id, v_steps) r WHERE r.live));
  FOR t IN SELECT r.* FROM orchestrator._step_rows(p.id, v_steps) r ORDER BY r.id LOOP
    PERFORM orchestrator._reset_row(t);
  END LOOP;
  PERFORM orchestrator._count_remaining(p.id);
  PERFORM orchestrator._go_on(p.id);
  RETURN (orchestrator._task(p.id)).state;
END
$$;

CREATE FUNCTION orchestrator._rerun_from(caller oid, task bigint, step text) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p orchestrator.task := orchestrator._lock_run($1, $2, 'rerun steps of');
BEGIN
  RETURN orchestrator._rerun(p, ARRAY[orchestrator._step_number(p, $3)], orchestrator._by($1, format('rerun_from "%s"', $3)));
END
$$;

CREATE FUNCTION orchestrator._restore(caller oid, task bigint, checkpoint text) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p orchestrator.task := orchestrator._lock_run($1, $2, 'restore');
  c orchestrator.checkpoint;
BEGIN
  SELECT x.* INTO c FROM orchestrator.checkpoint x WHERE x.task_id = p.id AND x.name = $3;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'task % has no checkpoint "%"', p.id, coalesce($3, 'null')
      USING ERRCODE = 'undefined_object', HINT = 'The table orchestrator.checkpoint names them.';
  END IF;
  IF c.context IS NULL THEN
    DELETE FROM orchestrator.run_context x WHERE x.task_id = coalesce(p.root_id, p.id);
  ELSE
    PERFORM orchestrator._keep_context(p, c.context);
  END IF;
  RETURN orchestrator._rerun(p, ARRAY(SELECT r.step FROM orchestrator._step_rows(p.id, NULL) r WHERE NOT c.steps ? r.name),
                             orchestrator._by($1, format('restore "%s"', $3)));
END
$$;

CREATE FUNCTION orchestrator._fork(caller oid, task bigint, step text) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p       orchestrator.task := orchestrator._lock_run($1, $2, 'fork');
  n       orchestrator.task;
  r       orchestrator.task;
  v_again int[] := orchestrator._closure(p, ARRAY[orchestrator._step_number(p, $3)]);
BEGIN
  IF p.step IS NOT NULL OR orchestrator._kind(p.definition) = ANY (orchestrator._call_kinds() || '{map,batch}'::text[]) THEN
    PERFORM orchestrator._refuse(p, 'fork', 'Only a workflow at the top of its tree can be forked.');
  END IF;
  PERFORM orchestrator._admit(p.owner, 0, 1);   -- the role's quota: under the lock of a run nobody waits for a queue
  n := p;
  n.id := orchestrator._next_id();
  n.created_at := orchestrator._now();
  n.started_at := NULL;
  n.finished_at := NULL;
  n.run_at := NULL;
  n.deadline := NULL;
  n.expire_at := n.created_at + (SELECT d.timeout FROM orchestrator.definition d WHERE d.id = n.definition AND d.kind = 'workflow');
  n.parent_id := NULL;
  n.root_id := NULL;
  n.state := 'waiting';
  n.held_state := NULL;
  n.held_by := NULL;
  n.epoch := 1;   -- its steps are not made in the order of its plan
  n.live := true;
  n.key := NULL;
  n.output := CASE WHEN orchestrator._kind(p.definition) = 'workflow' THEN NULL ELSE p.output END;
  n.error := NULL;
  n.compensation := NULL;
  n.resources := NULL;
  n.metadata := coalesce(p.metadata, '{}') || jsonb_build_object('forked_from', p.id);
  INSERT INTO orchestrator.task_live SELECT n.*;
  PERFORM orchestrator._tell(n, 'created');
  INSERT INTO orchestrator.added_step (task_id, step, owner, spec)
    SELECT n.id, a.step, a.owner, a.spec FROM orchestrator.added_step a WHERE a.task_id = p.id;
  INSERT INTO orchestrator.run_context (task_id, owner, value, ratio)
    SELECT n.id, c.owner, c.value, c.ratio FROM orchestrator.run_context c WHERE c.task_id = p.id;
  FOR r IN SELECT x.* FROM orchestrator._step_rows(p.id, NULL) x WHERE NOT x.live AND x.step <> ALL (v_again)
             AND (x.state IN ('completed', 'skipped') OR NOT orchestrator._fails_run(x, orchestrator._step_spec(p.definition, p.id, x.step)))
           ORDER BY x.id LOOP
    r.id := orchestrator._next_id();
    r.parent_id := n.id;
    r.root_id := n.id;
    r.key := NULL;
    r.callbacks := NULL;
    r.compensation := NULL;
    r.remaining := CASE WHEN r.remaining IS NOT NULL THEN 0 END;
    PERFORM orchestrator._ensure_partition(r.id);
    INSERT INTO orchestrator.task_finished SELECT r.*;
  END LOOP;
  PERFORM orchestrator._trace(n, NULL, 0, 'forked', orchestrator._by($1, format('from task %s at "%s"', p.id, $3)));
  PERFORM orchestrator._count_remaining(n.id);
  PERFORM orchestrator._go_on(n.id);
  PERFORM orchestrator._admitted(false);
  RETURN n.id;
END
$$;

CREATE FUNCTION orchestrator._skip_step(caller oid, task bigint, step text, output jsonb, reason text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p        orchestrator.task := orchestrator._lock_run($1, $2, 'skip steps of');
  t        orchestrator.task;
  v_number int := orchestrator._step_number(p, $3);
  v_spec   jsonb := orchestrator._step_spec(p.definition, p.id, v_number);
BEGIN
  IF NOT p.live THEN
    PERFORM orchestrator._refuse(p, 'skip a step of', 'It is finished.');
  END IF;
  PERFORM orchestrator._check_input($4);
  SELECT r.* INTO t FROM orchestrator._step_rows(p.id, ARRAY[v_number]) r;
  IF NOT FOUND THEN
    t := orchestrator._new_step(p, v_number, v_spec, coalesce((v_spec ->> 'definition')::int, orchestrator._internal_definition(p.owner, 'wait')));
  ELSIF NOT t.live THEN
    PERFORM orchestrator._refuse(t, 'skip', 'A finished step stays as it is.');
  ELSE
    PERFORM orchestrator._lock_live_rows(ARRAY[t.id]);
    SELECT r.* INTO t FROM orchestrator._step_rows(p.id, ARRAY[v_number]) r;
    IF NOT t.live THEN
      PERFORM orchestrator._refuse(t, 'skip', 'It ended meanwhile.');
    ELSIF t.state = 'running' THEN
      PERFORM orchestrator._interrupt(t.id, t.epoch);
      t.epoch := t.epoch + 1;
    END IF;
    PERFORM orchestrator._cancel_below(t.id, orchestrator._by($1, 'the step above was skipped'));
  END IF;
  PERFORM orchestrator._leave_plan(p.id);
  PERFORM orchestrator._skip_row(t, $4, orchestrator._by($1, $5));
  PERFORM orchestrator._advance(p.id, ARRAY[v_number], 1);
END
$$;

-- Keep a signal and deliver it at once when the tree can be locked at once.
-- Not inside a step: two steps that signal each other's runs would deadlock.
CREATE FUNCTION orchestrator._send(caller oid, task bigint, name text, payload jsonb, verdict text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t        orchestrator.task;
  v_signal bigint;
BEGIN
  SELECT x.* INTO t FROM orchestrator.task x WHERE x.id = $2;
  IF NOT FOUND OR t.owner <> ALL (orchestrator._controlled_owners($1)) THEN
    RAISE EXCEPTION 'task % does not exist', coalesce($2::text, 'null')
      USING ERRCODE = 'undefined_object', HINT = 'A task that was enqueued by a transaction under way cannot be seen before it commits.';
  ELSIF NOT t.live THEN
    PERFORM orchestrator._refuse(t, 'signal', 'It is finished.');
  END IF;
  PERFORM orchestrator._require(coalesce($3, '') <> '' AND octet_length($3) <= 200, 'the name of a signal must have 1 to 200 bytes');
  PERFORM orchestrator._check_input($4);
  INSERT INTO orchestrator.signal (task_id, owner, name, payload, verdict, sent_by, sent_at)
    VALUES (t.id, t.owner, $3, coalesce($4, '{}'), $5, pg_get_userbyid($1), orchestrator._now())
    RETURNING id INTO v_signal;
  IF (orchestrator.current_task()).task_id IS NOT NULL OR NOT orchestrator._deliver_to(t.id, true) THEN
    UPDATE orchestrator.signal s SET undelivered = true WHERE s.id = v_signal;
    PERFORM orchestrator._due(orchestrator._now());
  END IF;
END
$$;

CREATE FUNCTION orchestrator._signal(caller oid, task bigint, name text, payload jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._send($1, $2, $3, $4, NULL);
END
$$;

CREATE FUNCTION orchestrator._approve(caller oid, task bigint, step text, payload jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require_wait($1, $2, $3);
  PERFORM orchestrator._send($1, $2, $3, $4, 'approved');
END
$$;

CREATE FUNCTION orchestrator._reject(caller oid, task bigint, step text, reason text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require_wait($1, $2, $3);
  PERFORM orchestrator._send($1, $2, $3, jsonb_strip_nulls(jsonb_build_object('reason', $4)), 'rejected');
END
$$;

-- A verdict needs a step that waits for one.
CREATE FUNCTION orchestrator._require_wait(caller oid, task bigint, step text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p        orchestrator.task := orchestrator._task($2);
  v_number int;
BEGIN
  IF p.id IS NULL OR p.owner <> ALL (orchestrator._controlled_owners($1)) OR NOT p.live THEN
    RETURN;   -- _send() says so
  END IF;
  v_number := orchestrator._step_number(p, $3);
  IF NOT orchestrator._step_spec(p.definition, p.id, v_number) ? 'wait_for' THEN
    RAISE EXCEPTION 'step "%" of task % does not wait for anybody', $3, $2
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only a step with wait_for can be approved or rejected.';
  ELSIF EXISTS (SELECT FROM orchestrator._step_rows(p.id, ARRAY[v_number]) r WHERE NOT r.live) THEN
    RAISE EXCEPTION 'step "%" of task % is finished', $3, $2 USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
END
$$;

CREATE FUNCTION orchestrator._add_steps(caller oid, task bigint, steps orchestrator.step_spec[], delay interval, token text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p orchestrator.task;
BEGIN
  IF $5 IS NOT NULL THEN
    PERFORM orchestrator._request_steps($1, $2, $5, to_jsonb($3), $4);
    RETURN;
  END IF;
  p := orchestrator._lock_task($1, $2, true);
  IF NOT p.live OR orchestrator._kind(p.definition) IN ('map', 'batch', 'wait') THEN
    PERFORM orchestrator._refuse(p, 'add steps to', 'Only a workflow or task that is not finished takes steps.');
  ELSIF p.remaining IS NULL THEN
    PERFORM orchestrator._refuse(p, 'add steps to', 'It has none of its own: its handler may call orchestrator.add_steps(steps).');
  END IF;
  PERFORM orchestrator._append_steps(p, to_jsonb($3), $4);
  PERFORM orchestrator._start_added(p.id);
END
$$;

-- Of add_steps() inside a step: what can be wrong is told there.
CREATE FUNCTION orchestrator._check_steps(caller oid, task bigint, steps jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p orchestrator.task := orchestrator._run_of(orchestrator._task($2));
BEGIN
  PERFORM orchestrator._compile_steps($1, coalesce(p.owner, orchestrator._owner($1)), 'task', $3,
    coalesce((SELECT d.step_names FROM orchestrator.definition d WHERE d.id = p.definition), '{}')
    || ARRAY(SELECT a.spec ->> 'name' FROM orchestrator.added_step a WHERE a.task_id = p.id ORDER BY a.step));
END
$$;

CREATE FUNCTION orchestrator._context(caller oid, task bigint) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t orchestrator.task := orchestrator._task($2);
BEGIN
  IF t.id IS NULL OR t.owner <> ALL (orchestrator._visible_owners_of($1)) THEN
    RAISE EXCEPTION 'task % does not exist', coalesce($2::text, 'null') USING ERRCODE = 'undefined_object';
  END IF;
  RETURN (SELECT c.value FROM orchestrator.run_context c WHERE c.task_id = coalesce(t.root_id, t.id));
END
$$;

CREATE FUNCTION orchestrator._set_context(caller oid, task bigint, value jsonb, token text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._check_input($3);
  IF $4 IS NOT NULL THEN
    PERFORM orchestrator._request($1, $2, $4, jsonb_build_object('verb', 'set_context', 'value', coalesce($3, 'null')));
    RETURN;
  END IF;
  PERFORM orchestrator._keep_context(orchestrator._lock_task($1, $2, false), coalesce($3, 'null'));
END
$$;

CREATE FUNCTION orchestrator._checkpoint(caller oid, task bigint, name text, context jsonb, token text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p orchestrator.task;
BEGIN
  PERFORM orchestrator._require_name('checkpoint', $3);
  PERFORM orchestrator._check_input($4);
  IF $5 IS NOT NULL THEN
    PERFORM orchestrator._request($1, $2, $5, jsonb_strip_nulls(jsonb_build_object('verb', 'checkpoint', 'name', $3)) || CASE WHEN $4 IS NULL THEN '{}' ELSE jsonb_build_object('context', $4) END);
    RETURN;
  END IF;
  p := orchestrator._lock_run($1, $2, 'checkpoint');
  IF $4 IS NOT NULL THEN
    PERFORM orchestrator._keep_context(p, $4);
  END IF;
  PERFORM orchestrator._keep_checkpoint(p, $3, NULL);
END
$$;

CREATE FUNCTION orchestrator._on_completion(caller oid, task bigint, definition text, input jsonb, endpoint text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t      orchestrator.task := orchestrator._lock_task($1, $2, true);
  v_call jsonb := jsonb_strip_nulls(jsonb_build_object('definition', $3, 'endpoint', $5)) || CASE WHEN $4 IS NULL THEN '{}' ELSE jsonb_build_object('input', $4) END;
  v_role oid := (SELECT o.role FROM orchestrator.owner o WHERE o.id = t.owner);
BEGIN
  PERFORM orchestrator._check_input($4);
  PERFORM orchestrator._require(num_nonnulls($3, $5) = 1, 'on_completion() takes a definition or an endpoint', 'Give one of them.');
  -- it must be one that the owner of the task may enqueue, or use
  IF $5 IS NULL THEN
    PERFORM orchestrator._resolve_definition(v_role, $3);
  ELSE
    PERFORM orchestrator._check_webhook_endpoint(v_role, $5);
  END IF;
  IF t.live THEN
    UPDATE orchestrator.task_live l SET callbacks = coalesce(l.callbacks, '[]') || v_call WHERE l.id = t.id;
  
    IF t.state = 'pending' THEN
      PERFORM orchestrator._ready(t.owner, t.queue, t.sort_key, t.parked_on);
    END IF;
  ELSE
    t.callbacks := jsonb_build_array(v_call);
    PERFORM orchestrator._call_back(t, true);
  END IF;
END
$$;

-- The task that a row asked for by options of enqueue becomes.
CREATE FUNCTION orchestrator._optioned(caller oid, name text, priority int, run_at timestamptz, delay interval, queue text,
    metadata jsonb, deadline timestamptz, traceparent text) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t     orchestrator.task;
  v_now timestamptz := orchestrator._now();
BEGIN
  PERFORM orchestrator._check_role($1);
  IF NOT coalesce(current_setting('orchestrator.superuser_tasks', true)::boolean, false)
     AND (SELECT a.rolsuper FROM pg_authid a WHERE a.oid = $1) THEN
    RAISE EXCEPTION 'tasks of superusers are not allowed in this server'
      USING ERRCODE = 'insufficient_privilege', HINT = 'Enqueue as an ordinary role, or set orchestrator.superuser_tasks = on.';
  END IF;
  PERFORM orchestrator._warn_of_copy();
  PERFORM orchestrator._require($4 IS NULL OR $5 IS NULL, 'run_at and delay cannot both be given');
  PERFORM orchestrator._require(isfinite(coalesce($4, v_now)), 'run_at must be finite');
  PERFORM orchestrator._require($8 > v_now, 'deadline is in the past', 'Give a deadline after the present time, or none.');
  PERFORM orchestrator._require($3 BETWEEN -1000000 AND 1000000, 'priority must be between -1000000 and 1000000');
  IF octet_length($2) > 200 OR octet_length($9) > 200 THEN
    RAISE EXCEPTION '% is longer than 200 bytes', CASE WHEN octet_length($2) > 200 THEN 'name' ELSE 'traceparent' END USING ERRCODE = 'program_limit_exceeded';
  END IF;
  t.name := $2;
  t.priority := $3;
  t.run_at := coalesce($4, v_now + $5);
  t.run_at := CASE WHEN t.run_at > v_now THEN t.run_at END;
  t.queue := CASE WHEN $6 IS NOT NULL THEN orchestrator._resolve_queue($1, $6) END;
  t.metadata := $7;
  t.deadline := $8;
  t.traceparent := $9;
  RETURN t;
END
$$;

CREATE FUNCTION orchestrator._enqueue_workflow(caller oid, steps orchestrator.step_spec[], input jsonb, name text, priority int,
    run_at timestamptz, delay interval, key text, key_window interval, queue text, metadata jsonb, deadline timestamptz,
    traceparent text) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t            orchestrator.task;
  v_definition int;
  v_holder     bigint;
BEGIN
  PERFORM orchestrator._initialize();
  PERFORM orchestrator._require($8 IS NOT NULL OR $9 IS NULL, 'key_window needs a key', 'It is how long the key is held: give key, or leave it out.');
  t := orchestrator._optioned($1, $4, $5, $6, $7, $10, $11, $12, $13);
  v_definition := orchestrator._workflow_definition($1, $2);
  t.id := orchestrator._next_id();
  IF $8 IS NOT NULL THEN
    t.queue := coalesce(t.queue, 1);
    v_holder := orchestrator._take_key(orchestrator._owner($1), t.queue, $8, $9, t.id);
    IF v_holder <> t.id THEN
      RETURN v_holder;
    END IF;
    t.key := $8;
  END IF;
  t.run_at := greatest(t.run_at, orchestrator._admit(orchestrator._owner($1), coalesce(t.queue, 1), 1));
  t.id := orchestrator._place_root(t, orchestrator._owner($1), v_definition, $3, NULL);
  PERFORM orchestrator._admitted(false);
  RETURN t.id;
END
$$;

CREATE FUNCTION orchestrator._enqueue_batch(caller oid, definition text, inputs jsonb[], on_completion text, completion_input jsonb,
    name text, priority int, queue text, metadata jsonb, deadline timestamptz, traceparent text) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  b       orchestrator.task;
  i       orchestrator.task;
  r       record;
  v_now   timestamptz := orchestrator._now();
  v_later timestamptz;
BEGIN
  PERFORM orchestrator._require($3 IS NOT NULL, 'inputs must not be null');
  PERFORM orchestrator._check_input(u.input) FROM unnest($3) u(input);
  PERFORM orchestrator._check_input($5);
  SELECT x.* INTO r FROM orchestrator._resolve_definition($1, $2) x;
  b := orchestrator._optioned($1, coalesce($6, $2), $7, NULL, NULL, $8, $9, $10, $11);
  b.queue := coalesce(b.queue, r.queue);
  b.priority := coalesce(b.priority, r.priority - 10);   -- as in enqueue_many()
  b.remaining := cardinality($3);
  b.callbacks := CASE WHEN $4 IS NOT NULL THEN jsonb_build_array(jsonb_build_object('definition', $4)
    || CASE WHEN $5 IS NULL THEN '{}' ELSE jsonb_build_object('input', $5) END) END;
  IF $4 IS NOT NULL THEN
    PERFORM orchestrator._resolve_definition($1, $4);
  END IF;
  v_later := CASE WHEN cardinality($3) > 0 THEN orchestrator._admit(r.owner_id, b.queue, cardinality($3)) END;
  b.id := orchestrator._place_root(b, r.owner_id, orchestrator._internal_definition(r.owner_id, 'batch'),
                                   jsonb_build_object('definition', $2), NULL);
  SELECT l.* INTO b FROM orchestrator.task_live l WHERE l.id = b.id;
  IF r.kind = 'workflow' THEN
    FOR n IN 1 .. cardinality($3) LOOP
      i := orchestrator._new_step(b, NULL, '{}', r.definition_id);
      i.item := n - 1;
      i.input := coalesce($3[n], '{}');
      PERFORM orchestrator._begin_run(b, i);   -- runs are not deferred
    END LOOP;
  ELSE
    i := orchestrator._new_step(b, NULL, '{}', r.definition_id);
    i.queue := b.queue;
    i.run_at := v_later;
    i.state := CASE WHEN v_later IS NULL THEN 'pending' ELSE 'scheduled' END;
    i.expire_at := least(b.deadline, coalesce(v_later, v_now) + r.queue_timeout);
    i.sort_key := CASE WHEN v_later IS NULL THEN orchestrator._sort_key(v_now, b.priority) END;
    i.parked_on := orchestrator._remote_lane(i.definition, i.queue);
    PERFORM orchestrator._insert_items(i, ARRAY(SELECT coalesce(u.input, '{}') FROM unnest($3) WITH ORDINALITY u(input, place) ORDER BY u.place), 0);
    PERFORM orchestrator._due(i.expire_at), orchestrator._due(v_later);
  END IF;
  PERFORM orchestrator._admitted(false);
  PERFORM orchestrator._close_if_done(b.id);
  RETURN b.id;
END
$$;
