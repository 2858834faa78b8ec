-- orchestrator: durable task orchestration inside the database.
--
-- This script is built by make from the numbered files of sql/, in the order
-- of their numbers, which is the order of the story:
--
--   10 types      states and results
--   20 tables     owner, queue, definition, task (live | finished), trace_log
--   25 internal   the clock, owners, events: what every chapter uses
--   30 define     definitions, and the guard of their handlers
--   32 queue      queues; sharing definitions and queues
--   35 enqueue    keys, bulk, one-off commands
--   36 workflow   steps, and how a graph of them is checked and compiled
--   40 claim      the claim as SQL; due times, expiry
--   50 settle     completed, failed, retried; the picture of the states
--   55 recover    tasks whose worker is gone
--   56 procedure  durable procedures: what they remember, how they wait
--   59 courier    outside calls; what stands on them: json_schema, model, tool
--   60 control    cancel, pause, resume, retry one task
--   63 agent      runs whose steps a model decides on
--   65 bulk       the same for many
--   66 schedule   cron lines and single times that enqueue tasks, by pg_cron
--   70 observe    wait, progress, current_task
--   80 views      what an operator looks at
--   82 graph      pictures of runs and workflows
--   90 access     every GRANT, policy and pg_extension_config_dump
--
-- Public functions are verbs. A public function that changes state runs its
-- internal twin, named with a leading underscore, as the owner of the
-- extension (src/catalog.c, orchestrator_as_owner); the twin is told who
-- called and is executable by nobody else.

\echo Use "CREATE EXTENSION orchestrator" to load this file. \quit

-- The schema has a fixed name. One that somebody else made beforehand could
-- hold bait for the functions below, so it must be empty; and its owner could
-- drop what is in it, so that must be who installs.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_catalog.pg_depend d
             WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
               AND d.refobjid = 'orchestrator'::pg_catalog.regnamespace
               AND d.deptype = 'n'
               AND d.classid <> 'pg_catalog.pg_extension'::pg_catalog.regclass) THEN
    RAISE EXCEPTION 'schema "orchestrator" is not empty'
      USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Drop the schema or what is in it, then run CREATE EXTENSION orchestrator.';
  END IF;
  IF (SELECT n.nspowner <> current_user::pg_catalog.regrole FROM pg_catalog.pg_namespace n
      WHERE n.nspname = 'orchestrator') THEN
    RAISE EXCEPTION 'schema "orchestrator" belongs to another role'
      USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Drop the schema, then run CREATE EXTENSION orchestrator.';
  END IF;
END
$$;
