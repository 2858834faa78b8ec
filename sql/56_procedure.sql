-- Procedure: durable procedures, what they remember and how they wait
-- (src/procedure.c).
--
-- A procedure that waits commits what it did and ends; its task is scheduled,
-- or waiting for a signal, and holds no worker. When it may go on the
-- procedure is called again from its beginning: step_once() and the waits give
-- what they gave before, everything else is repeated.

CREATE FUNCTION orchestrator.step_once(name text, sql text, input jsonb DEFAULT NULL) RETURNS jsonb
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_step_once';
COMMENT ON FUNCTION orchestrator.step_once(text, text, jsonb) IS
  'Inside a step of kind procedure: runs a statement ($1 is the input), or gives the result remembered under this name. Result and effect are committed together, by the next COMMIT or wait of the procedure or at its end: until then a crash undoes both. Effects outside of the database, and what the procedure does outside of step_once, are repeated when it is called again, so names must be the same in every run and different from each other. What is remembered stays with the task: after retry() the procedure goes on where it was. Gives null for no row, the value of one row with one column, else an object or an array of objects';

CREATE PROCEDURE orchestrator.sleep_until(at timestamptz, name text DEFAULT NULL)
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_sleep_until';
COMMENT ON PROCEDURE orchestrator.sleep_until(timestamptz, text) IS
  'Inside a step of kind procedure: commits, and has the procedure called again at that time, when this returns. Without a name the time is taken anew by every run, so now() + interval never comes: with a name the first one is remembered. Not in a block with EXCEPTION. The timeout of the definition counts for each run by itself, the deadline of the task for all';

CREATE PROCEDURE orchestrator.wait_signal(name text, INOUT payload jsonb DEFAULT NULL, timeout interval DEFAULT NULL)
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_wait_signal';
COMMENT ON PROCEDURE orchestrator.wait_signal(text, jsonb, interval) IS
  'Inside a step of kind procedure: gives the payload of a signal that was sent to the task; commits, and has the procedure called again when it is sent or after the timeout, which gives null. In PL/pgSQL payload must be a variable. It is remembered: the first wait for a name gives in every run what it gave first, the second the second. Not in a block with EXCEPTION';

-- Whether the caller's attempt still runs; raises when it does not. It takes
-- no lock: cancel() need not wait for a procedure that takes its time, and a
-- name can be remembered only once.
CREATE FUNCTION orchestrator._require_attempt(task bigint, epoch int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = $1 AND l.state::text = 'running' AND l.epoch = $2) THEN
    RAISE EXCEPTION 'task % was taken from this worker', $1
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'It was cancelled, paused or given to another worker: see orchestrator.trace.';
  END IF;
END
$$;

-- What is remembered under a name, as {"result": ...}, or {} of a null; null:
-- nothing.
CREATE FUNCTION orchestrator._recall(task bigint, epoch int, name text) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_result jsonb;
BEGIN
  PERFORM orchestrator._require_attempt($1, $2);
  SELECT m.result INTO v_result FROM orchestrator.step_memo m WHERE m.task_id = $1 AND m.name = $3;
  RETURN CASE WHEN NOT FOUND THEN NULL WHEN v_result IS NULL THEN '{}' ELSE jsonb_build_object('result', v_result) END;
END
$$;

-- Remember a result. Another run of the procedure that remembers the same name
-- is waited for.
CREATE FUNCTION orchestrator._remember(task bigint, epoch int, name text, result jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  INSERT INTO orchestrator.step_memo (task_id, name, owner, result, created_at)
    SELECT l.id, $3, l.owner, $4, orchestrator._now() FROM orchestrator.task_live l WHERE l.id = $1
    ON CONFLICT ON CONSTRAINT step_memo_pkey DO NOTHING;
  IF NOT FOUND THEN
    PERFORM orchestrator._require_attempt($1, $2);
    RAISE EXCEPTION '"%" was remembered meanwhile', $3
      USING ERRCODE = 'unique_violation', HINT = 'A name may be used once in a procedure: step_once() inside of step_once() with the same name, perhaps.';
  END IF;
  PERFORM orchestrator._require_attempt($1, $2);
END
$$;

-- A procedure waits until a time, or for a signal, which is remembered under
-- memo, until timeout_at. The attempt is not counted. Returns the state; null:
-- the report is stale. Locks the root, then the task: a signal that was sent
-- since the procedure looked is taken here, one that is sent later finds the
-- task waiting.
CREATE FUNCTION orchestrator._suspend(task bigint, epoch int, attempt_started timestamptz, until timestamptz, signal text,
    memo text, timeout_at timestamptz) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t         orchestrator.task;
  v_payload jsonb;
BEGIN
  t := orchestrator._lock_running($1, $2);
  IF t.id IS NULL THEN
    RETURN NULL;
  END IF;
  PERFORM orchestrator._trace(t, coalesce($3, t.started_at), t.attempt, 'started', NULL);
  PERFORM orchestrator._trace(t, NULL, t.attempt, 'suspended',
                              jsonb_strip_nulls(jsonb_build_object('until', $4, 'signal', $5, 'timeout_at', $7)));
  t.attempt := t.attempt - 1;
  t.sort_key := NULL;
  t.run_at := $4;
  t.expire_at := t.deadline;
  t.state := 'scheduled';
  IF $5 IS NOT NULL THEN
    v_payload := orchestrator._take_signal($1, $5);
    IF v_payload IS NOT NULL THEN
      PERFORM orchestrator._remember($1, $2, $6, v_payload);
      t.state := 'pending';
    ELSE
      INSERT INTO orchestrator.step_memo AS m (task_id, name, owner, result, created_at)
        VALUES ($1, 'waiting', t.owner, jsonb_strip_nulls(jsonb_build_object('signal', $5, 'timeout_at', $7)), orchestrator._now())
        ON CONFLICT ON CONSTRAINT step_memo_pkey DO UPDATE SET result = excluded.result, created_at = excluded.created_at;
      t.state := 'waiting';
      t.expire_at := least(t.deadline, $7);
    END IF;
  END IF;
  RETURN orchestrator._requeue(t);
END
$$;

-- What a procedure waits for was sent, or its time is up: it may go on. One
-- that is paused does so after resume(). Locks the task; whoever delivers a
-- signal holds the root.
CREATE FUNCTION orchestrator._wake_procedure(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t orchestrator.task;
BEGIN
  SELECT l.* INTO t FROM orchestrator.task_live l
    WHERE l.id = $1 AND 'waiting' IN (l.state, l.held_state) FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  DELETE FROM orchestrator.step_memo m WHERE m.task_id = $1 AND m.name = 'waiting';
  IF t.state = 'paused' THEN
    UPDATE orchestrator.task_live l SET held_state = 'pending' WHERE l.id = $1;
    RETURN;
  END IF;
  t.sort_key := orchestrator._ready_key(t.owner, t.queue, t.input, orchestrator._now(), t.priority);
  UPDATE orchestrator.task_live l
    SET state = 'pending', sort_key = t.sort_key, expire_at = l.deadline
    WHERE l.id = $1;
  PERFORM orchestrator._ready(t.owner, t.queue, t.sort_key, t.parked_on);
  PERFORM orchestrator._due(t.deadline);
END
$$;
