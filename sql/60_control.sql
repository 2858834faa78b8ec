-- Control: cancel, pause, resume, retry one task. The picture of the states
-- stands in chapter 50.
--
-- One and many (chapter 65) share the _..._rows functions: they take ids of
-- rows that are locked and in a state that allows the change.

CREATE FUNCTION orchestrator.cancel(task bigint, reason text DEFAULT NULL) RETURNS orchestrator.task_state
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.cancel(bigint, text) IS
  'Cancels a task; the step that runs it is stopped when this transaction commits. Returns the new state';

CREATE FUNCTION orchestrator.pause(task bigint, force boolean DEFAULT false) RETURNS orchestrator.task_state
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.pause(bigint, boolean) IS
  'Holds a task until resume(). One that runs finishes its attempt, and is held if that is to be repeated (the trace says pausing at once); with force it is stopped and the attempt not counted. Returns the new state';

CREATE FUNCTION orchestrator.resume(task bigint) RETURNS orchestrator.task_state
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.resume(bigint) IS
  'Lets a paused task go on, or one that runs without being held afterwards; returns the new state';

CREATE FUNCTION orchestrator.retry(task bigint, attempts int DEFAULT 1) RETURNS orchestrator.task_state
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.retry(bigint, int) IS
  'Gives a failed or cancelled task more attempts, and runs it again; returns the new state';

-- Lock a task that the caller may control, wherever it is, and the top of its
-- tree before it; with yield, stop an executor from running it in the fast
-- lane first. A task of somebody else does not exist for the caller, and is not
-- touched. One of the caller's own batch in the fast lane has no row: the batch
-- is run again with its rows.
CREATE FUNCTION orchestrator._lock_task(caller oid, task bigint, yield boolean) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t       orchestrator.task;
  v_owner int;
  v_root  bigint;
BEGIN
  SELECT x.owner, x.root_id INTO v_owner, v_root FROM orchestrator.task x WHERE x.id = $2;
  IF v_owner IS NULL THEN
    PERFORM orchestrator._yield_own($2);
  END IF;
  IF v_owner IS NULL OR v_owner <> ALL (orchestrator._controlled_owners($1)) THEN
    RAISE EXCEPTION 'task % does not exist', coalesce($2::text, 'null')
      USING ERRCODE = 'undefined_object', HINT = 'A task that was enqueued by a transaction under way cannot be seen before it commits.';
  END IF;
  IF $3 THEN
    PERFORM orchestrator._yield($2);
  END IF;
  IF v_root IS NOT NULL THEN
    PERFORM orchestrator._lock_root(v_root, false);
  END IF;
  -- It may move between the two while we look.
  FOR i IN 1 .. 10 LOOP
    SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = $2 FOR UPDATE;
    EXIT WHEN FOUND;
    SELECT f.* INTO t FROM orchestrator.task_finished f WHERE f.id = $2 FOR UPDATE;
    EXIT WHEN FOUND;
  END LOOP;
  IF t.id IS NULL AND NOT EXISTS (SELECT FROM orchestrator.task x WHERE x.id = $2) THEN
    RAISE EXCEPTION 'task % does not exist', $2   -- a step whose run began anew
      USING ERRCODE = 'undefined_object';
  ELSIF t.id IS NULL THEN
    RAISE EXCEPTION 'task % changes too fast to be locked', $2 USING ERRCODE = 'lock_not_available', HINT = 'Try again.';
  END IF;
  RETURN t;
END
$$;

-- Refuse a transition.
CREATE FUNCTION orchestrator._refuse(t orchestrator.task, verb text, hint text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'cannot % task %: it is %', $2, t.id, t.state
    USING ERRCODE = 'object_not_in_prerequisite_state', HINT = $3;
END
$$;

-- Who did it, and why: the detail of a trace.
CREATE FUNCTION orchestrator._by(caller oid, reason text DEFAULT NULL) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN jsonb_strip_nulls(jsonb_build_object('by', pg_get_userbyid($1), 'reason', left($2, 1000)));
END
$$;

CREATE FUNCTION orchestrator._cancel(caller oid, task bigint, reason text) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t orchestrator.task := orchestrator._lock_task($1, $2, true);
BEGIN
  IF t.state IN ('completed', 'failed', 'skipped') THEN
    PERFORM orchestrator._refuse(t, 'cancel', 'A finished task stays as it is.');
  ELSIF t.state <> 'cancelled' THEN
    PERFORM orchestrator._cancel_rows(ARRAY[t.id], orchestrator._by($1, $3));
  END IF;
  RETURN 'cancelled';
END
$$;

CREATE FUNCTION orchestrator._pause(caller oid, task bigint, force boolean) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t orchestrator.task := orchestrator._lock_task($1, $2, coalesce($3, false));
BEGIN
  IF NOT t.live THEN
    PERFORM orchestrator._refuse(t, 'pause', 'Only a task that is not finished can be paused.');
  ELSIF t.state <> 'paused' THEN
    PERFORM orchestrator._pause_rows(ARRAY[t.id], coalesce($3, false), orchestrator._by($1));
  END IF;
  RETURN (SELECT l.state FROM orchestrator.task_live l WHERE l.id = t.id);
END
$$;

CREATE FUNCTION orchestrator._resume(caller oid, task bigint) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t orchestrator.task := orchestrator._lock_task($1, $2, false);
BEGIN
  IF NOT t.live THEN
    PERFORM orchestrator._refuse(t, 'resume', CASE WHEN t.state IN ('failed', 'cancelled') THEN 'Use orchestrator.retry() to run it again.'
                                                   ELSE 'Only a paused task can be resumed.' END);
  ELSIF t.held_state IS NOT NULL THEN
    PERFORM orchestrator._resume_rows(ARRAY[t.id], orchestrator._by($1));
  END IF;
  RETURN (SELECT l.state FROM orchestrator.task_live l WHERE l.id = t.id);
END
$$;

CREATE FUNCTION orchestrator._retry(caller oid, task bigint, attempts int) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t orchestrator.task := orchestrator._lock_task($1, $2, false);
BEGIN
  PERFORM orchestrator._require($3 IS NOT NULL AND $3 BETWEEN 1 AND 10000, 'attempts must be between 1 and 10000');
  IF t.state NOT IN ('failed', 'cancelled') THEN
    PERFORM orchestrator._refuse(t, 'retry', 'Only a failed or cancelled task can be retried.');
  ELSIF t.step IS NOT NULL THEN
    PERFORM orchestrator._refuse(t, 'retry', format('It is a step: use orchestrator.retry(%s), or orchestrator.rerun_from(%1$s, step).', t.root_id));
  ELSIF orchestrator._is_undone(t) THEN
    PERFORM orchestrator._refuse(t, 'retry', 'What it did was undone: enqueue it anew.');
  END IF;
  PERFORM orchestrator._retry_rows(ARRAY[t.id], $3, orchestrator._by($1));
  RETURN (SELECT l.state FROM orchestrator.task_live l WHERE l.id = t.id);
END
$$;

-- Whether a task was undone, or is being; of an item, with its batch.
CREATE FUNCTION orchestrator._is_undone(t orchestrator.task) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  RETURN t.compensation IS NOT NULL
      OR t.step IS NULL AND t.parent_id IS NOT NULL
         AND EXISTS (SELECT FROM orchestrator.task_finished f WHERE f.id = t.parent_id AND f.compensation IS NOT NULL);
END
$$;

-- What a cancelled task looks like.
CREATE FUNCTION orchestrator._cancelled(t orchestrator.task, at timestamptz, detail jsonb) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  t.epoch := t.epoch + (t.state = 'running')::int;
  t.remaining := orchestrator._final_remaining(t);
  t.state := 'cancelled';
  t.held_state := NULL;
  t.held_by := NULL;
  t.sort_key := NULL;
  t.expire_at := NULL;
  t.live := false;
  t.finished_at := $2;
  t.error := jsonb_strip_nulls(jsonb_build_object('sqlstate', 'OR001', 'message', format('cancelled by "%s"', $3 ->> 'by'),
                                                  'detail', $3 ->> 'reason'));
  RETURN t;
END
$$;

-- Cancel locked live tasks and all that is below them; returns how many of the
-- former. What they were steps of goes on without them.
CREATE FUNCTION orchestrator._cancel_rows(ids bigint[], detail jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_runs  bigint[] := ARRAY(SELECT l.id FROM orchestrator.task_live l WHERE l.id = ANY ($1) AND l.remaining IS NOT NULL);
  v_below bigint[] := '{}';
  v_tops  bigint[];
  t       orchestrator.task;
BEGIN
  IF v_runs <> '{}' THEN
    v_below := orchestrator._lock_live_rows(orchestrator._live_below(v_runs));
  END IF;
  v_tops := ARRAY(SELECT l.id FROM orchestrator.task_live l
                  WHERE l.id = ANY ($1) AND (l.parent_id IS NOT NULL AND l.parent_id <> ALL ($1 || v_below) OR l.parent_id IS NULL AND l.remaining IS NOT NULL)
                  ORDER BY l.id);
  PERFORM orchestrator._cancel_locked($1 || v_below, $2);
  FOR t IN SELECT f.* FROM orchestrator.task_finished f WHERE f.id = ANY (v_tops) ORDER BY f.id LOOP
    IF t.remaining IS NOT NULL THEN
      PERFORM orchestrator._compensate(t);
    END IF;
    IF t.parent_id IS NOT NULL THEN
      PERFORM orchestrator._step_ended(t);
    END IF;
  END LOOP;
  RETURN cardinality($1);
END
$$;

-- The rows alone.
CREATE FUNCTION orchestrator._cancel_locked(ids bigint[], detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_calls bigint[];
  t       orchestrator.task;
BEGIN
  PERFORM orchestrator._ensure_partition(r.n * 1000000) FROM (SELECT DISTINCT i / 1000000 AS n FROM unnest($1) i) r;
  WITH gone AS (
    DELETE FROM orchestrator.task_live l WHERE l.id = ANY ($1) RETURNING l.*
  ), traced AS (
    INSERT INTO orchestrator.trace_log (task_id, at, owner, attempt, epoch, event, detail)
      SELECT g.id, e.at, g.owner, g.attempt, g.epoch, e.event, e.detail
      FROM gone g
      CROSS JOIN LATERAL (VALUES (1, g.started_at, 'started', NULL::jsonb), (2, v_now, 'cancelled', $2)) e(place, at, event, detail)
      WHERE e.event = 'cancelled' OR g.state = 'running'
      ORDER BY g.id, e.place
  ), moved AS (
    INSERT INTO orchestrator.task_finished
      SELECT f.* FROM gone g CROSS JOIN LATERAL orchestrator._cancelled(ROW(g.*)::orchestrator.task, v_now, $2) f
  ), told AS (
    SELECT g.id, g.callbacks IS NOT NULL OR d.failure_callback IS NOT NULL AS calls, orchestrator._emit(g.id, g.root_id, g.parent_id, 'cancelled', 'cancelled', NULL, g.attempt, d.notify <> 'off'),
           CASE g.state WHEN 'running' THEN orchestrator._interrupt(g.id, g.epoch)
                        WHEN 'pending' THEN orchestrator._return_turn(g.owner, g.queue, g.input, g.priority) END,
           orchestrator._count(g.owner, g.queue, g.definition, 'cancelled')
    FROM gone g LEFT JOIN orchestrator.definition d ON d.id = g.definition
    OFFSET 0
  )
  SELECT array_agg(told.id) FILTER (WHERE told.calls) INTO v_calls FROM told;
  FOR t IN SELECT f.* FROM orchestrator.task_finished f WHERE f.id = ANY (v_calls) ORDER BY f.id LOOP
    PERFORM orchestrator._call_back(t);
  END LOOP;
END
$$;

-- Pause locked live tasks. One that runs is marked, or with force stopped; its
-- attempt is not counted then.
CREATE FUNCTION orchestrator._pause_rows(ids bigint[], force boolean, detail jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_run bigint;
BEGIN
  -- what is below a run is held with it, unless it was paused by itself
  FOR v_run IN SELECT l.id FROM orchestrator.task_live l WHERE l.id = ANY ($1) AND l.remaining IS NOT NULL AND l.state <> 'paused' ORDER BY 1 LOOP
    PERFORM orchestrator._pause_locked(orchestrator._lock_live_rows(orchestrator._live_below(ARRAY[v_run])), $2, $3, v_run);
  END LOOP;
  RETURN orchestrator._pause_locked($1, $2, $3, NULL);
END
$$;

-- Mark those of locked tasks that run ('pausing'): each is paused when its
-- attempt ends, if that is to be repeated. Or take the marks off ('resumed').
-- They go on meanwhile, and only the trace says so.
CREATE FUNCTION orchestrator._mark_running(ids bigint[], event text, at timestamptz, detail jsonb, held_by bigint) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_count bigint;
BEGIN
  WITH marked AS (
    UPDATE orchestrator.task_live l
      SET held_state = (CASE $2 WHEN 'pausing' THEN 'paused' END)::orchestrator.task_state, held_by = $5, changed_at = $3
      WHERE l.id = ANY ($1) AND l.state = 'running' AND (l.held_state IS NULL) = ($2 = 'pausing')
      RETURNING l.id, l.owner, l.attempt, l.epoch
  )
  INSERT INTO orchestrator.trace_log (task_id, at, owner, attempt, epoch, event, detail)
    SELECT m.id, $3, m.owner, m.attempt, m.epoch, $2, $4 FROM marked m ORDER BY m.id;
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END
$$;

-- The rows alone. An outside call that is stopped may have arrived: its attempt
-- is spent, and it may have another.
CREATE FUNCTION orchestrator._pause_locked(ids bigint[], force boolean, detail jsonb, held_by bigint) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_count bigint;
BEGIN
  PERFORM orchestrator._ensure_partition(r.n * 1000000) FROM (SELECT DISTINCT i / 1000000 AS n FROM unnest($1) i) r;
  v_count := CASE WHEN $2 THEN 0 ELSE orchestrator._mark_running($1, 'pausing', v_now, $3, $4) END;
  WITH old AS MATERIALIZED (
    SELECT l.*, l.state = 'running' AND coalesce(l.parked_on < orchestrator._courier_lane(0), false) AS is_spent
    FROM orchestrator.task_live l WHERE l.id = ANY ($1) AND l.state <> 'paused' AND (l.state <> 'running' OR $2)
  ), traced AS (
    INSERT INTO orchestrator.trace_log (task_id, at, owner, attempt, epoch, event, detail)
      SELECT o.id, e.at, o.owner, o.attempt, o.epoch, e.event, e.detail
      FROM old o
      CROSS JOIN LATERAL (VALUES (1, o.started_at, 'started', NULL::jsonb),
                                 (2, v_now, 'paused', $3)) e(place, at, event, detail)
      WHERE e.event = 'paused' OR o.state = 'running'
      ORDER BY o.id, e.place
  ), held AS (
    UPDATE orchestrator.task_live l
      SET state = 'paused', held_state = CASE o.state WHEN 'running' THEN 'pending' ELSE o.state END,
          attempt = o.attempt - (o.state = 'running' AND NOT o.is_spent)::int, epoch = o.epoch + (o.state = 'running')::int,
          max_attempts = CASE WHEN o.is_spent THEN greatest(o.max_attempts, o.attempt + 1) ELSE o.max_attempts END,
          started_at = CASE o.state WHEN 'running' THEN NULL ELSE o.started_at END,
          worker = NULL, sort_key = NULL, expire_at = o.deadline, held_by = $4, changed_at = v_now,
          -- when its wait ends, for resume()
          run_at = CASE o.state WHEN 'waiting' THEN o.expire_at ELSE o.run_at END
      FROM old o WHERE l.id = o.id
      RETURNING l.id, l.root_id, l.parent_id, l.attempt, l.definition, l.owner, l.queue, l.input, l.priority, o.state AS old_state, o.epoch AS old_epoch
  ), told AS (
    SELECT orchestrator._emit(h.id, h.root_id, h.parent_id, 'paused', 'paused', NULL, h.attempt, d.notify <> 'off'),
           orchestrator._waits(h.owner, h.queue, 1),
           CASE h.old_state WHEN 'running' THEN orchestrator._interrupt(h.id, h.old_epoch)
                            WHEN 'pending' THEN orchestrator._return_turn(h.owner, h.queue, h.input, h.priority) END
    FROM held h LEFT JOIN orchestrator.definition d ON d.id = h.definition
    OFFSET 0
  )
  SELECT v_count + count(*) INTO v_count FROM told;
  RETURN v_count;
END
$$;

-- Let locked tasks go on that are paused, or marked to be.
CREATE FUNCTION orchestrator._resume_rows(ids bigint[], detail jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_run   bigint;
  v_held  bigint;
  v_count bigint;
BEGIN
  -- what is below a run was held by it, or with it by a run above
  FOR v_run, v_held IN SELECT l.id, l.held_by FROM orchestrator.task_live l WHERE l.id = ANY ($1) AND l.remaining IS NOT NULL ORDER BY 1 LOOP
    PERFORM orchestrator._resume_locked(ARRAY(
      SELECT l.id FROM orchestrator.task_live l
      WHERE l.id = ANY (orchestrator._lock_live_rows(orchestrator._live_below(ARRAY[v_run]))) AND l.held_by IN (v_run, v_held)), $2);
  END LOOP;
  v_count := orchestrator._resume_locked($1, $2);
  -- signals that came meanwhile
  FOR v_run IN SELECT l.id FROM orchestrator.task_live l WHERE l.id = ANY ($1) AND l.state = 'waiting' ORDER BY 1 LOOP
    PERFORM orchestrator._deliver_to(v_run, false);
    PERFORM orchestrator._close_if_done(v_run);
  END LOOP;
  RETURN v_count;
END
$$;

-- The rows alone.
CREATE FUNCTION orchestrator._resume_locked(ids bigint[], detail jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_count bigint;
BEGIN
  PERFORM orchestrator._ensure_partition(r.n * 1000000) FROM (SELECT DISTINCT i / 1000000 AS n FROM unnest($1) i) r;
  v_count := orchestrator._mark_running($1, 'resumed', v_now, $2, NULL);
  WITH freed AS (
    UPDATE orchestrator.task_live l
      SET state = n.state, held_state = NULL, held_by = NULL, changed_at = v_now, parked_on = CASE WHEN l.parked_on < 0 THEN l.parked_on END, run_at = CASE n.state WHEN 'waiting' THEN NULL ELSE l.run_at END, sort_key = CASE n.state WHEN 'pending' THEN orchestrator._ready_key(l.owner, l.queue, l.input, v_now, l.priority) END,
          expire_at = CASE n.state WHEN 'waiting' THEN least(l.deadline, l.run_at)
                        ELSE least(l.deadline, greatest(v_now, l.run_at) + d.queue_timeout) END
      FROM orchestrator.task_live o
      LEFT JOIN orchestrator.definition d ON d.id = o.definition
      CROSS JOIN LATERAL (SELECT CASE WHEN o.held_state = 'scheduled' AND o.run_at <= v_now AND o.remaining IS NULL THEN 'pending'
                                      ELSE o.held_state END AS state) n
      WHERE l.id = o.id AND o.id = ANY ($1) AND o.state = 'paused'
      RETURNING l.*, d.notify <> 'off' AS notify
  ), traced AS (
    INSERT INTO orchestrator.trace_log (task_id, at, owner, attempt, epoch, event, detail)
      SELECT f.id, v_now, f.owner, f.attempt, f.epoch, 'resumed', $2 FROM freed f ORDER BY f.id
  ), told AS (
    SELECT orchestrator._emit(f.id, f.root_id, f.parent_id, 'resumed', f.state, NULL, f.attempt, f.notify),
           orchestrator._due(f.expire_at), CASE f.state WHEN 'scheduled' THEN orchestrator._due(f.run_at) END,
           CASE f.state WHEN 'scheduled' THEN orchestrator._waits(f.owner, f.queue, 1) END,
           CASE f.state WHEN 'pending' THEN orchestrator._ready(f.owner, f.queue, f.sort_key, f.parked_on) END
    FROM freed f
    OFFSET 0
  )
  SELECT v_count + count(*) INTO v_count FROM told;
  RETURN v_count;
END
$$;

-- What a retried task looks like. One that was cancelled before its time waits
-- for it again; a deadline that passed no longer counts.
CREATE FUNCTION orchestrator._retried(t orchestrator.task, at timestamptz, attempts int) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  t.run_at := CASE WHEN t.run_at > $2 THEN t.run_at END;
  t.state := CASE WHEN t.run_at IS NULL THEN 'pending' ELSE 'scheduled' END;
  t.live := true;
  t.max_attempts := t.attempt + $3;
  t.epoch := t.epoch + 1;
  t.deadline := CASE WHEN t.deadline > $2 THEN t.deadline END;
  t.expire_at := least(t.deadline, coalesce(t.run_at, $2) + (SELECT d.queue_timeout FROM orchestrator.definition d WHERE d.id = t.definition));
  t.finished_at := NULL;
  t.changed_at := $2;
  t.worker := NULL;
  t.parked_on := orchestrator._remote_lane(t.definition, t.queue);
  t.sort_key := CASE WHEN t.run_at IS NULL THEN orchestrator._ready_key(t.owner, t.queue, t.input, $2, t.priority) END;
  RETURN t;
END
$$;

-- Bring locked failed or cancelled tasks back to life. Steps are not among
-- them; of a run, the steps it failed for run again. A batch whose items do
-- lives again with them.
CREATE FUNCTION orchestrator._retry_rows(ids bigint[], attempts int, detail jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_runs    bigint[];
  v_run     bigint;
  v_batch   bigint;
  v_batches bigint[] := '{}';
  v_count   bigint;
BEGIN
  v_runs := ARRAY(SELECT f.id FROM orchestrator.task_finished f WHERE f.id = ANY ($1) AND f.remaining IS NOT NULL ORDER BY 1);
  FOREACH v_run IN ARRAY v_runs LOOP
    SELECT f.parent_id INTO v_batch FROM orchestrator.task_finished f WHERE f.id = v_run;
    CONTINUE WHEN NOT FOUND;   -- it lives again with its batch
    IF v_batch IS NOT NULL THEN
      -- first: the run may end at once
      PERFORM orchestrator._reopen(v_batch, $3);
      PERFORM orchestrator._count_remaining(v_batch);
      UPDATE orchestrator.task_live l SET remaining = l.remaining + 1 WHERE l.id = v_batch;
    END IF;
    PERFORM orchestrator._revive_run(v_run, $2, $3);
  END LOOP;
  v_batches := ARRAY(SELECT DISTINCT f.parent_id FROM orchestrator.task_finished f
                     WHERE f.id = ANY ($1) AND f.remaining IS NULL AND f.parent_id IS NOT NULL ORDER BY 1);
  v_count := cardinality(v_runs) + orchestrator._retry_locked(ARRAY(SELECT i FROM unnest($1) i WHERE i <> ALL (v_runs)), $2, $3);
  FOREACH v_batch IN ARRAY v_batches LOOP
    PERFORM orchestrator._reopen(v_batch, $3);
    PERFORM orchestrator._count_remaining(v_batch);
  END LOOP;
  RETURN v_count;
END
$$;

-- The rows alone.
CREATE FUNCTION orchestrator._retry_locked(ids bigint[], attempts int, detail jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_count bigint;
BEGIN
  -- by hand, so it is held against the quota of who is to run them
  PERFORM orchestrator._admit(o.owner, 0, o.n::int)
    FROM (SELECT f.owner, count(*) AS n FROM orchestrator.task_finished f WHERE f.id = ANY ($1) GROUP BY 1 ORDER BY 1) o;
  WITH gone AS (
    DELETE FROM orchestrator.task_finished f WHERE f.id = ANY ($1) RETURNING f.*
  ), revived AS (
    INSERT INTO orchestrator.task_live
      SELECT n.* FROM gone g CROSS JOIN LATERAL orchestrator._retried(ROW(g.*)::orchestrator.task, v_now, $2) n
      RETURNING *
  ), traced AS (
    INSERT INTO orchestrator.trace_log (task_id, at, owner, attempt, epoch, event, detail)
      SELECT r.id, v_now, r.owner, r.attempt, r.epoch, 'retrying', $3 FROM revived r ORDER BY r.id
  ), told AS (
    SELECT orchestrator._emit(r.id, r.root_id, r.parent_id, 'retrying', r.state, NULL, r.attempt, d.notify <> 'off'),
           orchestrator._ready(r.owner, r.queue, r.sort_key, r.parked_on), orchestrator._due(r.expire_at), orchestrator._due(r.run_at),
           CASE r.state WHEN 'scheduled' THEN orchestrator._waits(r.owner, r.queue, 1) END
    FROM revived r LEFT JOIN orchestrator.definition d ON d.id = r.definition
    OFFSET 0
  )
  SELECT count(*) INTO v_count FROM told;
  PERFORM orchestrator._admitted(false);
  RETURN v_count;
END
$$;
