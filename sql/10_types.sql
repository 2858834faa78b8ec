-- Types: states and results.

CREATE TYPE orchestrator.task_state AS ENUM (
  'scheduled',   -- not before run_at, also between retries; next: pending, paused, cancelled, failed (expired)
  'pending',     -- ready to claim; next: running, paused, cancelled, failed (expired)
  'running',     -- claimed by a worker; next: completed, failed, scheduled or pending (retry), paused, cancelled
  'waiting',     -- for dependencies, children, a signal; next: pending, paused, completed, failed, cancelled, skipped
  'paused',      -- held until resume(); next: the state it was in, cancelled
  'completed',   -- final
  'failed',      -- final; next: scheduled or pending by retry()
  'cancelled',   -- final; next: scheduled or pending by retry()
  'skipped'      -- final
);
COMMENT ON TYPE orchestrator.task_state IS
  'States of a task: scheduled, pending, running, waiting, paused; final: completed, failed, cancelled, skipped';

CREATE TYPE orchestrator.task_result AS (
  state  orchestrator.task_state,
  output jsonb,
  error  jsonb
);
COMMENT ON TYPE orchestrator.task_result IS
  'What wait() and await() return: the state of the task, the output of a completed one, the error of a failed one as {sqlstate, message, detail, hint, context}';

CREATE TYPE orchestrator.claimed_task AS (
  task_id         bigint,
  token           text,          -- for every report: the epoch, and 128 random bits
  definition      text,
  handler         text,          -- what to run, as the definition says; else its name
  input           jsonb,
  attempt         int,
  max_attempts    int,
  idempotency_key text,          -- the same in every attempt
  queue           text,
  owner           text,
  name            text,
  parent_id       bigint,
  root_id         bigint,
  key             text,
  metadata        jsonb,
  deadline        timestamptz,
  timeout_at      timestamptz,   -- of this attempt
  lease_until     timestamptz,
  traceparent     text
);
COMMENT ON TYPE orchestrator.claimed_task IS
  'A task that claim() gave to a remote worker: what to do, and the token that its reports need';

CREATE DOMAIN orchestrator.step_spec AS jsonb
  CONSTRAINT step_spec_has_a_name
  CHECK (VALUE IS NULL OR jsonb_typeof(VALUE) = 'object' AND coalesce(jsonb_typeof(VALUE -> 'name') = 'string', false));
COMMENT ON DOMAIN orchestrator.step_spec IS
  'One step of a workflow, as step() makes it: an object with a name and what the step does, needs and may';
