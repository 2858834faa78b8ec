-- Tables.
--
-- Roles and everything that belongs to them are referred to by owner.id: a
-- task stores 4 bytes and the pair (OID, name) is kept once, so that a role
-- that was renamed, or dropped and made again, no longer fits its old tasks.
--
-- There are no foreign keys: pg_restore -j fills the tables of an extension in
-- any order, with their constraints already there. Only the engine writes.

CREATE TABLE orchestrator.database_identity (
  system_identifier bigint      NOT NULL,
  database          oid         NOT NULL,
  activated_at      timestamptz NOT NULL,
  PRIMARY KEY (system_identifier, database)
);
COMMENT ON TABLE orchestrator.database_identity IS
  'The server and database whose workers may run the tasks found here. A restored or cloned database does not match until activate() is called';

CREATE SEQUENCE orchestrator.owner_id_seq AS int;
CREATE TABLE orchestrator.owner (
  id   int  PRIMARY KEY DEFAULT nextval('orchestrator.owner_id_seq'),
  role oid  NOT NULL,
  name name NOT NULL,
  UNIQUE (role, name)
);
ALTER SEQUENCE orchestrator.owner_id_seq OWNED BY orchestrator.owner.id;
COMMENT ON TABLE orchestrator.owner IS
  'Roles that own definitions, queues or tasks, by OID and name: both must fit for a task to run. Row 0 stands for everybody';

CREATE TABLE orchestrator.usage_grant (
  grantee int  PRIMARY KEY,
  level   text NOT NULL CHECK (level IN ('producer', 'worker', 'viewer', 'admin'))
);
COMMENT ON TABLE orchestrator.usage_grant IS 'What grant_usage() gave to whom in this database';

CREATE SEQUENCE orchestrator.queue_id_seq AS int START 2;   -- 1 is "default"
CREATE TABLE orchestrator.queue (
  id          int         PRIMARY KEY DEFAULT nextval('orchestrator.queue_id_seq'),
  owner       int         NOT NULL,
  name        text        NOT NULL CHECK (name <> '' AND length(name) <= 200),
  paused      boolean     NOT NULL DEFAULT false,
  paused_at   timestamptz,
  description text,
  metadata    jsonb,
  created_at  timestamptz NOT NULL,
  max_running      int      CHECK (max_running > 0),
  rate_limit       int      CHECK (rate_limit > 0),
  rate_period      interval,
  weight           int      NOT NULL DEFAULT 1 CHECK (weight > 0),
  tenant           text,               -- path over the input; null: no fair share
  tenant_weights   jsonb,              -- {"tenant": weight}; 1 unless it is there
  adaptive         boolean  NOT NULL DEFAULT false,
  min_running      int      CHECK (min_running > 0),   -- adaptive: never fewer
  max_depth        int      CHECK (max_depth > 0),
  on_full          text     NOT NULL DEFAULT 'reject' CHECK (on_full IN ('reject', 'wait', 'defer')),
  full_wait        interval,           -- how long to wait, or to defer for
  alert_depth      int      CHECK (alert_depth > 0),
  alert_age        interval,
  alert_endpoint   text,               -- where alerts are posted; null: nowhere
  alert_owner      int,                -- and as whose tasks
  retention        interval,           -- of finished tasks; null: the default
  retention_failed interval,           -- of failed ones; null: as the others
  UNIQUE (owner, name)
);
ALTER SEQUENCE orchestrator.queue_id_seq OWNED BY orchestrator.queue.id;
COMMENT ON TABLE orchestrator.queue IS 'Where tasks wait. Queue "default" belongs to everybody';

CREATE TABLE orchestrator.role_quota (
  owner         int PRIMARY KEY,       -- 0: roles that have none of their own
  max_queued    int CHECK (max_queued > 0),
  max_running   int CHECK (max_running > 0),
  max_schedules int CHECK (max_schedules > 0)
);
COMMENT ON TABLE orchestrator.role_quota IS 'What set_quota() allows a role; null: any number';

CREATE SEQUENCE orchestrator.alert_id_seq;
CREATE TABLE orchestrator.alert (
  id         bigint           PRIMARY KEY DEFAULT nextval('orchestrator.alert_id_seq'),
  queue      int              NOT NULL,
  owner      int              NOT NULL,    -- of the queue
  kind       text             NOT NULL CHECK (kind IN ('depth', 'age')),
  raised_at  timestamptz      NOT NULL,
  cleared_at timestamptz,
  threshold  double precision NOT NULL,    -- tasks, or seconds
  value      double precision NOT NULL,    -- likewise, as of changed_at
  peak       double precision NOT NULL,
  changed_at timestamptz      NOT NULL
);
ALTER SEQUENCE orchestrator.alert_id_seq OWNED BY orchestrator.alert.id;
CREATE UNIQUE INDEX alert_raised ON orchestrator.alert (queue, kind) WHERE cleared_at IS NULL;
CREATE INDEX alert_history ON orchestrator.alert (queue, kind, id);
COMMENT ON TABLE orchestrator.alert IS
  'Every time that a queue was deeper than its alert_depth, or its oldest ready task older than its alert_age; the last 100 of each';

CREATE TABLE orchestrator.queue_share (
  queue   int NOT NULL,
  owner   int NOT NULL,               -- of the queue
  grantee int NOT NULL,
  may_claim boolean NOT NULL DEFAULT false,   -- as a remote worker, the tasks of everybody there
  PRIMARY KEY (queue, grantee)
);
COMMENT ON TABLE orchestrator.queue_share IS 'Queues that others may enqueue into, by share_queue()';

CREATE SEQUENCE orchestrator.definition_id_seq AS int;
CREATE TABLE orchestrator.definition (
  id                  int         PRIMARY KEY DEFAULT nextval('orchestrator.definition_id_seq'),
  owner               int         NOT NULL,
  name                text        NOT NULL CHECK (name <> '' AND length(name) <= 200),
  version             int         NOT NULL CHECK (version > 0),
  is_current          boolean     NOT NULL,
  kind                text        NOT NULL CHECK (kind IN ('function', 'sql', 'procedure', 'utility', 'workflow', 'map', 'batch', 'wait', 'remote', 'http', 'llm', 'embedding', 'tool', 'webhook', 'summarize')),
  handler             text,       -- schema.name(jsonb), the command, or what a remote worker is to run; null: the task brings its own (run)
  handler_owner       name,
  queue               int,
  priority            int         NOT NULL DEFAULT 0,
  max_attempts        int         NOT NULL DEFAULT 3 CHECK (max_attempts BETWEEN 1 AND 10000),
  backoff             text        NOT NULL DEFAULT 'exponential' CHECK (backoff IN ('exponential', 'fixed', 'linear')),
  retry_delay         interval    NOT NULL DEFAULT '1 second',
  max_retry_delay     interval    NOT NULL DEFAULT '1 hour',
  retry_jitter        float8      NOT NULL DEFAULT 0.1 CHECK (retry_jitter BETWEEN 0 AND 1),
  retry_budget        interval,
  never_retry         text[]      NOT NULL DEFAULT '{}',
  retry_priority_step int         NOT NULL DEFAULT 0,
  timeout             interval,
  queue_timeout       interval,
  response_timeout    interval,
  timeout_policy      text        NOT NULL DEFAULT 'retry' CHECK (timeout_policy IN ('retry', 'fail', 'fail_workflow', 'alert')),
  max_running         int         CHECK (max_running > 0),
  rate_limit          int         CHECK (rate_limit > 0),
  rate_period         interval,
  concurrency_key     text,       -- path over the input
  key_max_running     int         CHECK (key_max_running > 0),
  key_rate_limit      int         CHECK (key_rate_limit > 0),
  key_rate_period     interval,
  batch_size          int         CHECK (batch_size > 0),
  batch_wait          interval,
  endpoint            text,       -- of a call: a server of orchestrator_http
  request             jsonb,      -- and what is sent there
  notify              text        NOT NULL DEFAULT 'lifecycle' CHECK (notify IN ('off', 'lifecycle', 'all')),
  description         text,
  estimated_duration  interval,
  metadata            jsonb,
  created_at          timestamptz NOT NULL,
  success_callback    text,       -- definitions enqueued when a task of this one ended so
  failure_callback    text,
  checkpoint_interval int         CHECK (checkpoint_interval > 0),
  max_steps           int         CHECK (max_steps > 0),
  max_depth           int         CHECK (max_depth > 0),
  document            jsonb,      -- of a workflow: as it was given
  steps               jsonb,      -- the same, compiled: an array of steps by number (chapter 36)
  step_names          text[],
  plan                int[],      -- what C needs of each step (src/plan.c)
  UNIQUE (owner, name, version)
);
ALTER SEQUENCE orchestrator.definition_id_seq OWNED BY orchestrator.definition.id;
CREATE UNIQUE INDEX definition_current ON orchestrator.definition (owner, name) WHERE is_current;
COMMENT ON TABLE orchestrator.definition IS
  'Named, versioned descriptions of kinds of task. A task keeps the version it was enqueued with; enqueue takes the current one';

CREATE TABLE orchestrator.definition_share (
  owner   int  NOT NULL,
  name    text NOT NULL,
  grantee int  NOT NULL,
  PRIMARY KEY (owner, name, grantee)
);
COMMENT ON TABLE orchestrator.definition_share IS 'Definitions that others may enqueue, by share_definition()';

-- One table of tasks for readers, row-level security and dumps. Live and
-- finished rows are in different leaves, so that a claim touches only what is
-- alive and history is dropped by the partition. Neither parent has an index:
-- pg_dump attaches a partition before its indexes exist, and an index of the
-- parent would be made on it twice. The leaves are read and written directly
-- by src/heap.c, which knows the columns by number: keep both in step (an
-- assertion at start compares names).
CREATE SEQUENCE orchestrator.task_id_seq CACHE 1;
CREATE TABLE orchestrator.task (
  id           bigint      NOT NULL,
  sort_key     bigint,               -- when it became ready, in microseconds, less priority x a step; null unless ready; where tenants take turns, src/fair.c
  created_at   timestamptz NOT NULL,
  started_at   timestamptz,          -- of the last attempt
  finished_at  timestamptz,
  run_at       timestamptz,          -- not before
  expire_at    timestamptz,          -- first of deadline and end of queue_timeout
  deadline     timestamptz,
  parent_id    bigint,
  root_id      bigint,               -- null: the task itself
  state        orchestrator.task_state NOT NULL,
  held_state   orchestrator.task_state,          -- where resume() returns to
  owner        int         NOT NULL,
  definition   int         NOT NULL,
  queue        int         NOT NULL,
  priority     int         NOT NULL,
  attempt      int         NOT NULL,
  max_attempts int         NOT NULL,
  epoch        int         NOT NULL, -- rises with every change of ownership, never resets
  worker       int,                  -- process id of the executor
  live         boolean     NOT NULL,
  plan         int,                  -- of a step: the workflow definition that has it
  step         int,                  -- its number there, from 1; above: added while it ran; negative: the undo of that step
  item         int,                  -- of a map or batch: which item, from 0
  iteration    int,                  -- of a step that repeats: which round, from 1; of a map: items that were started, 2147483647 when all were
  remaining    int,                  -- of a task with steps: those that are not final; null: it has none
  held_by      bigint,               -- paused together with this task; of a scheduled call, the one whose summary it waits for
  parked_on    bigint,               -- a pending task that waits for this limit (src/permit.c); below 0: one for remote workers, less the number of its queue; a call, less 2^30 besides
  changed_at   timestamptz,          -- when it was last paused, resumed, put off or given back
  name         text,
  key          text,
  command      text,                 -- of a one-off task (run)
  traceparent  text,
  input        jsonb       NOT NULL,
  output       jsonb,
  error        jsonb,
  metadata     jsonb,
  resources    jsonb,                -- rows, buffers, wal_bytes, cpu_time, where measured; tokens_in, tokens_out, cost of models, with what is below
  compensation text,                 -- null: none
  callbacks    jsonb                 -- what on_completion() asked for
) PARTITION BY LIST (live);
ALTER SEQUENCE orchestrator.task_id_seq OWNED BY orchestrator.task.id;

CREATE TABLE orchestrator.task_live PARTITION OF orchestrator.task FOR VALUES IN (true);
CREATE UNIQUE INDEX task_live_id ON orchestrator.task_live (id);
-- A publication of all tables would else forbid every change but the direct ones.
ALTER TABLE orchestrator.task_live REPLICA IDENTITY USING INDEX task_live_id;
CREATE INDEX task_live_ready ON orchestrator.task_live (owner, queue, sort_key, id) WHERE state = 'pending' AND parked_on IS NULL;
CREATE INDEX task_live_parked ON orchestrator.task_live (owner, parked_on, sort_key, id) WHERE state = 'pending' AND parked_on IS NOT NULL;
CREATE INDEX task_live_due ON orchestrator.task_live (run_at) WHERE state = 'scheduled';
CREATE INDEX task_live_later ON orchestrator.task_live (owner, queue)
  WHERE state = 'scheduled' OR state = 'pending' AND parked_on IS NOT NULL OR state = 'paused' AND held_state IN ('pending', 'scheduled');
CREATE INDEX task_live_running ON orchestrator.task_live (worker) WHERE state = 'running';
CREATE INDEX task_live_expire ON orchestrator.task_live (expire_at) WHERE expire_at IS NOT NULL;
CREATE INDEX task_live_parent ON orchestrator.task_live (parent_id, step, item) WHERE parent_id IS NOT NULL;

CREATE TABLE orchestrator.task_finished PARTITION OF orchestrator.task FOR VALUES IN (false)
  PARTITION BY RANGE (id);

COMMENT ON TABLE orchestrator.task IS
  'Every task. Live rows (live) and finished rows (by ranges of id) are in different partitions';
COMMENT ON COLUMN orchestrator.task.epoch IS
  'Fencing number: rises with every claim and every take-over, never resets; a report with an older one is refused';
COMMENT ON COLUMN orchestrator.task.sort_key IS
  'Order within owner and queue: microseconds since 2000 at which it became ready, less priority x the step: priority ages by itself. In a queue with tenants their turns stand for the time';

CREATE TABLE orchestrator.task_key (
  owner      int         NOT NULL,
  queue      int         NOT NULL,
  key        text        NOT NULL,
  task_id    bigint      NOT NULL,
  expires_at timestamptz,
  PRIMARY KEY (owner, queue, key)
);
CREATE INDEX task_key_task ON orchestrator.task_key (task_id);
CREATE INDEX task_key_expires ON orchestrator.task_key (expires_at) WHERE expires_at IS NOT NULL;
COMMENT ON TABLE orchestrator.task_key IS
  'Idempotency keys: unique per owner and queue until key_window ends or retention drops the task';

-- Steps that were added to a task while it ran, compiled like those of a
-- definition and numbered after them.
CREATE TABLE orchestrator.added_step (
  task_id bigint NOT NULL,
  step    int    NOT NULL,
  owner   int    NOT NULL,
  spec    jsonb  NOT NULL,
  PRIMARY KEY (task_id, step)
);
COMMENT ON TABLE orchestrator.added_step IS 'Steps added to a task by add_steps()';

CREATE SEQUENCE orchestrator.signal_id_seq;
CREATE TABLE orchestrator.signal (
  id          bigint      PRIMARY KEY DEFAULT nextval('orchestrator.signal_id_seq'),
  task_id     bigint      NOT NULL,   -- whom it was sent to
  owner       int         NOT NULL,
  name        text        NOT NULL,
  payload     jsonb       NOT NULL,
  verdict     text        CHECK (verdict IN ('approved', 'rejected')),
  sent_by     name        NOT NULL,
  sent_at     timestamptz NOT NULL,
  undelivered boolean     NOT NULL DEFAULT false,   -- the supervisor is to look who waits for it
  consumed_by bigint,                 -- the step that waited for it
  consumed_at timestamptz
);
ALTER SEQUENCE orchestrator.signal_id_seq OWNED BY orchestrator.signal.id;
CREATE INDEX signal_task ON orchestrator.signal (task_id, name) WHERE consumed_by IS NULL;
CREATE INDEX signal_undelivered ON orchestrator.signal (task_id) WHERE undelivered;
CREATE INDEX signal_history ON orchestrator.signal (task_id);
COMMENT ON TABLE orchestrator.signal IS 'Named events with a payload that were sent to tasks; each is consumed by one waiting step, also one that begins to wait later';

-- One row for each task that a remote worker has claimed; it goes with the
-- claim (chapter 58). The secret is shown to nobody.
CREATE TABLE orchestrator.lease (
  task_id      bigint      PRIMARY KEY,
  epoch        int         NOT NULL,
  secret       bytea       NOT NULL,   -- the token's other part
  worker       text        NOT NULL,   -- what it calls itself
  claimed_by   int         NOT NULL,   -- owner.id of its role
  owner        int         NOT NULL,   -- of the task
  queue        int         NOT NULL,
  started_at   timestamptz NOT NULL,
  heartbeat_at timestamptz NOT NULL,   -- or report of progress; the last
  length       interval    NOT NULL,   -- that a heartbeat gives it again
  ends_at      timestamptz NOT NULL,   -- then a report is too late
  look_at      timestamptz NOT NULL,   -- then, or before: an alert is due
  alerted      boolean     NOT NULL DEFAULT false,
  progress     float8,
  message      text,
  stage        text,
  permits      bigint[]    NOT NULL DEFAULT '{}',   -- numbers of limits (src/permit.c)
  requests     jsonb                   -- steps and checkpoints, made when it completes
) WITH (fillfactor = 50);
CREATE INDEX lease_look ON orchestrator.lease (look_at);
COMMENT ON TABLE orchestrator.lease IS 'Tasks that remote workers have claimed: by whom, and until when';

CREATE SEQUENCE orchestrator.checkpoint_id_seq;
CREATE TABLE orchestrator.checkpoint (
  id         bigint      PRIMARY KEY DEFAULT nextval('orchestrator.checkpoint_id_seq'),
  task_id    bigint      NOT NULL,
  owner      int         NOT NULL,
  name       text        NOT NULL,
  context    jsonb,
  steps      jsonb       NOT NULL,    -- {"name": epoch} of the steps that were completed
  created_at timestamptz NOT NULL,
  UNIQUE (task_id, name)
);
ALTER SEQUENCE orchestrator.checkpoint_id_seq OWNED BY orchestrator.checkpoint.id;
COMMENT ON TABLE orchestrator.checkpoint IS 'Named points of a run that restore() goes back to';

CREATE TABLE orchestrator.run_context (
  task_id    bigint  PRIMARY KEY,
  owner      int     NOT NULL,
  value      jsonb   NOT NULL,
  ratio      numeric,                 -- tokens that a model counts, to a quarter of the characters
  summarizer bigint                   -- the task that has it summarised
);
COMMENT ON TABLE orchestrator.run_context IS 'A run''s own state: what its steps kept with set_context()';

CREATE TABLE orchestrator.step_memo (
  task_id    bigint      NOT NULL,
  name       text        NOT NULL,
  owner      int         NOT NULL,
  result     jsonb,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (task_id, name)
);
COMMENT ON TABLE orchestrator.step_memo IS 'Results that step_once() and the waits of durable procedures remember';

-- What was written of the audit trail. The view trace adds what can be
-- derived from the task's row.
CREATE TABLE orchestrator.trace_log (
  task_id bigint      NOT NULL,
  at      timestamptz NOT NULL,
  owner   int         NOT NULL,
  attempt int         NOT NULL,
  epoch   int         NOT NULL,
  event   text        NOT NULL,
  detail  jsonb
) PARTITION BY RANGE (task_id);
COMMENT ON TABLE orchestrator.trace_log IS
  'Written part of the audit trail; read the view trace, which adds what a task''s row already says';

-- Webhooks that live, and what they are about (chapter 59).
CREATE TABLE orchestrator.webhook (
  task_id  bigint PRIMARY KEY,
  about    bigint NOT NULL,              -- task; below 0: less the number of a queue
  endpoint text   NOT NULL
);
CREATE INDEX webhook_line ON orchestrator.webhook (about, endpoint, task_id);
COMMENT ON TABLE orchestrator.webhook IS 'Webhooks that are not posted yet: those about one task or queue, to one endpoint, go one after the other';

-- Models: what they cost, what was spent, and what may be.
CREATE TABLE orchestrator.model_price (
  model           text    PRIMARY KEY,   -- or how its name begins
  per_million_in  numeric NOT NULL,
  per_million_out numeric NOT NULL
);
COMMENT ON TABLE orchestrator.model_price IS 'What set_price() says that tokens cost';

CREATE TABLE orchestrator.model_usage (
  owner      int         NOT NULL,
  hour       timestamptz NOT NULL,
  definition text        NOT NULL,
  model      text        NOT NULL,
  calls      bigint      NOT NULL,
  tokens_in  bigint      NOT NULL,
  tokens_out bigint      NOT NULL,
  cost       numeric     NOT NULL,
  PRIMARY KEY (owner, hour, definition, model)
);
COMMENT ON TABLE orchestrator.model_usage IS 'What calls of models used, by the hour; kept for 400 days';

CREATE TABLE orchestrator.model_budget (
  owner      int      PRIMARY KEY,       -- 0: roles that have none of their own
  max_tokens bigint   CHECK (max_tokens > 0),
  max_cost   numeric  CHECK (max_cost > 0),
  period     interval NOT NULL
);
COMMENT ON TABLE orchestrator.model_budget IS 'What set_budget() allows a role; null: any';

CREATE TABLE orchestrator.tool (
  owner          int     NOT NULL,
  name           text    NOT NULL,       -- of the definition
  parameters     jsonb   NOT NULL,
  description    text,
  needs_approval boolean NOT NULL,
  PRIMARY KEY (owner, name)
);
COMMENT ON TABLE orchestrator.tool IS 'Definitions that models may have run, by define_tool()';

-- Sessions with servers of tools. Shown to nobody: who knows one may use it.
CREATE TABLE orchestrator.tool_session (
  endpoint text    NOT NULL,
  owner    int     NOT NULL,
  session  text,                         -- null: the server has none
  protocol text    NOT NULL,
  is_ready boolean NOT NULL,             -- it was told that we are
  used_at  timestamptz NOT NULL,         -- to the hour; forgotten a day later
  PRIMARY KEY (endpoint, owner)
);
COMMENT ON TABLE orchestrator.tool_session IS 'Sessions with MCP servers, one for each endpoint and role';
