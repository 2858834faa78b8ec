-- Runs: what ties steps together. A run is a task with steps (remaining is not
-- null): of a workflow, of a map (its items), of a batch, or a plain task that
-- added steps while it ran. It waits until remaining, the number of its steps
-- that are not final, is 0.
--
-- A step has no row until it can start, or is known not to. A row in the state
-- waiting that does not wait by its nature was reset, and starts again when
-- its needs are final.
--
-- Lock order: first the row at the top of each tree, in the order of ids, then
-- other rows in the order of ids. Whoever ends or makes a step holds the lock
-- of the top: within a tree one at a time decides, and nothing is decided
-- twice. Where a row below may be locked already (the fast lane, the
-- supervisor), the top is only tried.
--
-- What the end of a step means (the README has the table):
--   completed                      the need is satisfied
--   skipped                        a dependant is skipped if all of its needs were; else it runs
--   skipped by skip_step()         as completed, with the output that was given
--   failed, cancelled              on_failure: fail             the run fails; its other steps are cancelled
--                                              continue         the need is satisfied, its output null, errors has it
--                                              skip_dependants  dependants are skipped, the run goes on
--                                  optional                     as skipped

-- Lock the top of a tree, live or finished. False: nowait, and it is locked.
CREATE FUNCTION orchestrator._lock_root(root bigint, nowait boolean) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  FOR i IN 1 .. 10 LOOP
    IF $2 THEN
      PERFORM FROM orchestrator.task_live l WHERE l.id = $1 FOR UPDATE SKIP LOCKED;
      EXIT WHEN FOUND;
      PERFORM FROM orchestrator.task_finished f WHERE f.id = $1 FOR UPDATE SKIP LOCKED;
    ELSE
      PERFORM FROM orchestrator.task_live l WHERE l.id = $1 FOR UPDATE;
      EXIT WHEN FOUND;
      PERFORM FROM orchestrator.task_finished f WHERE f.id = $1 FOR UPDATE;
    END IF;
    EXIT WHEN FOUND;
    IF NOT EXISTS (SELECT FROM orchestrator.task x WHERE x.id = $1) THEN
      RETURN true;   -- retention dropped it
    ELSIF $2 THEN
      RETURN false;
    END IF;
  END LOOP;
  RETURN true;
END
$$;

CREATE FUNCTION orchestrator._next_id() RETURNS bigint
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_next_id';

-- A task, live or finished; nulls: there is none.
CREATE FUNCTION orchestrator._task(task bigint) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t orchestrator.task;
BEGIN
  SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = $1;
  IF NOT FOUND THEN
    SELECT f.* INTO t FROM orchestrator.task_finished f WHERE f.id = $1;
  END IF;
  RETURN t;
END
$$;

-- Steps of a locked run are made, reset or skipped in another order than its
-- plan's. As long as the epoch of the top is 0 executors rely on that order,
-- and go straight on to steps that have no row (src/workflow.h).
CREATE FUNCTION orchestrator._leave_plan(run bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  UPDATE orchestrator.task_live l SET epoch = l.epoch + 1 WHERE l.id = $1 AND l.state <> 'running';
END
$$;

-- Kind of the definition of a task.
CREATE FUNCTION orchestrator._kind(definition int) RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT d.kind FROM orchestrator.definition d WHERE d.id = $1);
END
$$;

-- The rows of steps of a run by number (null: all), without items and undos.
CREATE FUNCTION orchestrator._step_rows(parent bigint, steps int[]) RETURNS SETOF orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
  IF $2 IS NULL THEN
    RETURN QUERY SELECT l.* FROM orchestrator.task_live l WHERE l.parent_id = $1 AND l.step > 0 AND l.item IS NULL;
    RETURN QUERY SELECT f.* FROM orchestrator.task_finished f WHERE f.parent_id = $1 AND f.id > $1 AND f.step > 0 AND f.item IS NULL;
  ELSE
    RETURN QUERY SELECT l.* FROM orchestrator.task_live l WHERE l.parent_id = $1 AND l.step = ANY ($2) AND l.item IS NULL;
    RETURN QUERY SELECT f.* FROM orchestrator.task_finished f WHERE f.parent_id = $1 AND f.id > $1 AND f.step = ANY ($2) AND f.item IS NULL;
  END IF;
END
$$;

-- What a step is to do, compiled (chapter 36): of the definition, or added.
CREATE FUNCTION orchestrator._step_spec(plan int, parent bigint, step int) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_spec jsonb;
BEGIN
  SELECT d.steps -> (abs($3) - 1) INTO v_spec FROM orchestrator.definition d WHERE d.id = $1;
  IF v_spec IS NULL THEN
    SELECT a.spec INTO v_spec FROM orchestrator.added_step a WHERE a.task_id = $2 AND a.step = abs($3);
  END IF;
  RETURN v_spec;
END
$$;

-- Numbers of the steps that need a step.
CREATE FUNCTION orchestrator._dependants(spec jsonb, parent bigint, step int) RETURNS int[]
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN ARRAY(SELECT n::int FROM jsonb_array_elements_text(coalesce($1 -> 'next', '[]')) n
               UNION SELECT a.step FROM orchestrator.added_step a WHERE a.task_id = $2 AND a.spec -> 'needs' @> to_jsonb($3)
               ORDER BY 1);
END
$$;

-- A step of a run by its name; raises when there is none.
CREATE FUNCTION orchestrator._step_number(p orchestrator.task, name text) RETURNS int
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_step int;
BEGIN
  SELECT array_position(d.step_names, $2) INTO v_step FROM orchestrator.definition d WHERE d.id = p.definition;
  IF v_step IS NULL THEN
    SELECT a.step INTO v_step FROM orchestrator.added_step a WHERE a.task_id = p.id AND a.spec ->> 'name' = $2;
  END IF;
  IF v_step IS NULL THEN
    RAISE EXCEPTION 'task % has no step "%"', p.id, coalesce($2, 'null')
      USING ERRCODE = 'undefined_object', HINT = 'The view orchestrator.step_status names its steps.';
  END IF;
  RETURN v_step;
END
$$;

-- Number of steps of a run that are known, with a row or without.
CREATE FUNCTION orchestrator._step_count(p orchestrator.task) RETURNS int
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT cardinality(d.step_names) FROM orchestrator.definition d WHERE d.id = p.definition), 0)
    + (SELECT count(*) FROM orchestrator.added_step a WHERE a.task_id = p.id);
END
$$;

-- Templates: a string that begins with $ is a path over the document; $$ is a
-- literal $. A path gives its first value, one with [*] an array of all.
CREATE FUNCTION orchestrator._render(template jsonb, document jsonb) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $_$
DECLARE
  v_text text;
BEGIN
  CASE jsonb_typeof($1)
    WHEN 'string' THEN
      v_text := $1 #>> '{}';
      IF v_text LIKE '$$%' THEN
        RETURN to_jsonb(substr(v_text, 2));
      ELSIF v_text NOT LIKE '$%' THEN
        RETURN $1;
      ELSIF position('[*]' IN v_text) > 0 THEN
        RETURN jsonb_path_query_array($2, v_text::jsonpath);
      END IF;
      RETURN coalesce(jsonb_path_query_first($2, v_text::jsonpath), 'null');
    WHEN 'object' THEN
      RETURN coalesce((SELECT jsonb_object_agg(e.key, orchestrator._render(e.value, $2)) FROM jsonb_each($1) e), '{}');
    WHEN 'array' THEN
      RETURN coalesce((SELECT jsonb_agg(orchestrator._render(e.value, $2) ORDER BY e.place)
                       FROM jsonb_array_elements($1) WITH ORDINALITY e(value, place)), '[]');
    ELSE
      RETURN $1;
  END CASE;
END
$_$;

-- A condition: true by its boolean, else by whether it yields anything.
CREATE FUNCTION orchestrator._holds(path text, document jsonb) RETURNS boolean
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_first jsonb := jsonb_path_query_first($2, $1::jsonpath);
BEGIN
  -- a predicate that cannot be decided yields null
  RETURN v_first IS NOT NULL AND v_first <> 'false' AND v_first <> 'null';
END
$$;

-- The document a step's templates and conditions are about.
CREATE FUNCTION orchestrator._document(p orchestrator.task, spec jsonb) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_needs  int[] := ARRAY(SELECT n::int FROM jsonb_array_elements_text(coalesce($2 -> 'needs', '[]')) n);
  v_steps  jsonb := '{}';
  v_errors jsonb;
BEGIN
  IF v_needs <> '{}' THEN
    SELECT jsonb_object_agg(r.name, coalesce(r.output, 'null')), jsonb_object_agg(r.name, r.error) FILTER (WHERE r.state IN ('failed', 'cancelled'))
      INTO v_steps, v_errors
      FROM orchestrator._step_rows(p.id, v_needs) r;
  END IF;
  RETURN jsonb_build_object('input', p.input, 'steps', coalesce(v_steps, '{}'))
    || CASE WHEN v_errors IS NULL THEN '{}' ELSE jsonb_build_object('errors', v_errors) END;
END
$$;

-- The row of a step of a run that is about to be placed.
CREATE FUNCTION orchestrator._new_step(p orchestrator.task, step int, spec jsonb, definition int) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t orchestrator.task;
  d orchestrator.definition;
BEGIN
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = $4;
  t.id := orchestrator._next_id();
  t.created_at := orchestrator._now();
  t.parent_id := p.id;
  t.root_id := coalesce(p.root_id, p.id);
  t.state := 'pending';
  t.owner := p.owner;
  t.definition := $4;
  t.queue := coalesce(($3 ->> 'queue')::int, d.queue, p.queue);
  t.priority := coalesce(($3 ->> 'priority')::int, p.priority);
  t.attempt := 0;
  t.max_attempts := coalesce(d.max_attempts, 1);
  t.epoch := 0;
  t.live := true;
  t.plan := CASE orchestrator._kind(p.definition) WHEN 'workflow' THEN p.definition WHEN 'map' THEN p.plan END;
  t.step := $2;
  t.name := $3 ->> 'name';
  t.deadline := p.deadline;
  t.traceparent := p.traceparent;
  t.input := '{}';
  RETURN t;
END
$$;

-- Insert a new live row, or bring a reset one to life again: pending, or
-- scheduled when run_at lies ahead, or waiting; held when its run is paused.
CREATE FUNCTION orchestrator._place(t orchestrator.task, p orchestrator.task) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
BEGIN
  IF t.state = 'pending' AND t.run_at > v_now THEN
    t.state := 'scheduled';
  END IF;
  IF t.state <> 'waiting' THEN
    t.expire_at := least(t.deadline, greatest(v_now, t.run_at) + (SELECT d.queue_timeout FROM orchestrator.definition d WHERE d.id = t.definition));
  END IF;
  t.sort_key := CASE t.state WHEN 'pending' THEN orchestrator._ready_key(t.owner, t.queue, t.input, v_now, t.priority) END;
  t.parked_on := orchestrator._remote_lane(t.definition, t.queue);
  IF p.state = 'paused' THEN
    t.held_state := t.state;
    t.state := 'paused';
    t.held_by := coalesce(p.held_by, p.id);
    t.sort_key := NULL;
    t.run_at := CASE t.held_state WHEN 'waiting' THEN t.expire_at ELSE t.run_at END;   -- for resume()
    t.expire_at := t.deadline;
  END IF;
  IF t.epoch > 0 THEN
    DELETE FROM orchestrator.task_live l WHERE l.id = t.id;   -- a reset row
  END IF;
  INSERT INTO orchestrator.task_live SELECT t.*;
  PERFORM orchestrator._tell(t, 'created');
  IF t.state = 'pending' THEN
    PERFORM orchestrator._ready(t.owner, t.queue, t.sort_key, t.parked_on);
  ELSIF t.state = 'scheduled' THEN
    PERFORM orchestrator._due(t.run_at);
    PERFORM orchestrator._waits(t.owner, t.queue, 1);
  ELSIF t.state = 'paused' THEN
    PERFORM orchestrator._waits(t.owner, t.queue, 1);
  END IF;
  PERFORM orchestrator._due(t.expire_at);
  RETURN t;
END
$$;

-- Steps of a locked run that need nothing start: of one that was just made.
CREATE FUNCTION orchestrator._start_steps(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  p       orchestrator.task;
  v_steps jsonb;
BEGIN
  SELECT l.* INTO p FROM orchestrator.task_live l WHERE l.id = $1;
  SELECT d.steps INTO v_steps FROM orchestrator.definition d WHERE d.id = p.definition;
  PERFORM orchestrator._try_steps(p, ARRAY(SELECT e.place::int FROM jsonb_array_elements(v_steps) WITH ORDINALITY e(spec, place)
                                           WHERE coalesce(jsonb_array_length(e.spec -> 'needs'), 0) = 0 ORDER BY 1));
  PERFORM orchestrator._close_if_done(p.id);   -- all were skipped
END
$$;

-- n steps of a run ended: look at the dependants of those that are named, and
-- at the run itself. The lock of the top is held.
CREATE FUNCTION orchestrator._advance(parent bigint, steps int[], n int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  p            orchestrator.task;
  d            orchestrator.definition;
  v_count      int := $3;
  v_spec       jsonb;
  v_step       int;
  v_dependants int[] := '{}';
  v_interval   int;
  v_done       bigint;
BEGIN
  SELECT l.* INTO p FROM orchestrator.task_live l WHERE l.id = $1 AND l.remaining IS NOT NULL FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;   -- it is final: nothing of it goes on
  END IF;
  SELECT x.kind, x.checkpoint_interval INTO d.kind, d.checkpoint_interval FROM orchestrator.definition x WHERE x.id = p.definition;
  IF d.kind IN ('map', 'batch') THEN
    UPDATE orchestrator.task_live l SET remaining = l.remaining - $3, started_at = coalesce(l.started_at, orchestrator._run_started(p.id))
      WHERE l.id = p.id RETURNING l.* INTO p;
    BEGIN
      PERFORM orchestrator._start_items(p, $3);
    EXCEPTION WHEN data_exception OR program_limit_exceeded OR feature_not_supported OR SQLSTATE 'OR007' THEN
      p.error := jsonb_build_object('sqlstate', SQLSTATE, 'message', SQLERRM);
    END;
    IF p.error IS NOT NULL THEN
      -- a template that fails for an item: the map does
      PERFORM orchestrator._cancel_below(p.id, jsonb_build_object('by', 'orchestrator', 'reason', p.error ->> 'message'));
      PERFORM orchestrator._fail(p, p.error);
      RETURN;
    END IF;
  ELSE
    FOREACH v_step IN ARRAY $2 LOOP
      v_spec := orchestrator._step_spec(p.definition, p.id, v_step);
      IF v_spec ? 'repeat_while' AND orchestrator._repeat(p, v_step, v_spec) THEN
        v_count := v_count - 1;
      ELSE
        v_dependants := v_dependants || orchestrator._dependants(v_spec, p.id, v_step);
      END IF;
    END LOOP;
    UPDATE orchestrator.task_live l SET remaining = l.remaining - v_count, started_at = coalesce(l.started_at, orchestrator._run_started(p.id))
      WHERE l.id = p.id RETURNING l.* INTO p;
    IF d.checkpoint_interval IS NOT NULL AND v_count > 0 THEN
      v_done := orchestrator._step_count(p) - p.remaining;
      IF v_done / d.checkpoint_interval > (v_done - v_count) / d.checkpoint_interval THEN
        PERFORM orchestrator._keep_checkpoint(p, 'after ' || v_done || ' steps', NULL);
      END IF;
    END IF;
    PERFORM orchestrator._try_steps(p, v_dependants);
  END IF;
  PERFORM orchestrator._close_if_done(p.id);
END
$$;

-- Start, or skip, those of these steps whose needs are final; and so on with
-- the dependants of what was skipped or ended at once. The run is locked.
CREATE FUNCTION orchestrator._try_steps(p orchestrator.task, steps int[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_queue int[] := ARRAY(SELECT DISTINCT s FROM unnest($2) s ORDER BY 1);
  v_step  int;
  v_spec  jsonb;
  v_ended int := 0;
BEGIN
  IF 'scheduled' IN (p.state, p.held_state) THEN
    RETURN;   -- all are looked at when it begins
  END IF;
  WHILE v_queue <> '{}' LOOP
    v_step := v_queue[1];
    v_queue := v_queue[2:];
    v_spec := orchestrator._step_spec(p.definition, p.id, v_step);
    IF orchestrator._try_step(p, v_step, v_spec) THEN
      v_ended := v_ended + 1;
      v_queue := v_queue || orchestrator._dependants(v_spec, p.id, v_step);
    END IF;
    -- a step that could not even begin may have failed the run
    EXIT WHEN NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = p.id);
  END LOOP;
  IF v_ended > 0 THEN
    UPDATE orchestrator.task_live l SET remaining = l.remaining - v_ended WHERE l.id = p.id;
  END IF;
END
$$;

-- Whether the needs of a step are final, and what they mean for it: wait, skip
-- or run.
CREATE FUNCTION orchestrator._judge_needs(p orchestrator.task, step int, spec jsonb) RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_needs   int[] := ARRAY(SELECT n::int FROM jsonb_array_elements_text(coalesce($3 -> 'needs', '[]')) n);
  v_final   int := 0;
  v_skipped int := 0;
  v_skip    boolean := false;
  v_need    jsonb;
  r         orchestrator.task;
BEGIN
  IF v_needs = '{}' THEN
    RETURN 'run';
  END IF;
  FOR r IN SELECT x.* FROM orchestrator._step_rows(p.id, v_needs) x LOOP
    IF r.live THEN
      RETURN 'wait';
    END IF;
    v_final := v_final + 1;
    v_need := orchestrator._step_spec(p.definition, p.id, r.step);
    IF r.state = 'skipped' AND r.output IS NULL OR r.state IN ('failed', 'cancelled') AND (v_need ->> 'optional')::boolean THEN
      v_skipped := v_skipped + 1;
    ELSIF r.state IN ('failed', 'cancelled') AND v_need ->> 'on_failure' = 'skip_dependants' THEN
      v_skip := true;
    ELSIF jsonb_typeof(v_need -> 'on_timeout') = 'number' THEN
      -- the branch of a wait that timed out, or all its other dependants
      v_skip := v_skip OR ((v_need ->> 'on_timeout')::int = $2) <> (r.state = 'completed' AND r.output IS NOT DISTINCT FROM '{"timed_out": true}');
    END IF;
  END LOOP;
  RETURN CASE WHEN v_final < cardinality(v_needs) THEN 'wait'
              WHEN v_skip OR v_skipped = v_final THEN 'skip'
              ELSE 'run' END;
END
$$;

-- A row that waits for nothing of its own: it was reset, and starts again when
-- its needs are final.
CREATE FUNCTION orchestrator._is_reset(t orchestrator.task) RETURNS boolean
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN t.live AND coalesce(t.held_state, t.state) = 'waiting' AND t.started_at IS NULL AND t.remaining IS NULL;
END
$$;

-- Start or skip one step if it is its time. True: it is final at once.
CREATE FUNCTION orchestrator._try_step(p orchestrator.task, step int, spec jsonb) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t          orchestrator.task;
  v_document jsonb;
  v_verdict  text;
  v_error    jsonb;
BEGIN
  SELECT r.* INTO t FROM orchestrator._step_rows(p.id, ARRAY[$2]) r;
  IF FOUND AND NOT orchestrator._is_reset(t) THEN
    RETURN false;   -- it has started, or is final
  END IF;
  v_verdict := orchestrator._judge_needs(p, $2, $3);
  IF v_verdict = 'wait' THEN
    RETURN false;
  END IF;
  IF t.id IS NULL THEN
    t := orchestrator._new_step(p, $2, $3, coalesce(($3 ->> 'definition')::int, orchestrator._internal_definition(p.owner, 'wait')));
  ELSE
    t.held_state := NULL;
    t.held_by := NULL;
  END IF;
  IF v_verdict = 'skip' THEN
    PERFORM orchestrator._skip_row(t, NULL, NULL);
    RETURN true;
  END IF;
  BEGIN
    v_document := orchestrator._document(p, $3);
    IF $3 ? 'when' AND NOT orchestrator._holds($3 ->> 'when', v_document) THEN
      PERFORM orchestrator._skip_row(t, NULL, jsonb_build_object('when', $3 -> 'when'));
      RETURN true;
    END IF;
    RETURN orchestrator._begin_step(p, t, $3, v_document);
  EXCEPTION WHEN data_exception OR program_limit_exceeded OR feature_not_supported OR SQLSTATE 'OR007' THEN
    v_error := jsonb_build_object('sqlstate', SQLSTATE, 'message', SQLERRM);
  END;
  -- a path that fails, an input that is too large: the step does
  t.state := 'failed';
  t.error := v_error;
  IF NOT orchestrator._fails_run(t, $3) THEN
    PERFORM orchestrator._end_at_once(t);
    RETURN true;
  END IF;
  t.state := 'waiting';
  INSERT INTO orchestrator.task_live SELECT t.* ON CONFLICT DO NOTHING;   -- unless it was reset
  PERFORM orchestrator._fail(t, v_error);
  RETURN false;   -- and _fail() counted it
END
$$;

-- Make the row of a step that starts, by its kind. True: it is final at once.
CREATE FUNCTION orchestrator._begin_step(p orchestrator.task, t orchestrator.task, spec jsonb, document jsonb) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_kind text := $3 ->> 'kind';
BEGIN
  IF $3 ? 'delay' THEN
    t.run_at := orchestrator._now() + ($3 ->> 'delay')::interval;
  END IF;
  IF $3 ? 'each' THEN
    RETURN orchestrator._begin_map(p, t, $3, $4);
  ELSIF v_kind = 'wait' THEN
    RETURN orchestrator._begin_wait(p, t, $3, $4);
  ELSIF v_kind = 'checkpoint' THEN
    PERFORM orchestrator._pass_checkpoint(p, t, $3, $4);
    RETURN true;
  END IF;
  t.input := CASE WHEN $3 ? 'input' THEN orchestrator._render($3 -> 'input', $4) ELSE $4 END;
  PERFORM orchestrator._check_input(t.input);
  IF v_kind = 'workflow' THEN
    PERFORM orchestrator._begin_run(p, t);
    RETURN false;
  END IF;
  t.state := 'pending';
  PERFORM orchestrator._place(t, p);
  RETURN false;
END
$$;

CREATE FUNCTION orchestrator._check_input(input jsonb) RETURNS void
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_limit bigint := pg_size_bytes(current_setting('orchestrator.max_input_size'));
BEGIN
  -- the text is never much smaller than the binary form
  IF octet_length($1::text) > v_limit THEN
    RAISE EXCEPTION 'input is larger than % bytes', v_limit
      USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Give the step a template that takes only what it needs, or raise orchestrator.max_input_size.';
  END IF;
END
$$;

-- A sub-workflow as a step.
CREATE FUNCTION orchestrator._begin_run(p orchestrator.task, t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._check_depth(p, 1);
  t.state := CASE WHEN t.run_at > orchestrator._now() THEN 'scheduled' ELSE 'waiting' END;
  t.remaining := (SELECT cardinality(d.step_names) FROM orchestrator.definition d WHERE d.id = t.definition);
  t.expire_at := least(t.deadline, orchestrator._now() + (SELECT d.timeout FROM orchestrator.definition d WHERE d.id = t.definition));
  PERFORM orchestrator._place(t, p);
  IF t.state = 'waiting' THEN
    PERFORM orchestrator._start_steps(t.id);
  END IF;
END
$$;

-- Refuse to go deeper than the limit of the top's definition: below a run, or
-- with its own steps.
CREATE FUNCTION orchestrator._check_depth(p orchestrator.task, below int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_limit int := coalesce((SELECT d.max_depth FROM orchestrator.task_live l JOIN orchestrator.definition d ON d.id = l.definition
                           WHERE l.id = coalesce(p.root_id, p.id)), 16);
  v_depth int := 1;
  v_above bigint := p.parent_id;
BEGIN
  WHILE v_above IS NOT NULL LOOP
    v_depth := v_depth + 1;
    SELECT l.parent_id INTO v_above FROM orchestrator.task_live l WHERE l.id = v_above;
  END LOOP;
  IF v_depth + $2 > v_limit THEN
    RAISE EXCEPTION 'run is deeper than max_depth, % levels', v_limit
      USING ERRCODE = 'OR007', HINT = 'Raise max_depth of the workflow at the top with orchestrator.define_workflow().';
  END IF;
END
$$;

-- A step that waits: for a time, or for a signal that may be there already.
CREATE FUNCTION orchestrator._begin_wait(p orchestrator.task, t orchestrator.task, spec jsonb, document jsonb) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  t.state := 'waiting';
  t.input := CASE WHEN $3 ? 'input' THEN orchestrator._render($3 -> 'input', $4) ELSE $4 END;
  t.started_at := orchestrator._now();
  t.expire_at := least(t.deadline, coalesce(t.run_at, t.started_at) + coalesce(($3 ->> 'sleep')::interval, ($3 ->> 'timeout')::interval));
  t.run_at := NULL;
  t := orchestrator._place(t, p);
  RETURN $3 ? 'wait_for' AND t.state = 'waiting' AND orchestrator._deliver(t, $3, true);
END
$$;

-- A step that makes a checkpoint, in which it is completed, and ends at once; its
-- input, if it has one, is the context from then on.
CREATE FUNCTION orchestrator._pass_checkpoint(p orchestrator.task, t orchestrator.task, spec jsonb, document jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF $3 ? 'input' THEN
    t.input := orchestrator._render($3 -> 'input', $4 || jsonb_build_object('context', coalesce((orchestrator._run_context(p)).value, 'null')));
    PERFORM orchestrator._keep_context(p, t.input);
  END IF;
  t.state := 'completed';
  t.started_at := orchestrator._now();
  t.output := jsonb_build_object('checkpoint', t.name);
  PERFORM orchestrator._end_at_once(t);
  PERFORM orchestrator._keep_checkpoint(p, t.name, NULL);
END
$$;

-- A map: one row that waits for its items.
CREATE FUNCTION orchestrator._begin_map(p orchestrator.task, t orchestrator.task, spec jsonb, document jsonb) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_items jsonb := jsonb_path_query_array($4, ($3 ->> 'each')::jsonpath);
  v_path  text[];
  v_n     int;
BEGIN
  -- a path to an array means its elements
  IF position('[*]' IN $3 ->> 'each') > 0 THEN
    NULL;   -- these are the elements
  ELSIF jsonb_array_length(v_items) = 1 AND jsonb_typeof(v_items -> 0) = 'array' THEN
    v_items := v_items -> 0;
  ELSIF v_items = '[null]' THEN
    v_items := '[]';
  END IF;
  v_n := jsonb_array_length(v_items);
  t.definition := orchestrator._internal_definition(p.owner, 'map');
  t.state := 'waiting';
  t.max_attempts := 1;
  t.remaining := v_n;
  t.started_at := orchestrator._now();
  t.expire_at := t.deadline;
  IF v_n = 0 THEN
    t.input := $4;
    t.state := 'completed';
    t.output := '[]';
    INSERT INTO orchestrator.task_live SELECT t.* ON CONFLICT DO NOTHING;
    PERFORM orchestrator._end_row(t, 'completed');
    RETURN true;
  END IF;
  -- the array is kept once, with the map: its items' documents do without it
  v_path := orchestrator._member_path($3 ->> 'each');
  t.input := jsonb_build_object('items', v_items, 'document', CASE WHEN v_path IS NULL THEN $4 ELSE $4 #- v_path END);
  IF t.run_at > orchestrator._now() THEN
    t.state := 'scheduled';
  END IF;
  t := orchestrator._place(t, p);
  IF coalesce(t.held_state, t.state) = 'waiting' THEN
    PERFORM orchestrator._start_items(t, coalesce(($3 ->> 'max_parallel')::int, v_n));
  END IF;
  RETURN false;
END
$$;

-- $.a."b c"[*] as {a,b c}; null: not a plain chain of members.
CREATE FUNCTION orchestrator._member_path(path text) RETURNS text[]
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF $1 !~ E'^\\s*(lax\\s+)?\\$(\\s*\\.\\s*("[^"\\\\]*"|[A-Za-z_][A-Za-z0-9_]*))+\\s*(\\[\\s*\\*\\s*\\])?\\s*$' THEN
    RETURN NULL;
  END IF;
  RETURN ARRAY(SELECT coalesce(m[1], m[2]) FROM regexp_matches($1, E'\\.\\s*(?:"([^"\\\\]*)"|([A-Za-z_][A-Za-z0-9_]*))', 'g') m);
END
$$;

-- Start up to n further items of a locked map. Set-based, and their sort keys
-- differ, as those of enqueue_many().
CREATE FUNCTION orchestrator._start_items(p orchestrator.task, n int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t          orchestrator.task;
  d          orchestrator.definition;
  v_now      timestamptz := orchestrator._now();
  v_spec     jsonb;
  v_document jsonb;
  v_template jsonb;
  v_from     int := coalesce(p.iteration, 0);   -- items that have started; the largest int: all
  v_items    jsonb;
  v_total    int;
  v_upto     int;
BEGIN
  IF p.step IS NULL OR v_from = 2147483647 THEN
    RETURN;   -- a batch, or all have started
  END IF;
  p.input := p.input || '{}';   -- a large one is fetched once
  v_items := p.input -> 'items';
  v_total := jsonb_array_length(v_items);
  v_upto := least(v_total, v_from + $2);
  IF v_upto <= v_from THEN
    RETURN;
  END IF;
  v_document := p.input -> 'document';
  v_spec := orchestrator._step_spec(p.plan, p.parent_id, p.step);
  v_template := v_spec -> 'input';
  t := orchestrator._new_step(p, p.step, v_spec, (v_spec ->> 'definition')::int);
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = t.definition;
  IF d.kind = 'workflow' THEN
    PERFORM orchestrator._start_run_items(p, t, v_spec, v_from, $2);
    RETURN;
  END IF;
  UPDATE orchestrator.task_live l SET iteration = CASE v_upto WHEN v_total THEN 2147483647 ELSE v_upto END WHERE l.id = p.id;
  t.state := CASE p.state WHEN 'paused' THEN 'paused' ELSE 'pending' END;
  t.held_state := CASE p.state WHEN 'paused' THEN 'pending' END;
  t.held_by := CASE p.state WHEN 'paused' THEN coalesce(p.held_by, p.id) END;
  t.expire_at := least(t.deadline, v_now + d.queue_timeout);
  t.sort_key := CASE t.state WHEN 'pending' THEN orchestrator._sort_key(v_now, t.priority) + v_from END;
  t.parked_on := orchestrator._remote_lane(t.definition, t.queue);
  PERFORM orchestrator._insert_items(t, ARRAY(
    SELECT CASE WHEN v_template IS NULL THEN v_document || jsonb_build_object('item', v_items -> i, 'index', i)
                WHEN v_template = '"$.item"' THEN v_items -> i
                ELSE orchestrator._render(v_template, v_document || jsonb_build_object('item', v_items -> i, 'index', i)) END
    FROM generate_series(v_from, v_upto - 1) i), v_from);
  PERFORM orchestrator._due(t.expire_at);
END
$$;

-- The same for items that are workflows. One may end as it begins: then it
-- takes none of the n places, or fails the map. Meanwhile all pass for started,
-- lest each that ends starts the next from within.
CREATE FUNCTION orchestrator._start_run_items(p orchestrator.task, t orchestrator.task, spec jsonb, from_item int, n int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_total    int := jsonb_array_length(p.input -> 'items');
  v_next     int := $4;
  v_left     int := $5;
  v_document jsonb;
BEGIN
  UPDATE orchestrator.task_live l SET iteration = 2147483647 WHERE l.id = p.id;
  WHILE v_next < v_total AND v_left > 0 LOOP
    v_document := (p.input -> 'document') || jsonb_build_object('item', p.input -> 'items' -> v_next, 'index', v_next);
    t.id := orchestrator._next_id();
    t.item := v_next;
    t.input := CASE WHEN $3 ? 'input' THEN orchestrator._render($3 -> 'input', v_document) ELSE v_document END;
    PERFORM orchestrator._begin_run(p, t);
    EXIT WHEN NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = p.id);
    v_next := v_next + 1;
    v_left := v_left - (EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = t.id))::int;
  END LOOP;
  IF v_next < v_total THEN
    UPDATE orchestrator.task_live l SET iteration = v_next WHERE l.id = p.id;
  END IF;
END
$$;

-- Run a step again while its condition holds. True: it goes on.
CREATE FUNCTION orchestrator._repeat(p orchestrator.task, step int, spec jsonb) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t          orchestrator.task;
  v_document jsonb;
  v_input    jsonb;
  v_error    jsonb;
  v_round    int;
BEGIN
  SELECT r.* INTO t FROM orchestrator._step_rows(p.id, ARRAY[$2]) r;
  IF t.state IS DISTINCT FROM 'completed' THEN
    RETURN false;
  END IF;
  v_round := coalesce(t.iteration, 1);
  BEGIN
    v_document := orchestrator._document(p, $3) || jsonb_build_object('output', coalesce(t.output, 'null'), 'iteration', v_round);
    IF NOT orchestrator._holds($3 ->> 'repeat_while', v_document) THEN
      RETURN false;
    END IF;
    v_input := CASE WHEN $3 ? 'input' THEN orchestrator._render($3 -> 'input', v_document) ELSE v_document END;
    PERFORM orchestrator._check_input(v_input);
    IF v_round >= coalesce(($3 ->> 'max_repeats')::int, 100) THEN
      v_error := jsonb_build_object('sqlstate', 'OR007', 'message', format('step "%s" repeated %s times, its max_repeats', t.name, v_round),
                                    'hint', 'Raise max_repeats of the step, or see why repeat_while stays true.');
    END IF;
  EXCEPTION WHEN data_exception OR program_limit_exceeded OR feature_not_supported THEN
    v_error := jsonb_build_object('sqlstate', SQLSTATE, 'message', SQLERRM);
  END;
  DELETE FROM orchestrator.task_finished f WHERE f.id = t.id;
  DELETE FROM orchestrator.step_memo m WHERE m.task_id = t.id;
  IF v_error IS NULL THEN
    PERFORM orchestrator._trace(t, NULL, t.attempt, 'repeating', jsonb_strip_nulls(jsonb_build_object('iteration', v_round, 'output', t.output)));
  END IF;
  t.live := true;
  t.finished_at := NULL;
  t.epoch := t.epoch + 1;
  t.output := NULL;
  IF v_error IS NOT NULL THEN
    t.state := 'waiting';
    t.error := v_error;
    INSERT INTO orchestrator.task_live SELECT t.*;
    PERFORM orchestrator._fail(t, t.error);
    RETURN true;   -- and _fail() counted it
  END IF;
  PERFORM orchestrator._forget_steps(t);
  t.iteration := v_round + 1;
  t.attempt := 0;
  t.run_at := NULL;
  t.worker := NULL;
  t.remaining := NULL;
  t.state := 'pending';
  t.input := v_input;
  IF orchestrator._kind(t.definition) = 'workflow' THEN
    -- by the supervisor: one that ends as it begins would begin the next from within
    t.started_at := NULL;
    t.run_at := orchestrator._now() + interval '1 ms';
    PERFORM orchestrator._begin_run(p, t);
  ELSE
    PERFORM orchestrator._place(t, p);
  END IF;
  RETURN true;
END
$$;

-- A live or new row reaches a final state that no attempt led to.
CREATE FUNCTION orchestrator._end_row(t orchestrator.task, event text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  PERFORM orchestrator._ensure_partition(t.id);
  DELETE FROM orchestrator.task_live l WHERE l.id = t.id;
  t.live := false;
  t.held_state := NULL;
  t.held_by := NULL;
  t.worker := NULL;
  t.finished_at := orchestrator._now();
  t.sort_key := NULL;
  t.expire_at := NULL;
  INSERT INTO orchestrator.task_finished SELECT t.*;
  PERFORM orchestrator._count_end(t);
  PERFORM orchestrator._tell(t, $2);
END
$$;

-- A step failed, or was completed, as it began; its run goes on. The caller
-- counts it: a long chain of such steps must not nest calls.
CREATE FUNCTION orchestrator._end_at_once(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF t.state = 'failed' THEN
    PERFORM orchestrator._trace(t, NULL, t.attempt, 'failed', t.error);
  END IF;
  PERFORM orchestrator._end_row(t, t.state::text);
  PERFORM orchestrator._call_back(t);
END
$$;

-- Skip a step that has a live row, or none yet. The caller counts it.
CREATE FUNCTION orchestrator._skip_row(t orchestrator.task, output jsonb, detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  t.state := 'skipped';
  t.output := $2;
  PERFORM orchestrator._trace(t, NULL, t.attempt, 'skipped', $3);
  PERFORM orchestrator._end_row(t, 'skipped');
  IF t.callbacks IS NOT NULL THEN
    PERFORM orchestrator._call_back(t);
  END IF;
END
$$;

-- End a run none of whose steps is left.
CREATE FUNCTION orchestrator._close_if_done(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  p orchestrator.task;
BEGIN
  SELECT l.* INTO p FROM orchestrator.task_live l WHERE l.id = $1 AND l.remaining = 0 AND l.state IN ('waiting', 'paused');
  IF NOT FOUND THEN
    RETURN;
  END IF;
  BEGIN
    p.output := CASE orchestrator._kind(p.definition)
      WHEN 'map' THEN orchestrator._item_outputs(p.id)
      WHEN 'batch' THEN orchestrator._item_counts(p.id)
      WHEN 'workflow' THEN orchestrator._run_output(p)
      WHEN 'llm' THEN orchestrator._answer_of(p)
      WHEN 'tool' THEN orchestrator._answer_of(p)
      ELSE p.output END;
  EXCEPTION WHEN program_limit_exceeded THEN
    -- larger than any jsonb: no fault of the step that was the last
    p.error := jsonb_build_object('sqlstate', SQLSTATE, 'message', format('the outputs of its steps do not fit into one: %s', SQLERRM));
    PERFORM orchestrator._fail(p, p.error);
    RETURN;
  END;
  p.state := 'completed';
  p.held_state := NULL;
  p.held_by := NULL;
  p.error := NULL;
  p.started_at := coalesce(p.started_at, (SELECT min(r.started_at) FROM orchestrator._step_rows(p.id, NULL) r), orchestrator._now());
  PERFORM orchestrator._tell(p, 'completed');
  PERFORM orchestrator._finish(p);
END
$$;

CREATE FUNCTION orchestrator._item_outputs(parent bigint) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
  RETURN (SELECT coalesce(jsonb_agg(coalesce(f.output, 'null') ORDER BY f.item), '[]')
          FROM orchestrator.task_finished f WHERE f.parent_id = $1 AND f.id > $1 AND f.item IS NOT NULL AND f.step > 0);
END
$$;

CREATE FUNCTION orchestrator._item_counts(parent bigint) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
  RETURN (SELECT jsonb_build_object('total', count(*), 'completed', count(*) FILTER (WHERE f.state = 'completed'),
                                    'failed', count(*) FILTER (WHERE f.state = 'failed'),
                                    'cancelled', count(*) FILTER (WHERE f.state = 'cancelled'))
          FROM orchestrator.task_finished f WHERE f.parent_id = $1 AND f.id > $1);
END
$$;

-- Of the steps that nobody needs: of a single one its output, of more {name: output}.
CREATE FUNCTION orchestrator._run_output(p orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_sinks  int[];
  v_output jsonb;
BEGIN
  v_sinks := ARRAY(SELECT e.place::int FROM orchestrator.definition d, jsonb_array_elements(d.steps) WITH ORDINALITY e(spec, place)
                   WHERE d.id = p.definition AND coalesce(jsonb_array_length(e.spec -> 'next'), 0) = 0
                     AND NOT EXISTS (SELECT FROM orchestrator.added_step a WHERE a.task_id = p.id AND a.spec -> 'needs' @> to_jsonb(e.place))
                   UNION ALL
                   SELECT a.step FROM orchestrator.added_step a
                   WHERE a.task_id = p.id
                     AND NOT EXISTS (SELECT FROM orchestrator.added_step b WHERE b.task_id = p.id AND b.spec -> 'needs' @> to_jsonb(a.step)));
  SELECT CASE WHEN cardinality(v_sinks) = 1 THEN (array_agg(r.output))[1]
              ELSE jsonb_object_agg(r.name, coalesce(r.output, 'null')) END
    INTO v_output FROM orchestrator._step_rows(p.id, v_sinks) r;
  RETURN v_output;
END
$$;

-- What a failed or cancelled step means for its run.
CREATE FUNCTION orchestrator._fails_run(t orchestrator.task, spec jsonb) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN t.state = 'failed' AND t.error ->> 'sqlstate' = 'OR004'
           AND (SELECT d.timeout_policy = 'fail_workflow' FROM orchestrator.definition d WHERE d.id = t.definition)
      OR NOT coalesce(($2 ->> 'optional')::boolean, false) AND coalesce($2 ->> 'on_failure', 'fail') = 'fail';
END
$$;

-- Whether a failed or cancelled step, or item of a map, fails what is above it.
CREATE FUNCTION orchestrator._fails_above(t orchestrator.task, spec jsonb) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN orchestrator._fails_run(t, $2) OR t.item IS NOT NULL AND coalesce($2 ->> 'on_failure', '') <> 'continue';
END
$$;

-- One step reached a final state, in SQL. The lock of the top is held.
CREATE FUNCTION orchestrator._step_ended(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  p      orchestrator.task;
  v_spec jsonb;
BEGIN
  IF t.step < 0 THEN
    PERFORM orchestrator._undo_next(t);
    RETURN;
  END IF;
  IF t.item IS NOT NULL AND t.iteration IS NOT NULL THEN
    PERFORM orchestrator._piece_ended(t);
    RETURN;
  END IF;
  SELECT l.* INTO p FROM orchestrator.task_live l WHERE l.id = t.parent_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF t.state IN ('failed', 'cancelled') AND t.step IS NOT NULL THEN
    v_spec := orchestrator._step_spec(t.plan, CASE WHEN t.item IS NULL THEN p.id ELSE p.parent_id END, t.step);
    IF orchestrator._fails_above(t, v_spec) THEN
      PERFORM orchestrator._fail_run(p, t);
      RETURN;
    END IF;
  END IF;
  PERFORM orchestrator._advance(p.id, ARRAY[t.step], 1);
END
$$;

-- A run fails because a step of it did: what else of it lives is cancelled.
CREATE FUNCTION orchestrator._fail_run(p orchestrator.task, t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  p.error := coalesce(t.error, '{}') || jsonb_build_object('step', t.name, 'task', t.id, 'message',
    CASE WHEN p.step IS NOT NULL AND t.item IS NOT NULL THEN format('item %s of step "%s"', t.item, t.name) ELSE format('step "%s"', t.name) END
    || CASE t.state WHEN 'cancelled' THEN ' was cancelled' ELSE ' failed' END || coalesce(': ' || (t.error ->> 'message'), ''));
  PERFORM orchestrator._cancel_below(p.id, jsonb_build_object('by', 'orchestrator', 'reason', p.error ->> 'message'));
  PERFORM orchestrator._fail(p, p.error);
END
$$;

-- Live tasks below some, at any depth.
CREATE FUNCTION orchestrator._live_below(tasks bigint[]) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_found bigint[] := '{}';
  v_level bigint[] := $1;
BEGIN
  LOOP
    v_level := ARRAY(SELECT l.id FROM orchestrator.task_live l WHERE l.parent_id = ANY (v_level));
    EXIT WHEN v_level = '{}';
    v_found := v_found || v_level;
  END LOOP;
  RETURN v_found;
END
$$;

-- Lock live tasks in the order of their ids; executors of the fast lane let
-- go of theirs first. Returns those that are still live.
CREATE FUNCTION orchestrator._lock_live_rows(ids bigint[]) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  PERFORM orchestrator._yield(i) FROM unnest($1) i;
  RETURN ARRAY(SELECT l.id FROM orchestrator.task_live l WHERE l.id = ANY ($1) ORDER BY l.id FOR UPDATE);
END
$$;

CREATE FUNCTION orchestrator._cancel_below(task bigint, detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._cancel_locked(orchestrator._lock_live_rows(orchestrator._live_below(ARRAY[$1])), $2);
END
$$;

-- Compensation: the undo handlers of completed steps run one after another, in
-- reverse order of completion. Of a run that failed or was cancelled for good;
-- of nested ones the outermost.
CREATE FUNCTION orchestrator._compensate(p orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  above orchestrator.task;
BEGIN
  IF orchestrator._kind(p.definition) = 'batch' THEN
    -- those of its workflows that end with it, each by itself
    FOR above IN SELECT f.* FROM orchestrator.task_finished f
                 WHERE f.parent_id = p.id AND f.id > p.id AND f.state = 'cancelled' AND f.remaining IS NOT NULL AND f.compensation IS NULL ORDER BY f.id LOOP
      PERFORM orchestrator._compensate(above);
    END LOOP;
    RETURN;
  END IF;
  SELECT l.* INTO above FROM orchestrator.task_live l WHERE l.id = p.parent_id;
  IF FOUND AND p.step IS NOT NULL
     AND orchestrator._fails_above(p, orchestrator._step_spec(p.plan, CASE WHEN p.item IS NULL THEN above.id ELSE above.parent_id END, p.step)) THEN
    RETURN;
  END IF;
  IF orchestrator._place_undo(p) THEN
    UPDATE orchestrator.task_finished f SET compensation = 'running' WHERE f.id = p.id;
  END IF;
END
$$;

-- Completed steps at any depth below a run that are to be undone and are not
-- yet, the last one first. A step with an undo of its own stands for what is
-- below it.
CREATE FUNCTION orchestrator._to_undo(parent bigint) RETURNS SETOF orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  t orchestrator.task;
BEGIN
  FOR t IN SELECT f.* FROM orchestrator.task_finished f
           WHERE f.parent_id = $1 AND f.id > $1
             AND (f.step > 0 AND (f.state = 'completed' OR f.remaining IS NOT NULL)
                  OR f.step IS NULL AND f.state = 'cancelled' AND f.remaining IS NOT NULL) LOOP   -- of a batch
    IF t.state = 'completed' AND (t.item IS NOT NULL OR t.remaining IS NULL OR orchestrator._kind(t.definition) <> 'map')
       AND orchestrator._step_spec(t.plan, coalesce((SELECT x.parent_id FROM orchestrator.task_finished x WHERE t.item IS NOT NULL AND x.id = t.parent_id), t.parent_id), t.step) ? 'undo' THEN
      CONTINUE WHEN EXISTS (SELECT FROM orchestrator.task u WHERE u.parent_id = t.parent_id AND u.step = -t.step AND u.item IS NOT DISTINCT FROM t.item);
      RETURN NEXT t;
    ELSIF t.remaining IS NOT NULL THEN
      RETURN QUERY SELECT u.* FROM orchestrator._to_undo(t.id) u;
    END IF;
  END LOOP;
END
$$;

-- Place the next undo of a run; false: none is left.
CREATE FUNCTION orchestrator._place_undo(p orchestrator.task) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t      orchestrator.task;
  u      orchestrator.task;
  above  orchestrator.task;
  v_spec jsonb;
BEGIN
  SELECT x.* INTO t FROM orchestrator._to_undo(p.id) x ORDER BY x.finished_at DESC, x.id DESC LIMIT 1;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  above := orchestrator._task(t.parent_id);
  v_spec := orchestrator._step_spec(t.plan, CASE WHEN t.item IS NULL THEN above.id ELSE above.parent_id END, t.step);
  u := orchestrator._new_step(above, -t.step, v_spec, (v_spec ->> 'undo')::int);
  u.item := t.item;
  u.plan := t.plan;
  u.deadline := NULL;   -- what was done is undone however late it is
  u.name := t.name || ' (undo)';
  u.input := CASE jsonb_typeof(t.input) WHEN 'object' THEN t.input ELSE jsonb_build_object('input', t.input) END
    || jsonb_build_object('output', coalesce(t.output, 'null'));
  above.state := 'waiting';   -- it is final: nothing holds the undo
  PERFORM orchestrator._place(u, above);
  RETURN true;
END
$$;

-- An undo ended: the next one, or the end of the compensation.
CREATE FUNCTION orchestrator._undo_next(u orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  p orchestrator.task := orchestrator._task(u.parent_id);
BEGIN
  WHILE p.compensation IS DISTINCT FROM 'running' AND p.parent_id IS NOT NULL LOOP
    p := orchestrator._task(p.parent_id);
  END LOOP;
  IF p.compensation IS DISTINCT FROM 'running' THEN
    RETURN;
  END IF;
  IF u.state <> 'completed' THEN
    PERFORM orchestrator._trace(p, NULL, p.attempt, 'undo_failed', coalesce(u.error, '{}') || jsonb_build_object('step', u.name, 'task', u.id));
  END IF;
  IF NOT orchestrator._place_undo(p) THEN
    UPDATE orchestrator.task_finished f
      SET compensation = CASE WHEN orchestrator._undo_failed(p.id) THEN 'failed' ELSE 'done' END
      WHERE f.id = p.id RETURNING f.* INTO p;
    PERFORM orchestrator._trace(p, NULL, p.attempt, 'compensated', jsonb_build_object('compensation', p.compensation));
  END IF;
END
$$;

CREATE FUNCTION orchestrator._undo_failed(parent bigint) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
  RETURN EXISTS (SELECT FROM orchestrator.task_finished f WHERE f.parent_id = $1 AND f.id > $1 AND f.step < 0 AND f.state <> 'completed')
      OR EXISTS (SELECT FROM orchestrator.task_finished f
                 WHERE f.parent_id = $1 AND f.id > $1 AND f.remaining IS NOT NULL AND orchestrator._undo_failed(f.id));
END
$$;

-- Signals. One that nobody waits for is kept. A wait in the state waiting is
-- served under the lock of the top; where that cannot be had at once the
-- supervisor does it after commit.
CREATE FUNCTION orchestrator._take_signal(task bigint, name text) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_payload jsonb;
BEGIN
  UPDATE orchestrator.signal s SET consumed_by = $1, consumed_at = orchestrator._now()
    WHERE s.id = (SELECT x.id FROM orchestrator.signal x
                  WHERE x.task_id = ANY (orchestrator._addresses($1)) AND x.name = $2 AND x.verdict IS NULL AND x.consumed_by IS NULL
                  ORDER BY x.id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING s.payload INTO v_payload;
  RETURN v_payload;
END
$$;

-- A signal reaches a step that it is sent to, and all that is below the task
-- that it is sent to.
CREATE FUNCTION orchestrator._addresses(task bigint) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_ids   bigint[] := '{}';
  v_above bigint := $1;
BEGIN
  WHILE v_above IS NOT NULL LOOP
    v_ids := v_ids || v_above;
    v_above := (orchestrator._task(v_above)).parent_id;
  END LOOP;
  RETURN v_ids;
END
$$;

-- Give a wait step what it waits for, if it is there. The lock of the top is
-- held. True: it ended; at once: as it began, and the caller is to count it.
CREATE FUNCTION orchestrator._deliver(t orchestrator.task, spec jsonb, at_once boolean DEFAULT false) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  s orchestrator.signal;
BEGIN
  UPDATE orchestrator.signal x SET consumed_by = t.id, consumed_at = orchestrator._now()
    WHERE x.id = (SELECT y.id FROM orchestrator.signal y
                  WHERE y.task_id = ANY (orchestrator._addresses(t.id)) AND y.consumed_by IS NULL
                    AND CASE WHEN y.verdict IS NULL THEN y.name = $2 ->> 'wait_for'
                                                    ELSE y.name = t.name AND y.task_id = t.parent_id END
                  ORDER BY y.id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING x.* INTO s;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM orchestrator._trace(t, NULL, t.attempt, 'signalled', jsonb_strip_nulls(jsonb_build_object('name', s.name, 'by', s.sent_by, 'verdict', s.verdict)));
  IF s.verdict = 'rejected' THEN
    t.error := jsonb_strip_nulls(jsonb_build_object('sqlstate', 'OR006', 'message', format('rejected by "%s"', s.sent_by),
                                                    'detail', s.payload ->> 'reason'));
    t.state := 'failed';
    IF $3 AND NOT orchestrator._fails_run(t, $2) THEN
      PERFORM orchestrator._end_at_once(t);
      RETURN true;
    END IF;
    PERFORM orchestrator._fail(t, t.error);
    RETURN NOT $3;
  END IF;
  t.state := 'completed';
  t.output := CASE s.verdict WHEN 'approved' THEN jsonb_build_object('approved', true, 'by', s.sent_by, 'at', s.sent_at, 'payload', s.payload)
                             ELSE s.payload END;
  IF $3 THEN
    PERFORM orchestrator._end_at_once(t);
    RETURN true;
  END IF;
  PERFORM orchestrator._tell(t, 'completed');
  PERFORM orchestrator._finish(t);
  RETURN true;
END
$$;

-- Serve what waits at or below a task that signals were sent to; returns
-- false when its tree is locked by others (nowait).
CREATE FUNCTION orchestrator._deliver_to(task bigint, nowait boolean) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t       orchestrator.task := orchestrator._task($1);
  w       orchestrator.task;
  v_spec  jsonb;
BEGIN
  IF NOT orchestrator._lock_root(coalesce(t.root_id, t.id), $2) THEN
    RETURN false;
  END IF;
  FOR w IN SELECT l.* FROM orchestrator.task_live l
           WHERE l.id = ANY (orchestrator._live_below(ARRAY[$1]) || $1) AND l.state = 'waiting' AND l.remaining IS NULL
           ORDER BY l.id FOR UPDATE LOOP
    -- the one before may have ended the run
    CONTINUE WHEN NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = w.id AND l.state = 'waiting');
    IF orchestrator._kind(w.definition) = 'procedure' THEN
      PERFORM orchestrator._wake_procedure(w.id)
        WHERE EXISTS (SELECT FROM orchestrator.step_memo m JOIN orchestrator.signal s ON s.name = m.result ->> 'signal'
                      WHERE m.task_id = w.id AND m.name = 'waiting' AND s.consumed_by IS NULL AND s.task_id = ANY (orchestrator._addresses(w.id)));
    ELSIF orchestrator._kind(w.definition) = 'wait' THEN
      v_spec := orchestrator._step_spec(w.plan, w.parent_id, w.step);
      IF v_spec ? 'wait_for' THEN
        PERFORM orchestrator._deliver(w, v_spec);
      END IF;
    END IF;
  END LOOP;
  RETURN true;
END
$$;

-- The supervisor met an error with a task: the other tasks must not wait for
-- it. Where it took as long as the supervisor's watchdog allows (a path that
-- does not end), its run fails; else it is tried again. Its tree is locked.
CREATE FUNCTION orchestrator._give_up(task bigint, began timestamptz, what text, error text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t orchestrator.task := orchestrator._task($1);
BEGIN
  RAISE WARNING '%: %', format($3, $1), $4;
  SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = coalesce(t.root_id, t.id) AND clock_timestamp() - $2 > interval '4 seconds' FOR UPDATE;
  IF FOUND THEN
    t.error := jsonb_build_object('sqlstate', 'OR004', 'message', 'what was to be done next took too long: ' || $4,
                                  'hint', 'See the paths of its steps: when, each, input.');
    PERFORM orchestrator._cancel_below(t.id, jsonb_build_object('by', 'orchestrator', 'reason', t.error ->> 'message'));
    PERFORM orchestrator._fail(t, t.error);
  END IF;
END
$$;

-- What could not be delivered at once. Called by the supervisor.
CREATE FUNCTION orchestrator._deliver_signals() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_task  bigint;
  v_began timestamptz;
BEGIN
  FOR v_task IN SELECT DISTINCT s.task_id FROM orchestrator.signal s WHERE s.undelivered ORDER BY 1 LOOP
    v_began := clock_timestamp();
    BEGIN
      IF orchestrator._deliver_to(v_task, true) THEN
        UPDATE orchestrator.signal s SET undelivered = false WHERE s.task_id = v_task AND s.undelivered;
      ELSE
        PERFORM orchestrator._due(orchestrator._now() + interval '10 ms');
      END IF;
    EXCEPTION WHEN OTHERS OR query_canceled THEN
      -- the next signal or its timeout tries again
      PERFORM orchestrator._give_up(v_task, v_began, 'signals for task %s were not delivered', SQLERRM);
      UPDATE orchestrator.signal s SET undelivered = false WHERE s.task_id = v_task AND s.undelivered;
    END;
  END LOOP;
END
$$;

-- A wait whose time came: a sleep is over, a signal did not come.
CREATE FUNCTION orchestrator._end_wait(t orchestrator.task) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_spec jsonb := orchestrator._step_spec(t.plan, t.parent_id, t.step);
BEGIN
  IF v_spec ? 'wait_for' AND orchestrator._deliver(t, v_spec) THEN
    RETURN;   -- it came in time
  ELSIF v_spec ? 'wait_for' AND coalesce(v_spec ->> 'on_timeout', 'fail') = 'fail' THEN
    t.error := jsonb_build_object('sqlstate', 'OR004', 'message', format('signal "%s" did not come within %s', v_spec ->> 'wait_for', v_spec ->> 'timeout'));
    PERFORM orchestrator._fail(t, t.error);
    RETURN;
  ELSIF v_spec ? 'wait_for' THEN
    t.output := '{"timed_out": true}';
    PERFORM orchestrator._trace(t, NULL, t.attempt, 'timeout', jsonb_build_object('signal', v_spec ->> 'wait_for'));
  END IF;
  t.state := 'completed';
  PERFORM orchestrator._tell(t, 'completed');
  PERFORM orchestrator._finish(t);
END
$$;

-- Callbacks: what on_completion() and the definition asked for is enqueued, as
-- the owner of the task, in the transaction that ends it. late: it ended before,
-- and only what was asked for now is left.
CREATE FUNCTION orchestrator._call_back(t orchestrator.task, late boolean DEFAULT false) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d       orchestrator.definition;
  v_calls jsonb := coalesce(t.callbacks, '[]');
  v_call  jsonb;
  v_name  text;
BEGIN
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = t.definition;
  v_name := CASE t.state WHEN 'completed' THEN d.success_callback WHEN 'skipped' THEN NULL ELSE d.failure_callback END;
  IF v_name IS NOT NULL AND NOT $2 AND NOT orchestrator._is_round(t) THEN
    v_calls := v_calls || jsonb_build_object('definition', v_name);
  END IF;
  FOR v_call IN SELECT c FROM jsonb_array_elements(v_calls) c LOOP
    IF v_call ? 'schedule' THEN
      PERFORM orchestrator._schedule_ended((v_call ->> 'schedule')::int, t.id);
      CONTINUE;
    ELSIF v_call ? 'line' THEN
      PERFORM orchestrator._leave_line(t.id);
      CONTINUE;
    END IF;
    BEGIN
      PERFORM orchestrator._follow(t.owner, v_call ->> 'definition', v_call ->> 'endpoint', 'task.' || t.state, t.id,
        jsonb_strip_nulls(jsonb_build_object('task', t.id, 'name', t.name, 'definition', d.name, 'state', t.state))
          || jsonb_build_object('output', t.output, 'error', t.error, 'input', coalesce(v_call -> 'input', t.input)));
    EXCEPTION WHEN undefined_object OR insufficient_privilege OR object_not_in_prerequisite_state OR ambiguous_alias
                OR data_exception OR program_limit_exceeded THEN
      -- the task ended all the same
      PERFORM orchestrator._trace(t, NULL, t.attempt, 'callback_failed',
        jsonb_strip_nulls(jsonb_build_object('definition', v_call -> 'definition', 'endpoint', v_call -> 'endpoint', 'sqlstate', SQLSTATE, 'message', SQLERRM)));
    END;
  END LOOP;
END
$$;

-- Enqueue as an owner, in SQL.
CREATE FUNCTION orchestrator._enqueue_as(owner int, definition text, input jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  r      record;
  t      orchestrator.task;
  v_role oid := (SELECT o.role FROM orchestrator.owner o WHERE o.id = $1);
BEGIN
  SELECT x.* INTO r FROM orchestrator._resolve_definition(v_role, $2) x;
  t.queue := r.queue;
  t.priority := r.priority;
  RETURN orchestrator._place_root(t, $1, r.definition_id, $3, r.queue_timeout);
END
$$;

-- Place a task at the top of a tree; of a workflow its first steps, too.
-- queue, priority and what else was asked for are set in t, and state where it
-- has to wait.
CREATE FUNCTION orchestrator._place_root(t orchestrator.task, owner int, definition int, input jsonb, expires interval) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d orchestrator.definition;
BEGIN
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = $3;
  t.id := coalesce(t.id, orchestrator._next_id());
  t.created_at := orchestrator._now();
  t.owner := $2;
  t.definition := $3;
  t.queue := coalesce(t.queue, d.queue, 1);
  t.priority := coalesce(t.priority, d.priority, 0);
  t.attempt := 0;
  t.max_attempts := coalesce(d.max_attempts, 1);
  t.epoch := 0;
  t.live := true;
  t.input := coalesce($4, '{}');
  t.state := coalesce(t.state, 'pending');
  PERFORM orchestrator._check_input(t.input);
  IF d.kind IN ('workflow', 'batch') THEN
    t.remaining := coalesce(t.remaining, cardinality(d.step_names));
    t.state := CASE WHEN t.run_at > t.created_at THEN 'scheduled' ELSE 'waiting' END;
    t.expire_at := least(t.deadline, t.created_at + d.timeout);
  END IF;
  t := orchestrator._place(t, NULL);
  IF d.kind = 'workflow' AND t.state = 'waiting' THEN
    PERFORM orchestrator._start_steps(t.id);
  END IF;
  RETURN t.id;
END
$$;

-- What a step asked for while it ran. Under the lock of the top.
CREATE FUNCTION orchestrator._apply_requests(t orchestrator.task, requests jsonb) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_request jsonb;
  p         orchestrator.task;
BEGIN
  FOR v_request IN SELECT r FROM jsonb_array_elements($2) r LOOP
    CASE v_request ->> 'verb'
      WHEN 'add_steps' THEN
        p := orchestrator._append_steps(orchestrator._run_of(t), v_request -> 'steps', (v_request ->> 'delay')::interval);
        IF p.id = t.id THEN
          t.remaining := p.remaining;
        END IF;
      WHEN 'call' THEN   -- tools (chapter 59)
        p := orchestrator._add_calls(t, v_request -> 'steps');
        IF p.id = t.id THEN
          t.remaining := p.remaining;
        END IF;
      WHEN 'set_context' THEN
        PERFORM orchestrator._keep_context(t, v_request -> 'value');
      WHEN 'checkpoint' THEN
        IF jsonb_typeof(v_request -> 'context') <> 'null' THEN
          PERFORM orchestrator._keep_context(t, v_request -> 'context');
        END IF;
    END CASE;
  END LOOP;
  RETURN t;
END
$$;

-- The checkpoints among it: they have the step that asked.
CREATE FUNCTION orchestrator._apply_checkpoints(t orchestrator.task, requests jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._keep_checkpoint(orchestrator._task(coalesce(t.root_id, t.id)), r ->> 'name', NULL)
    FROM jsonb_array_elements($2) r WHERE r ->> 'verb' = 'checkpoint';
END
$$;

-- The run that a step's new siblings belong to: that of the step, of its map;
-- a task that is no step, or an item of a batch, is one of its own.
CREATE FUNCTION orchestrator._run_of(t orchestrator.task) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p orchestrator.task := orchestrator._task(t.parent_id);
BEGIN
  IF p.id IS NULL OR orchestrator._kind(p.definition) = 'batch' THEN
    RETURN t;
  ELSIF orchestrator._kind(p.definition) = 'map' THEN
    RETURN orchestrator._task(p.parent_id);
  END IF;
  RETURN p;
END
$$;

-- Add compiled-to-be steps to a locked run. Raises when the limits forbid it.
CREATE FUNCTION orchestrator._append_steps(p orchestrator.task, specs jsonb, delay interval) RETURNS orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  d         orchestrator.definition;
  v_known   text[];
  v_steps   jsonb;
  v_planned int;
  v_limit   int;
BEGIN
  IF NOT p.live THEN
    PERFORM orchestrator._refuse(p, 'add steps to', 'It is finished.');
  END IF;
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = p.definition;
  v_planned := coalesce(cardinality(d.step_names), 0);
  v_known := coalesce(d.step_names, '{}') || ARRAY(SELECT a.spec ->> 'name' FROM orchestrator.added_step a WHERE a.task_id = p.id ORDER BY a.step);
  v_limit := coalesce(d.max_steps, v_planned + 50);
  IF cardinality(v_known) + jsonb_array_length($2) > v_limit THEN
    RAISE EXCEPTION 'task % would have % steps, more than max_steps, %', p.id, cardinality(v_known) + jsonb_array_length($2), v_limit
      USING ERRCODE = 'OR007', HINT = 'Raise max_steps of its definition with orchestrator.define_workflow() or define().';
  END IF;
  PERFORM orchestrator._check_depth(p, 0);
  PERFORM orchestrator._require($3 IS NULL OR NOT $2 @> '[{"kind": "checkpoint"}]', 'a step of kind checkpoint cannot be delayed', 'Let it need a step that sleeps.');
  SELECT c.steps INTO v_steps
    FROM orchestrator._compile_steps((SELECT o.role FROM orchestrator.owner o WHERE o.id = p.owner), p.owner, d.name || '+', $2, v_known,
                                     orchestrator._step_defaults(d.document), d.checkpoint_interval IS NOT NULL) c;
  INSERT INTO orchestrator.added_step (task_id, step, owner, spec)
    SELECT p.id, cardinality(v_known) + e.place, p.owner,
           e.spec || CASE WHEN $3 IS NULL THEN '{}' ELSE jsonb_build_object('delay', $3::text) END
    FROM jsonb_array_elements(v_steps) WITH ORDINALITY e(spec, place);
  p.remaining := coalesce(p.remaining, 0) + jsonb_array_length(v_steps);
  UPDATE orchestrator.task_live l SET remaining = p.remaining WHERE l.id = p.id;
  PERFORM orchestrator._leave_plan(p.id);
  PERFORM orchestrator._trace(p, NULL, p.attempt, 'steps_added', jsonb_build_object('steps', (SELECT jsonb_agg(e -> 'name') FROM jsonb_array_elements(v_steps) e)));
  RETURN p;   -- the caller starts them, by _start_added()
END
$$;

-- Start those added steps that can be.
CREATE FUNCTION orchestrator._start_added(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  p orchestrator.task;
BEGIN
  SELECT l.* INTO p FROM orchestrator.task_live l WHERE l.id = $1 AND l.remaining IS NOT NULL;
  IF FOUND THEN
    PERFORM orchestrator._try_steps(p, ARRAY(SELECT a.step FROM orchestrator.added_step a WHERE a.task_id = $1 ORDER BY 1));
    PERFORM orchestrator._close_if_done($1);
  END IF;
END
$$;

-- However it grows: it is one row.
CREATE FUNCTION orchestrator._keep_context(t orchestrator.task, value jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF octet_length($2::text) > pg_size_bytes(current_setting('orchestrator.max_input_size')) THEN
    RAISE EXCEPTION 'the context of task % would be larger than orchestrator.max_input_size', coalesce(t.root_id, t.id)
      USING ERRCODE = 'program_limit_exceeded', HINT = 'Have it summarised: with context of orchestrator.define_workflow(), or by a step of kind summarize.';
  END IF;
  INSERT INTO orchestrator.run_context AS c (task_id, owner, value) VALUES (coalesce(t.root_id, t.id), t.owner, $2)
    ON CONFLICT ON CONSTRAINT run_context_pkey DO UPDATE SET value = excluded.value;
END
$$;

-- A checkpoint of a run: the steps that are completed, and its context.
CREATE FUNCTION orchestrator._keep_checkpoint(p orchestrator.task, name text, context jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_context jsonb := coalesce($3, (SELECT c.value FROM orchestrator.run_context c WHERE c.task_id = coalesce(p.root_id, p.id)));
BEGIN
  INSERT INTO orchestrator.checkpoint AS c (task_id, owner, name, context, steps, created_at)
    SELECT p.id, p.owner, $2, v_context, coalesce(jsonb_object_agg(r.name, r.epoch), '{}'), orchestrator._now()
    FROM orchestrator._step_rows(p.id, NULL) r WHERE r.state IN ('completed', 'skipped')
    ON CONFLICT ON CONSTRAINT checkpoint_task_id_name_key
      DO UPDATE SET context = excluded.context, steps = excluded.steps, created_at = excluded.created_at;
  PERFORM orchestrator._trace(p, NULL, p.attempt, 'checkpoint', jsonb_build_object('name', $2));
END
$$;
