-- Settle: completed, failed, retried, given back, lost.
--
--                     enqueue(run_at)          enqueue()
--                            |                     |
--                            v       due           v      claim
--                       +-----------+ ------> +---------+ ------> +---------+  settled  +-----------+
--                       | scheduled |         | pending |         | running | --------> | completed |
--                       +-----------+ <-----. +---------+ <-----. +---------+           +-----------+
--                          |     ^    retry  \   |   ^    released   |  |  |
--                          |     |            `--|---|---------------'  |  |  failed for good
--                    pause |     | resume        |   | resume           |  `-----------+
--                          v     |         pause v   |                  |              v
--                       +----------------------------+  pause(force)    |         +--------+
--                       |           paused           | <----------------+         | failed |
--                       +----------------------------+                  |         +--------+
--                                                                       | cancel    ^  | retry()
--   cancel: scheduled, pending, running, waiting, paused -------------> v           |  v
--   expire: all of these but running become failed                 +-----------+    |  pending
--                                                                  | cancelled | ---+--> (retry())
--   waiting (for children, signals) is entered and left by steps,  +-----------+
--   is paused and resumed like pending; skipped is final
--
-- A row in the state running is the business of whoever holds its epoch; a
-- report with another epoch, or of a task that is not running, is stale.

-- A step succeeded. False: the report is stale. Locks the task. requests: what
-- the step asked of its run while it ran (src/request.c).
CREATE FUNCTION orchestrator._settle_completed(task bigint, epoch int, output jsonb, attempt_started timestamptz,
    resources jsonb, requests jsonb DEFAULT NULL) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t     orchestrator.task;
  v_run bigint;
BEGIN
  t := orchestrator._lock_running($1, $2);
  IF t.id IS NULL THEN
    RETURN false;
  END IF;
  t.state := 'completed';
  t.held_state := NULL;
  t.output := $3;
  t.error := NULL;   -- of an attempt before; the trace keeps it
  t.started_at := coalesce($4, t.started_at);
  t.resources := coalesce($5, t.resources);
  IF $6 IS NOT NULL THEN
    BEGIN
      t := orchestrator._apply_requests(t, $6);
    EXCEPTION WHEN SQLSTATE 'OR007' OR data_exception OR program_limit_exceeded OR object_not_in_prerequisite_state OR undefined_object
                OR undefined_function OR invalid_function_definition OR insufficient_privilege OR ambiguous_alias THEN
      -- what it asked for cannot be: it fails, for good
      t.error := jsonb_build_object('sqlstate', SQLSTATE, 'message', SQLERRM);
      t.output := NULL;
      PERFORM orchestrator._trace(t, t.started_at, t.attempt, 'started', NULL);
      PERFORM orchestrator._fail(t, t.error);
      RETURN true;
    END;
  END IF;
  IF t.remaining > 0 THEN
    PERFORM orchestrator._await_steps(t);
    PERFORM orchestrator._apply_checkpoints(t, $6);
    RETURN true;
  END IF;
  v_run := CASE WHEN $6 IS NOT NULL THEN (orchestrator._run_of(t)).id END;
  PERFORM orchestrator._tell(t, 'completed');
  PERFORM orchestrator._finish(t);
  IF v_run IS NOT NULL THEN
    PERFORM orchestrator._apply_checkpoints(t, $6);
    PERFORM orchestrator._start_added(v_run);
  END IF;
  RETURN true;
END
$$;

-- A task that added steps of its own: it is completed when they are.
CREATE FUNCTION orchestrator._await_steps(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  PERFORM orchestrator._trace(t, t.started_at, t.attempt, 'started', NULL);
  UPDATE orchestrator.task_live l
    SET state = (CASE l.held_state WHEN 'paused' THEN 'paused' ELSE 'waiting' END)::orchestrator.task_state,   -- pause() of it while it ran
        held_state = (CASE l.held_state WHEN 'paused' THEN 'waiting' END)::orchestrator.task_state, epoch = l.epoch + 1, worker = NULL, output = t.output, error = NULL, sort_key = NULL,
        started_at = t.started_at, resources = t.resources, remaining = t.remaining, expire_at = l.deadline
    WHERE l.id = t.id RETURNING l.* INTO t;
  IF t.state = 'paused' THEN
    PERFORM orchestrator._trace(t, NULL, t.attempt, 'paused', NULL);
    PERFORM orchestrator._tell(t, 'paused');
  END IF;
  PERFORM orchestrator._due(t.deadline);
  PERFORM orchestrator._start_added(t.id);
END
$$;

-- Lock the running task of a report, after the top of its tree; nulls: the
-- report is stale.
CREATE FUNCTION orchestrator._lock_running(task bigint, epoch int) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t      orchestrator.task;
  v_root bigint;
BEGIN
  SELECT l.root_id INTO v_root FROM orchestrator.task_live l WHERE l.id = $1;
  IF v_root IS NOT NULL THEN
    PERFORM orchestrator._lock_root(v_root, false);
  END IF;
  SELECT l.* INTO t FROM orchestrator.task_live l
    WHERE l.id = $1 AND l.state::text = 'running' AND l.epoch = $2 FOR UPDATE;   -- as text: chapter 40
  RETURN t;
END
$$;

-- A step did not succeed: outcome is error, timeout, lost (its process died)
-- or released (given back: the attempt is not charged). Returns the state the
-- task has now; null: the report is stale. Locks the task.
CREATE FUNCTION orchestrator._settle_failed(task bigint, epoch int, outcome text, error jsonb,
    attempt_started timestamptz, resources jsonb) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t orchestrator.task;
BEGIN
  t := orchestrator._lock_running($1, $2);
  IF t.id IS NULL THEN
    RETURN NULL;
  END IF;
  t.resources := coalesce($6, t.resources);
  IF $3 = 'released' THEN
    RETURN orchestrator._release(t, $5);
  END IF;
  t.started_at := coalesce($5, t.started_at);
  RETURN orchestrator._end_attempt(t, $3, $4);
END
$$;

-- Give a task back as if it had not been claimed, at its old place.
CREATE FUNCTION orchestrator._release(t orchestrator.task, attempt_started timestamptz) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF $2 IS NOT NULL THEN
    PERFORM orchestrator._trace(t, $2, t.attempt, 'started', NULL);
  END IF;
  PERFORM orchestrator._trace(t, NULL, t.attempt, 'released', NULL);
  t.attempt := t.attempt - 1;
  t.started_at := NULL;
  t.state := 'pending';
  RETURN orchestrator._requeue(t);
END
$$;

-- An attempt of a locked task ended badly: retry it if its definition says so.
CREATE FUNCTION orchestrator._end_attempt(t orchestrator.task, outcome text, error jsonb) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d        orchestrator.definition;
  v_now    timestamptz;
  v_delay  interval;
  v_reason text;
  v_detail jsonb;
BEGIN
  PERFORM orchestrator._trace(t, t.started_at, t.attempt, 'started', NULL);
  v_now := orchestrator._now();   -- what follows is traced after it
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = t.definition;
  -- the loss of an executor says little of the step; two in a row do
  v_delay := CASE WHEN $2 = 'lost' AND $3 IS NULL AND t.error ->> 'sqlstate' IS DISTINCT FROM 'OR003' THEN interval '0'
                  ELSE orchestrator._retry_delay(d, t.attempt) END;
  t.error := coalesce($3, '{}') || CASE WHEN $3 ? 'sqlstate' THEN '{}' ELSE CASE $2
    WHEN 'lost' THEN '{"sqlstate": "OR003", "message": "the worker process died while it ran the step"}'::jsonb
    WHEN 'timeout' THEN jsonb_build_object('sqlstate', 'OR004', 'message', format('the step ran longer than %s', d.timeout))
    ELSE '{"sqlstate": "XX000", "message": "unknown error"}'::jsonb END END;
  v_detail := t.error || jsonb_build_object('outcome', $2)
    || jsonb_strip_nulls(jsonb_build_object('duration_ms', round(extract(epoch FROM v_now - t.started_at) * 1000, 3)));

  IF jsonb_typeof(t.error -> 'retry_after') = 'number' THEN   -- seconds that an outside call was told to wait
    v_delay := greatest(v_delay, make_interval(secs => least((t.error ->> 'retry_after')::float8, extract(epoch FROM d.max_retry_delay))));
  END IF;
  v_reason := CASE
    WHEN t.attempt >= t.max_attempts THEN 'max_attempts'
    WHEN $2 = 'timeout' AND d.timeout_policy IN ('fail', 'fail_workflow') THEN 'timeout_policy'
    WHEN $2 = 'error' AND t.error -> 'retry' = 'false' THEN 'item_error'
    WHEN $2 = 'error' AND (t.error ->> 'sqlstate' = ANY (d.never_retry) OR left(t.error ->> 'sqlstate', 2) = ANY (d.never_retry)) THEN 'never_retry'
    WHEN CASE WHEN v_now + v_delay > t.created_at + d.retry_budget THEN v_now + v_delay > orchestrator._budget_from(t) + d.retry_budget END THEN 'retry_budget'   -- reads the trace
    WHEN v_now + v_delay >= t.deadline THEN 'deadline'
  END;
  IF v_reason IS NOT NULL THEN
    PERFORM orchestrator._fail(t, v_detail || jsonb_build_object('final', v_reason));
    RETURN 'failed';
  END IF;

  t.priority := greatest(t.priority::bigint - d.retry_priority_step, -1000000);
  IF v_delay > interval '0' THEN
    t.state := 'scheduled';
    t.run_at := v_now + v_delay;
    v_detail := v_detail || jsonb_build_object('run_at', t.run_at);
  ELSE
    t.state := 'pending';
    t.run_at := NULL;
  END IF;
  t.sort_key := CASE t.state WHEN 'pending' THEN orchestrator._ready_key(t.owner, t.queue, t.input, v_now, t.priority) END;
  t.expire_at := least(t.deadline, coalesce(t.run_at, v_now) + d.queue_timeout);
  PERFORM orchestrator._trace(t, v_now, t.attempt, 'retrying', v_detail);
  PERFORM orchestrator._tell(t, 'retrying');
  PERFORM orchestrator._count(t.owner, t.queue, t.definition, 'retried');
  RETURN orchestrator._requeue(t);
END
$$;

-- Since when the retry_budget of a task counts: it was enqueued, or given more
-- attempts by hand.
CREATE FUNCTION orchestrator._budget_from(t orchestrator.task) RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  RETURN coalesce((SELECT max(w.at) FROM orchestrator.trace_log w
                   WHERE w.task_id = t.id AND w.event = 'retrying' AND NOT w.detail ? 'outcome'), t.created_at);
END
$$;

-- How long to wait after an attempt.
CREATE FUNCTION orchestrator._retry_delay(d orchestrator.definition, attempt int) RETURNS interval
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_seconds float8 := extract(epoch FROM d.retry_delay);
BEGIN
  v_seconds := v_seconds * CASE d.backoff
    WHEN 'linear' THEN $2
    WHEN 'exponential' THEN power(2::float8, least($2 - 1, 60))
    ELSE 1 END;
  v_seconds := least(v_seconds, extract(epoch FROM d.max_retry_delay));
  v_seconds := v_seconds * (1 + d.retry_jitter * (2 * random() - 1));
  RETURN make_interval(secs => least(v_seconds, extract(epoch FROM d.max_retry_delay)));
END
$$;

-- Write back a locked live row that lost its worker, and tell who may claim it
-- next. pause() of a task while it ran takes effect here.
CREATE FUNCTION orchestrator._requeue(t orchestrator.task) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_pause boolean := t.held_state = 'paused';
BEGIN
  t.epoch := t.epoch + 1;
  t.worker := NULL;
  t.held_state := NULL;
  IF v_pause THEN
    t.held_state := t.state;
    t.state := 'paused';
    t.expire_at := t.deadline;
    PERFORM orchestrator._trace(t, NULL, t.attempt, 'paused', NULL);
    PERFORM orchestrator._tell(t, 'paused');
    PERFORM orchestrator._waits(t.owner, t.queue, 1);
  ELSIF t.state = 'pending' THEN
    t.sort_key := coalesce(t.sort_key, orchestrator._ready_key(t.owner, t.queue, t.input, orchestrator._now(), t.priority));
    PERFORM orchestrator._ready(t.owner, t.queue, t.sort_key, t.parked_on);
  ELSE
    PERFORM orchestrator._due(t.run_at);
    PERFORM orchestrator._waits(t.owner, t.queue, 1);
  END IF;
  PERFORM orchestrator._due(t.expire_at);
  UPDATE orchestrator.task_live l
    SET sort_key = CASE t.state WHEN 'pending' THEN t.sort_key END,
        started_at = t.started_at, run_at = t.run_at, expire_at = t.expire_at, state = t.state,
        held_state = t.held_state, priority = t.priority, attempt = t.attempt, epoch = t.epoch,
        worker = t.worker, error = t.error, resources = t.resources, changed_at = orchestrator._now()
    WHERE l.id = t.id;
  RETURN t.state;
END
$$;

-- A locked live task failed for good.
CREATE FUNCTION orchestrator._fail(t orchestrator.task, detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  t.state := 'failed';
  t.held_state := NULL;
  PERFORM orchestrator._trace(t, NULL, t.attempt, 'failed', $2);
  PERFORM orchestrator._tell(t, 'failed');
  PERFORM orchestrator._finish(t);
END
$$;

-- Move a locked live row to the finished ones. Not by an UPDATE of live: that
-- makes every session that waits for the row fail with a serialization error.
-- What hangs on it goes on here: callbacks, compensation, the run it is a step
-- of (whose top the caller has locked).
CREATE FUNCTION orchestrator._finish(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  PERFORM orchestrator._ensure_partition(t.id);
  DELETE FROM orchestrator.task_live l WHERE l.id = t.id;
  t.remaining := orchestrator._final_remaining(t);
  t.live := false;
  t.finished_at := orchestrator._now();
  t.sort_key := NULL;
  t.expire_at := NULL;
  t.held_by := NULL;
  INSERT INTO orchestrator.task_finished SELECT t.*;
  PERFORM orchestrator._count_end(t);
  PERFORM orchestrator._ended(t);
END
$$;

-- The statistics of a task that came to its end.
CREATE FUNCTION orchestrator._count_end(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF t.state <> 'skipped' THEN
    PERFORM orchestrator._count(t.owner, t.queue, t.definition, t.state::text, CASE WHEN t.remaining IS NOT NULL THEN t.finished_at - t.started_at END);
  END IF;
END
$$;

-- A task is final, and its row is where it stays.
CREATE FUNCTION orchestrator._ended(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._call_back(t);
  IF t.remaining IS NOT NULL AND t.state IN ('failed', 'cancelled') THEN
    PERFORM orchestrator._compensate(t);
  END IF;
  IF t.parent_id IS NOT NULL THEN
    PERFORM orchestrator._step_ended(t);
  END IF;
END
$$;
