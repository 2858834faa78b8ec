-- Observe: wait, progress, current_task (src/wait.c, src/progress.c), the answer
-- of a model while it comes (src/follow.c); what a step asks of its run
-- (src/request.c).

CREATE FUNCTION orchestrator.wait(task bigint, timeout interval DEFAULT NULL) RETURNS orchestrator.task_result
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_wait';
COMMENT ON FUNCTION orchestrator.wait(bigint, interval) IS
  'Sleeps until a task is finished and returns its result, or after the timeout its state. Its snapshot stays open meanwhile: for long waits CALL await()';

CREATE PROCEDURE orchestrator.await(task bigint, timeout interval DEFAULT NULL, INOUT result orchestrator.task_result DEFAULT NULL)
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_await';
COMMENT ON PROCEDURE orchestrator.await(bigint, interval, orchestrator.task_result) IS
  'Like wait(), without keeping a snapshot open while it sleeps';

CREATE FUNCTION orchestrator.llm_stream(task bigint, after bigint DEFAULT 0, INOUT attempt int DEFAULT NULL, OUT length bigint, OUT text text, OUT done boolean) RETURNS SETOF record
  LANGUAGE C VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'orchestrator_llm_stream';
COMMENT ON FUNCTION orchestrator.llm_stream(bigint, bigint, int) IS
  'The answer of a step of kind llm as far as it has come: the text behind so many characters, and the length of all. Read on with after => that length and attempt => that attempt: another attempt is read from its beginning';

CREATE FUNCTION orchestrator.current_task(OUT task_id bigint, OUT parent_id bigint, OUT definition text, OUT attempt int,
    OUT max_attempts int, OUT key text, OUT metadata jsonb, OUT deadline timestamptz) RETURNS record
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_current_task';
COMMENT ON FUNCTION orchestrator.current_task() IS 'Inside a step: the task that it is a step of; elsewhere nulls, and in a call for many tasks (batch_size): see current_batch()';

CREATE FUNCTION orchestrator.current_batch(OUT item int, OUT task_id bigint, OUT parent_id bigint, OUT definition text,
    OUT attempt int, OUT max_attempts int, OUT key text, OUT metadata jsonb, OUT deadline timestamptz) RETURNS SETOF record
  LANGUAGE C VOLATILE ROWS 100 AS 'MODULE_PATHNAME', 'orchestrator_current_batch';
COMMENT ON FUNCTION orchestrator.current_batch() IS
  'Inside a call for many tasks (batch_size): the task of each input, item being its place in the array; elsewhere no rows';

CREATE FUNCTION orchestrator.item_error(message text, sqlstate text DEFAULT 'P0001', retry boolean DEFAULT true) RETURNS jsonb
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'orchestrator_item_error';
COMMENT ON FUNCTION orchestrator.item_error(text, text, boolean) IS
  'In the result of a call for many tasks (batch_size): the task of this input failed, and the others did not; retry => false: for good';

CREATE FUNCTION orchestrator.progress(fraction float8, message text DEFAULT NULL, stage text DEFAULT NULL) RETURNS void
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_progress';
COMMENT ON FUNCTION orchestrator.progress(float8, text, text) IS
  'Inside a step: tells how far it is, from 0 to 1; seen at once, before the step commits';

-- What a step asks for is done when it completes, in the same transaction
-- (_settle_completed), and not at all when it fails or rolls it back.
CREATE FUNCTION orchestrator.add_steps(steps orchestrator.step_spec[], delay interval DEFAULT NULL) RETURNS void
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_add_steps';
COMMENT ON FUNCTION orchestrator.add_steps(orchestrator.step_spec[], interval) IS
  'Inside a step: adds steps to its run, beside it. They are checked at once, and begin when the step has completed, after the delay';

CREATE FUNCTION orchestrator.set_context(value jsonb) RETURNS void
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_set_context';
COMMENT ON FUNCTION orchestrator.set_context(jsonb) IS
  'Inside a step: keeps the state of its run, which context() reads; from when the step has completed';

CREATE FUNCTION orchestrator.checkpoint(name text, context jsonb DEFAULT NULL) RETURNS void
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_checkpoint';
COMMENT ON FUNCTION orchestrator.checkpoint(text, jsonb) IS
  'Inside a step: names the point at which it completes, for restore(); with a context, the run keeps that';
