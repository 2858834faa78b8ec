-- Schedules: cron lines and single times that enqueue tasks.
--
-- pg_cron calls tick() once a minute, and that is all it is told: its own lines
-- know one time zone (GMT, in old versions) and forget what they missed. When
-- a line comes due is computed by src/cron.c, in the zone of the schedule.
--
-- A slot is an instant at which a schedule comes due. A schedule keeps the
-- instant up to which its slots were decided: enqueued, skipped, put off or
-- missed. tick() moves it on in the transaction that enqueues, under the lock
-- of the row, so that each slot is decided once, whoever ticks, and however
-- often, late or seldom.
--
-- Lock order: the row of a schedule, then tasks. What holds a task and wants
-- the schedule (_schedule_ended) does not wait for it.

CREATE SEQUENCE orchestrator.schedule_id_seq AS int;
CREATE TABLE orchestrator.schedule (
  id             int         PRIMARY KEY DEFAULT nextval('orchestrator.schedule_id_seq'),
  owner          int         NOT NULL,
  name           text        NOT NULL,
  cron           text,
  at             timestamptz,            -- of a one-shot
  timezone       text        NOT NULL,
  definition     text        NOT NULL,   -- by name: each task takes the version of its time
  input          jsonb       NOT NULL,
  queue          text,
  priority       int,
  metadata       jsonb,
  overlap        text        NOT NULL CHECK (overlap IN ('skip', 'queue', 'parallel', 'replace')),
  catch_up       text        NOT NULL CHECK (catch_up IN ('none', 'one', 'all')),
  catch_up_window interval   NOT NULL,
  description    text,
  created_at     timestamptz NOT NULL,
  paused         boolean     NOT NULL DEFAULT false,
  paused_at      timestamptz,
  decided_until  timestamptz NOT NULL,   -- slots up to here are decided
  next_at        timestamptz,            -- the next slot; null: a one-shot that is decided
  waiting        timestamptz[] NOT NULL DEFAULT '{}',   -- overlap = queue: slots that wait for the task before
  last_slot      timestamptz,
  last_at        timestamptz,
  last_task      bigint,
  enqueued       bigint      NOT NULL DEFAULT 0,
  skipped        bigint      NOT NULL DEFAULT 0,
  missed         bigint      NOT NULL DEFAULT 0,
  failures       int         NOT NULL DEFAULT 0,   -- in a row
  retry_at       timestamptz,
  error          jsonb,                  -- of the last try, if it failed
  UNIQUE (owner, name),
  CHECK ((cron IS NULL) <> (at IS NULL))
) WITH (fillfactor = 70);
-- No index on next_at: the table is small, and ticks stay HOT updates.
ALTER SEQUENCE orchestrator.schedule_id_seq OWNED BY orchestrator.schedule.id;
COMMENT ON TABLE orchestrator.schedule IS 'What schedule() was told, and up to when it was done; read the view schedule_status';
COMMENT ON COLUMN orchestrator.schedule.decided_until IS 'Every slot up to this instant was enqueued, skipped, put off or missed, once';

-- One row. It is not dumped: a restored database has to be ticked anew.
CREATE TABLE orchestrator.schedule_tick (
  last_at timestamptz,
  last_by name
);
INSERT INTO orchestrator.schedule_tick VALUES (NULL, NULL);
ALTER TABLE orchestrator.schedule_tick REPLICA IDENTITY FULL;
COMMENT ON TABLE orchestrator.schedule_tick IS 'When tick() was last called in this database, by the clock of the server';

-- src/cron.c

CREATE FUNCTION orchestrator.schedule_times(cron text, timezone text DEFAULT NULL, "from" timestamptz DEFAULT NULL,
    n int DEFAULT 10) RETURNS SETOF timestamptz
  LANGUAGE C VOLATILE ROWS 10 AS 'MODULE_PATHNAME', 'orchestrator_schedule_times';
COMMENT ON FUNCTION orchestrator.schedule_times(text, text, timestamptz, int) IS
  'When a cron line comes due: its next n times after a given one (default: now), in a time zone (default: that of the session)';

CREATE FUNCTION orchestrator._cron_check(cron text, timezone text) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_cron_check';
CREATE FUNCTION orchestrator._cron_slots(cron text, timezone text, after timestamptz, until timestamptz, most int) RETURNS SETOF timestamptz
  LANGUAGE C STRICT ROWS 10 AS 'MODULE_PATHNAME', 'orchestrator_cron_slots';
CREATE FUNCTION orchestrator._cron_last(cron text, timezone text, after timestamptz, until timestamptz) RETURNS timestamptz
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_cron_last';
CREATE FUNCTION orchestrator._cron_count(cron text, timezone text, after timestamptz, until timestamptz, most int) RETURNS int
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_cron_count';
CREATE FUNCTION orchestrator._cron_database() RETURNS text
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_cron_database';

-- ---------------------------------------------------------------- public

CREATE FUNCTION orchestrator.schedule(name text, cron text DEFAULT NULL, definition text DEFAULT NULL, input jsonb DEFAULT '{}',
    timezone text DEFAULT NULL, overlap text DEFAULT NULL, catch_up text DEFAULT 'one', catch_up_window interval DEFAULT NULL,
    at timestamptz DEFAULT NULL, queue text DEFAULT NULL, priority int DEFAULT NULL, description text DEFAULT NULL,
    metadata jsonb DEFAULT NULL, owner text DEFAULT NULL) RETURNS timestamptz
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.schedule(text, text, text, jsonb, text, text, text, interval, timestamptz, text, int, text, jsonb, text) IS
  'Enqueues tasks of a definition, as the calling role, whenever a cron line comes due, or once at a time; returns the next time. Of the same name and times as before, goes on where it was';

CREATE FUNCTION orchestrator.unschedule(name text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.unschedule(text, text) IS 'Drops a schedule. Tasks that it enqueued go on';

CREATE FUNCTION orchestrator.pause_schedule(name text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.pause_schedule(text, text) IS 'Stops enqueuing tasks of a schedule';

CREATE FUNCTION orchestrator.resume_schedule(name text, owner text DEFAULT NULL) RETURNS timestamptz
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.resume_schedule(text, text) IS
  'Lets a paused schedule go on; returns the next time. What came due meanwhile is not made up for';

CREATE FUNCTION orchestrator.run_now(name text, owner text DEFAULT NULL) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.run_now(text, text) IS
  'Enqueues a task of a schedule at once, whatever its times, and its overlap, say; returns its id';

CREATE FUNCTION orchestrator.tick() RETURNS int
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.tick() IS
  'Enqueues what the schedules of this database owe; returns how many tasks. pg_cron calls it each minute; more or fewer calls do no harm';

-- ---------------------------------------------------------------- making

-- Everything about a schedule that can be wrong by itself.
CREATE FUNCTION orchestrator._check_schedule(s orchestrator.schedule) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require_name('schedule', s.name);
  PERFORM orchestrator._require((s.cron IS NULL) <> (s.at IS NULL), 'a schedule needs cron or at, and not both');
  PERFORM orchestrator._require(s.definition IS NOT NULL, format('schedule "%s" has no definition', s.name), 'Give the name of one, that define() made.');
  PERFORM orchestrator._require(s.overlap IN ('skip', 'queue', 'parallel', 'replace'), format('unknown value "%s" of overlap', s.overlap),
                                'Say skip, queue, parallel or replace.');
  PERFORM orchestrator._require(s.catch_up IN ('none', 'one', 'all'), format('unknown value "%s" of catch_up', s.catch_up), 'Say none, one or all.');
  PERFORM orchestrator._require(s.catch_up_window > interval '0' AND s.catch_up_window <= interval '1 year',
                                'catch_up_window must be positive, and not exceed 1 year');
  PERFORM orchestrator._require(isfinite(s.at), 'at must be finite');
  PERFORM orchestrator._require(s.priority BETWEEN -1000000 AND 1000000, 'priority must be between -1000000 and 1000000');
  PERFORM orchestrator._require(s.metadata IS NULL OR jsonb_typeof(s.metadata) = 'object', 'metadata is not an object');
  PERFORM orchestrator._check_input(s.input);
  PERFORM orchestrator._cron_check(coalesce(s.cron, '@daily'), s.timezone);
END
$$;

-- Locks the owner's row: two of one name are the same one, and who counts the
-- schedules of a role counts them all.
CREATE FUNCTION orchestrator._schedule(caller oid, name text, cron text, definition text, input jsonb, timezone text, overlap text,
    catch_up text, catch_up_window interval, at timestamptz, queue text, priority int, description text, metadata jsonb,
    owner text) RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_now  timestamptz := orchestrator._now();
  v_role oid := orchestrator._definer($1, $15);
  v_old  orchestrator.schedule;
  s      orchestrator.schedule;
BEGIN
  PERFORM orchestrator._initialize();
  s.owner := orchestrator._owner(v_role);
  s.name := $2;
  s.cron := $3;
  s.definition := $4;
  s.input := coalesce($5, '{}');
  s.timezone := coalesce($6, current_setting('TimeZone'));
  s.catch_up := coalesce($8, 'one');
  s.overlap := coalesce($7, CASE WHEN s.catch_up = 'all' THEN 'queue' ELSE 'skip' END);
  s.catch_up_window := coalesce($9, '7 days');
  s.at := $10;
  s.queue := $11;
  s.priority := $12;
  s.description := $13;
  s.metadata := $14;
  s.created_at := v_now;
  PERFORM orchestrator._check_schedule(s);
  PERFORM orchestrator._optioned(v_role, s.name, s.priority, NULL, NULL, s.queue, s.metadata, NULL, NULL);
  PERFORM orchestrator._resolve_definition(v_role, s.definition);
  PERFORM orchestrator._ensure_ticks();

  PERFORM FROM orchestrator.owner o WHERE o.id = s.owner FOR NO KEY UPDATE;
  SELECT x.* INTO v_old FROM orchestrator.schedule x WHERE x.owner = s.owner AND x.name = s.name FOR UPDATE;
  IF v_old.id IS NULL THEN
    PERFORM orchestrator._check_quota_schedules(s.owner, (SELECT count(*)::int FROM orchestrator.schedule x WHERE x.owner = s.owner));
  END IF;
  IF v_old.id IS NOT NULL AND (v_old.cron, v_old.at, v_old.timezone) IS NOT DISTINCT FROM (s.cron, s.at, s.timezone) THEN
    s.decided_until := v_old.decided_until;
    s.next_at := v_old.next_at;
  ELSE
    PERFORM orchestrator._require(s.at > v_now, 'at is in the past', 'Use orchestrator.enqueue() to run a task now.');
    s.decided_until := v_now;
    s.next_at := orchestrator._next_slot(s);
  END IF;
  RETURN orchestrator._keep_schedule(v_old.id, s);
END
$$;

-- Write what schedule() was told; what is known of the past stays.
CREATE FUNCTION orchestrator._keep_schedule(old int, s orchestrator.schedule) RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF $1 IS NULL THEN
    INSERT INTO orchestrator.schedule (owner, name, cron, at, timezone, definition, input, queue, priority, metadata, overlap, catch_up,
                                       catch_up_window, description, created_at, decided_until, next_at)
      VALUES (s.owner, s.name, s.cron, s.at, s.timezone, s.definition, s.input, s.queue, s.priority, s.metadata, s.overlap, s.catch_up,
              s.catch_up_window, s.description, s.created_at, s.decided_until, s.next_at);
  ELSE
    UPDATE orchestrator.schedule x
      SET (cron, at, timezone, definition, input, queue, priority, metadata, overlap, catch_up, catch_up_window, description,
           decided_until, next_at, waiting, skipped, failures, retry_at, error)
        = (s.cron, s.at, s.timezone, s.definition, s.input, s.queue, s.priority, s.metadata, s.overlap, s.catch_up, s.catch_up_window, s.description,
           s.decided_until, s.next_at, CASE s.overlap WHEN 'queue' THEN x.waiting ELSE '{}' END,
           x.skipped + CASE s.overlap WHEN 'queue' THEN 0 ELSE cardinality(x.waiting) END, 0, NULL, NULL)
      WHERE x.id = $1;
  END IF;
  RETURN s.next_at;
END
$$;

-- The first slot that is not decided; null when there is none.
CREATE FUNCTION orchestrator._next_slot(s orchestrator.schedule) RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF s.cron IS NULL THEN
    RETURN CASE WHEN s.at > s.decided_until THEN s.at END;
  END IF;
  RETURN (SELECT t FROM orchestrator._cron_slots(s.cron, s.timezone, s.decided_until, 'infinity', 1) t);
END
$$;

-- ---------------------------------------------------------------- pg_cron

-- See that somebody ticks: pg_cron is here and has the job, or a tick was seen.
-- Else say what is missing.
CREATE FUNCTION orchestrator._ensure_ticks() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_home text := orchestrator._cron_database();
  v_here boolean := v_home = current_database() AND EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pg_cron');
BEGIN
  IF v_here AND orchestrator._make_cron_job() THEN
    RETURN;
  ELSIF EXISTS (SELECT FROM orchestrator.schedule_tick x
                WHERE x.last_at BETWEEN clock_timestamp() - interval '5 minutes' AND clock_timestamp() + interval '5 minutes') THEN
    RETURN;
  ELSIF v_here THEN
    RAISE EXCEPTION 'nothing ticks the schedules of this database: role "%" may not make a job of pg_cron', current_user
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = orchestrator._cron_hint(v_home);
  ELSIF v_home = current_database() THEN
    RAISE EXCEPTION 'schedules need the extension pg_cron, which is not in this database'
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Let a superuser run CREATE EXTENSION pg_cron.';
  ELSIF v_home IS NOT NULL THEN
    RAISE EXCEPTION 'nothing ticks the schedules of this database: pg_cron is in database "%"', v_home
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = orchestrator._cron_hint(v_home);
  END IF;
  RAISE EXCEPTION 'schedules need pg_cron, which this server has not loaded'
    USING ERRCODE = 'object_not_in_prerequisite_state',
          HINT = format('Install it (Debian: postgresql-%s-cron), add pg_cron to shared_preload_libraries, set cron.database_name = ''%s'' and cron.use_background_workers = on, restart, and run CREATE EXTENSION pg_cron.',
                        current_setting('server_version_num')::int / 10000, current_database());
END
$$;

-- The line that an administrator runs in pg_cron's database.
CREATE FUNCTION orchestrator._cron_hint(home text) RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN format('Let a superuser run, in database "%s": SELECT cron.schedule_in_database(%L, ''* * * * *'', ''SELECT orchestrator.tick()'', %L, %L); and try again after the next full minute, or after SELECT orchestrator.tick().',
                $1, orchestrator._cron_job(), current_database(), current_user);
END
$$;

CREATE FUNCTION orchestrator._cron_job() RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN 'orchestrator.tick in ' || current_database();
END
$$;

-- Make the job, as the owner of the extension, unless there is one; false if
-- that is not allowed. Two who come at the same time make one: its name is
-- unique. What is called and read is found by its membership in the extension,
-- not by its name: anybody may have made a schema "cron" before.
CREATE FUNCTION orchestrator._make_cron_job() RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
  v_extension oid := (SELECT e.oid FROM pg_extension e WHERE e.extname = 'pg_cron');
  v_schedule  oid;
  v_jobs      regclass;
  v_found     boolean;
BEGIN
  SELECT p.oid INTO v_schedule FROM pg_proc p
    JOIN pg_depend m ON m.classid = 'pg_catalog.pg_proc'::regclass AND m.objid = p.oid AND m.deptype = 'e' AND m.refobjid = v_extension
    WHERE p.proname = 'schedule' AND pg_get_function_identity_arguments(p.oid) ~ E'^\\w+ text, \\w+ text, \\w+ text$';
  SELECT c.oid INTO v_jobs FROM pg_class c
    JOIN pg_depend m ON m.classid = 'pg_catalog.pg_class'::regclass AND m.objid = c.oid AND m.deptype = 'e' AND m.refobjid = v_extension
    WHERE c.relname = 'job';
  EXECUTE format('SELECT EXISTS (SELECT FROM %s j WHERE j.database = current_database() AND j.command LIKE ''%%orchestrator.tick()%%'')', v_jobs) INTO v_found;
  IF NOT v_found THEN
    EXECUTE format('SELECT %s(%L, %L, %L)', v_schedule::regproc, orchestrator._cron_job(), '* * * * *', 'SELECT orchestrator.tick()');
  END IF;
  RETURN true;
EXCEPTION WHEN insufficient_privilege THEN   -- cron.enable_superuser_jobs = off, say
  RETURN false;
END
$$;

-- ---------------------------------------------------------------- changing

-- The schedule that a caller may change, locked.
CREATE FUNCTION orchestrator._lock_schedule(caller oid, name text, owner text) RETURNS orchestrator.schedule
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int := orchestrator._owner_for($1, $3);
  s       orchestrator.schedule;
BEGIN
  SELECT x.* INTO s FROM orchestrator.schedule x WHERE x.owner = v_owner AND x.name = $2 FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'schedule "%" does not exist', coalesce($2, 'null')
      USING ERRCODE = 'undefined_object', HINT = 'The view orchestrator.schedule_status lists them; say owner => for one of another role.';
  END IF;
  RETURN s;
END
$$;

CREATE FUNCTION orchestrator._unschedule(caller oid, name text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s orchestrator.schedule := orchestrator._lock_schedule($1, $2, $3);
BEGIN
  DELETE FROM orchestrator.schedule x WHERE x.id = s.id;
END
$$;

CREATE FUNCTION orchestrator._pause_schedule(caller oid, name text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s orchestrator.schedule := orchestrator._lock_schedule($1, $2, $3);
BEGIN
  UPDATE orchestrator.schedule x SET paused = true, paused_at = orchestrator._now() WHERE x.id = s.id AND NOT x.paused;
END
$$;

-- A single time that passed meanwhile is still to come, as late as it is.
CREATE FUNCTION orchestrator._resume_schedule(caller oid, name text, owner text) RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s orchestrator.schedule := orchestrator._lock_schedule($1, $2, $3);
BEGIN
  IF s.paused THEN
    IF s.cron IS NOT NULL THEN
      s.decided_until := greatest(s.decided_until, orchestrator._now());
      s.next_at := orchestrator._next_slot(s);
    END IF;
    UPDATE orchestrator.schedule x
      SET paused = false, paused_at = NULL, decided_until = s.decided_until, next_at = s.next_at, failures = 0, retry_at = NULL, error = NULL
      WHERE x.id = s.id;
  END IF;
  RETURN s.next_at;
END
$$;

-- The task that overlap looks at stays the one before, while it lives.
CREATE FUNCTION orchestrator._run_now(caller oid, name text, owner text) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s      orchestrator.schedule := orchestrator._lock_schedule($1, $2, $3);
  v_task bigint := orchestrator._enqueue_slot(s, NULL);
BEGIN
  UPDATE orchestrator.schedule x
    SET last_task = CASE WHEN orchestrator._is_live(x.last_task) THEN x.last_task ELSE v_task END,
        last_at = orchestrator._now(), enqueued = x.enqueued + 1
    WHERE x.id = s.id;
  RETURN v_task;
END
$$;

-- ---------------------------------------------------------------- ticking

CREATE FUNCTION orchestrator._is_live(task bigint) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  RETURN EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = $1);
END
$$;

-- The role of a schedule, if it may still enqueue.
CREATE FUNCTION orchestrator._schedule_role(owner int) RETURNS oid
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  o      orchestrator.owner;
  v_role oid;
BEGIN
  SELECT x.* INTO o FROM orchestrator.owner x WHERE x.id = $1;
  SELECT a.oid INTO v_role FROM pg_authid a WHERE a.oid = o.role AND a.rolname = o.name;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'role "%" was dropped or renamed', o.name
      USING ERRCODE = 'OR005', HINT = 'Drop the schedule with unschedule(), or make it anew as another role.';
  ELSIF NOT has_schema_privilege(v_role, 'orchestrator', 'USAGE')
     OR NOT EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'orchestrator'::regnamespace AND p.proname = 'schedule'
                    AND has_function_privilege(v_role, p.oid, 'EXECUTE')) THEN
    RAISE EXCEPTION 'role "%" may no longer enqueue', o.name
      USING ERRCODE = 'insufficient_privilege', HINT = format('An administrator gives it back with orchestrator.grant_usage(%L).', o.name);
  END IF;
  RETURN v_role;
END
$$;

-- Enqueue the task of a slot (null: of none), as the owner of the schedule. It
-- tells its schedule when it ends if slots may wait for that.
CREATE FUNCTION orchestrator._enqueue_slot(s orchestrator.schedule, slot timestamptz) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  v_role oid := orchestrator._schedule_role(s.owner);
  r      record;
  t      orchestrator.task;
BEGIN
  SELECT x.* INTO r FROM orchestrator._resolve_definition(v_role, s.definition) x;
  t := orchestrator._optioned(v_role, s.name, coalesce(s.priority, r.priority), NULL, NULL, s.queue,
                              coalesce(s.metadata, '{}') || jsonb_strip_nulls(jsonb_build_object('schedule', s.name, 'slot', $2)), NULL, NULL);
  t.queue := coalesce(t.queue, r.queue);
  IF s.overlap = 'queue' THEN
    t.callbacks := jsonb_build_array(jsonb_build_object('schedule', s.id));
  END IF;
  RETURN orchestrator._place_root(t, s.owner, r.definition_id, s.input, r.queue_timeout);
END
$$;

-- What is due of a schedule at a time: the slots that its catch_up wants,
-- oldest first; up to when that decides; how many slots it leaves out. More
-- than 200 of all, or than may wait, are left for later.
CREATE FUNCTION orchestrator._due_slots(s orchestrator.schedule, now timestamptz, OUT slots timestamptz[], OUT until timestamptz,
    OUT missed int)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_most int := CASE s.overlap WHEN 'queue' THEN 100 - cardinality(s.waiting) ELSE 200 END;
  v_from timestamptz := greatest(s.decided_until, $2 - CASE s.catch_up WHEN 'none' THEN interval '2 minutes' ELSE s.catch_up_window END);
BEGIN
  until := $2;
  missed := 0;
  IF s.cron IS NULL THEN
    slots := CASE WHEN s.at > v_from THEN ARRAY[s.at] ELSE '{}' END;
    missed := 1 - cardinality(slots);
  ELSIF s.catch_up <> 'all' THEN
    slots := array_remove(ARRAY[orchestrator._cron_last(s.cron, s.timezone, v_from, $2)], NULL);
    missed := orchestrator._cron_count(s.cron, s.timezone, s.decided_until, $2, 100000) - cardinality(slots);
  ELSIF v_most <= 0 THEN
    slots := '{}';
    until := s.decided_until;
  ELSE
    slots := ARRAY(SELECT t FROM orchestrator._cron_slots(s.cron, s.timezone, v_from, $2, v_most) t);
    missed := orchestrator._cron_count(s.cron, s.timezone, s.decided_until, v_from, 100000);
    IF cardinality(slots) = v_most THEN
      until := slots[v_most];
    END IF;
  END IF;
END
$$;

-- Decide what is due of a schedule whose row is locked; returns how many tasks
-- were enqueued. A clock that was put back by more than a day had been wrong:
-- what was decided in its future is forgotten.
CREATE FUNCTION orchestrator._fire(schedule int, now timestamptz) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
  s       orchestrator.schedule;
  v_slots timestamptz[] := '{}';
  v_go    timestamptz[];
  v_live  boolean;
BEGIN
  SELECT x.* INTO s FROM orchestrator.schedule x WHERE x.id = $1;
  IF s.cron IS NOT NULL AND s.decided_until > $2 + interval '1 day' THEN
    s.decided_until := $2;
  ELSIF s.next_at <= $2 THEN
    SELECT d.slots, d.until, s.missed + d.missed INTO v_slots, s.decided_until, s.missed FROM orchestrator._due_slots(s, $2) d;
  END IF;
  s.next_at := orchestrator._next_slot(s);

  v_live := s.overlap <> 'parallel' AND orchestrator._is_live(s.last_task);
  CASE s.overlap
    WHEN 'parallel' THEN
      v_go := v_slots;
    WHEN 'queue' THEN
      s.waiting := s.waiting || v_slots;
      v_go := CASE WHEN v_live THEN '{}' ELSE s.waiting[:1] END;
      s.waiting := s.waiting[1 + cardinality(v_go):];
      s.skipped := s.skipped + greatest(cardinality(s.waiting) - 100, 0);
      s.waiting := s.waiting[:100];
    WHEN 'skip' THEN
      v_go := CASE WHEN v_live THEN '{}' ELSE v_slots[cardinality(v_slots):] END;
      s.skipped := s.skipped + cardinality(v_slots) - cardinality(v_go);
    WHEN 'replace' THEN
      v_go := v_slots[cardinality(v_slots):];
      s.skipped := s.skipped + cardinality(v_slots) - cardinality(v_go);
      IF v_live AND v_go <> '{}' THEN
        PERFORM orchestrator._cancel_replaced(s);
      END IF;
  END CASE;

  FOREACH s.last_slot IN ARRAY v_go LOOP
    s.last_task := orchestrator._enqueue_slot(s, s.last_slot);
  END LOOP;
  UPDATE orchestrator.schedule x
    SET (decided_until, next_at, waiting, last_slot, last_task, last_at, enqueued, skipped, missed, failures, retry_at, error)
      = (s.decided_until, s.next_at, s.waiting, coalesce(s.last_slot, x.last_slot), s.last_task,
         CASE WHEN v_go = '{}' THEN s.last_at ELSE $2 END, s.enqueued + cardinality(v_go), s.skipped, s.missed, 0, NULL, NULL)
    WHERE x.id = $1;
  RETURN cardinality(v_go);
END
$$;

-- The task that a newer slot replaces; one that ended meanwhile needs nothing.
CREATE FUNCTION orchestrator._cancel_replaced(s orchestrator.schedule) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_by oid := (SELECT e.extowner FROM pg_extension e WHERE e.extname = 'orchestrator');
  t    orchestrator.task := orchestrator._lock_task(v_by, s.last_task, true);
BEGIN
  IF t.live THEN
    PERFORM orchestrator._cancel_rows(ARRAY[t.id], orchestrator._by(v_by, format('replaced by the next task of schedule "%s"', s.name)));
  END IF;
END
$$;

-- The same, and an error is kept in the row: it is tried again after so many
-- minutes as it failed in a row, at most ten; what came due then is due still.
CREATE FUNCTION orchestrator._try_fire(schedule int, now timestamptz) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_state   text;
  v_message text;
  v_hint    text;
BEGIN
  RETURN orchestrator._fire($1, $2);
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_message = MESSAGE_TEXT, v_hint = PG_EXCEPTION_HINT;
  UPDATE orchestrator.schedule x
    SET failures = x.failures + 1, retry_at = $2 + least(x.failures, 10) * interval '1 minute',
        error = jsonb_strip_nulls(jsonb_build_object('at', $2, 'sqlstate', v_state, 'message', v_message, 'hint', nullif(v_hint, '')))
    WHERE x.id = $1;
  RETURN 0;
END
$$;

-- Many in one subtransaction, and one by one only if one of them fails: the
-- snapshots of other sessions have room for few subtransactions.
CREATE FUNCTION orchestrator._fire_many(schedules int[], now timestamptz) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_tasks int := 0;
  v_id    int;
BEGIN
  BEGIN
    FOREACH v_id IN ARRAY $1 LOOP
      v_tasks := v_tasks + orchestrator._fire(v_id, $2);
    END LOOP;
    RETURN v_tasks;
  EXCEPTION WHEN OTHERS THEN
    v_tasks := 0;
  END;
  FOREACH v_id IN ARRAY $1 LOOP
    v_tasks := v_tasks + orchestrator._try_fire(v_id, $2);
  END LOOP;
  RETURN v_tasks;
END
$$;

-- Whose rows another tick, or their owner, has locked comes with the next tick.
-- Those that come in time go first, then those that have much to make up for,
-- and only while this tick has not enqueued 10000 tasks; last those that failed
-- before, which keep to themselves.
CREATE FUNCTION orchestrator._tick(caller oid) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_tasks int := 0;
  v_ids   int[];
BEGIN
  IF NOT orchestrator._may_fire() THEN
    RETURN 0;   -- a copy of the database that it is for
  END IF;
  v_ids := ARRAY(
    SELECT s.id FROM orchestrator.schedule s
    WHERE NOT s.paused
      AND (s.next_at <= v_now OR s.waiting <> '{}' OR s.cron IS NOT NULL AND s.decided_until > v_now + interval '1 day')
      AND (s.retry_at IS NULL OR s.retry_at NOT BETWEEN v_now + interval '1 microsecond' AND v_now + interval '1 hour')
    ORDER BY s.failures > 0, s.next_at < v_now - interval '5 minutes', s.next_at, s.id
    FOR UPDATE SKIP LOCKED);
  FOR v_from IN 1 .. cardinality(v_ids) BY 50 LOOP
    EXIT WHEN v_tasks >= 10000;
    v_tasks := v_tasks + orchestrator._fire_many(v_ids[v_from:v_from + 49], v_now);
  END LOOP;

  DELETE FROM orchestrator.schedule s
    WHERE s.id IN (SELECT x.id FROM orchestrator.schedule x
                   WHERE x.at < v_now - interval '7 days' AND x.next_at IS NULL AND x.waiting = '{}'
                   FOR UPDATE SKIP LOCKED);
  PERFORM FROM orchestrator.schedule_tick FOR UPDATE SKIP LOCKED;
  IF FOUND THEN
    UPDATE orchestrator.schedule_tick SET last_at = clock_timestamp(), last_by = pg_get_userbyid($1);
  END IF;
  RETURN v_tasks;
END
$$;

-- A task of a schedule ended: start the next slot that waits for it, in the
-- transaction that ends it. A row that is locked is left to the next tick.
CREATE FUNCTION orchestrator._schedule_ended(schedule int, task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s orchestrator.schedule;
BEGIN
  SELECT x.* INTO s FROM orchestrator.schedule x WHERE x.id = $1 AND x.last_task = $2 FOR UPDATE SKIP LOCKED;
  IF s.waiting <> '{}' AND s.overlap = 'queue' AND NOT s.paused THEN
    PERFORM orchestrator._try_fire($1, orchestrator._now());
  END IF;
END
$$;

-- ---------------------------------------------------------------- looking

CREATE VIEW orchestrator.schedule_status WITH (security_invoker = true) AS
  SELECT s.name AS schedule, o.name AS owner, s.definition, s.cron, s.at, s.timezone,
         CASE WHEN s.paused THEN 'paused' WHEN s.next_at IS NULL AND s.waiting = '{}' THEN 'done' WHEN p.problem IS NOT NULL THEN 'failing' ELSE 'active' END AS state,
         CASE WHEN NOT s.paused THEN s.next_at END AS next_at,
         CASE WHEN NOT s.paused THEN greatest(orchestrator._now() - s.next_at, interval '0') END AS lag,
         s.last_slot, s.last_at, s.last_task, t.state AS last_state,
         s.overlap, s.catch_up, s.catch_up_window, s.paused, s.paused_at,
         s.enqueued, s.skipped, s.missed, cardinality(s.waiting) AS waiting,
         p.problem, s.error, s.failures, s.retry_at, k.last_at AS last_tick,
         s.queue, s.priority, s.input, s.metadata, s.description, s.created_at
  FROM orchestrator.schedule s
  CROSS JOIN LATERAL (SELECT (SELECT x.last_at FROM orchestrator.schedule_tick x) AS last_at) k
  LEFT JOIN orchestrator.owner o ON o.id = s.owner
  LEFT JOIN orchestrator.task t ON t.id = s.last_task
  CROSS JOIN LATERAL (
    SELECT CASE
      WHEN s.paused OR s.next_at IS NULL AND s.waiting = '{}' THEN NULL
      WHEN s.error IS NOT NULL THEN s.error ->> 'message'
      WHEN NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = o.role AND r.rolname = o.name) THEN format('role "%s" was dropped or renamed', o.name)
      WHEN NOT EXISTS (SELECT FROM orchestrator.definition d
                       WHERE d.name = s.definition AND d.is_current
                         AND (d.owner = s.owner OR EXISTS (SELECT FROM orchestrator.definition_share h WHERE h.owner = d.owner AND h.name = d.name)))
        THEN format('definition "%s" does not exist', s.definition)
      WHEN k.last_at IS NULL AND s.created_at < orchestrator._now() - interval '3 minutes' OR k.last_at < clock_timestamp() - interval '3 minutes'
        THEN 'nothing ticks: see the job of pg_cron, and cron.job_run_details'
    END AS problem) p;
COMMENT ON VIEW orchestrator.schedule_status IS
  'Schedules that the reader may see: when they ran and will run, and what is wrong with them';
COMMENT ON COLUMN orchestrator.schedule_status.state IS 'active, paused, failing (see problem), or done: a single time that has passed; it is forgotten seven days later';
COMMENT ON COLUMN orchestrator.schedule_status.lag IS 'How long its next slot has been due: up to a minute is as it should be';
COMMENT ON COLUMN orchestrator.schedule_status.last_slot IS 'The slot of its last task; null: run_now()';
COMMENT ON COLUMN orchestrator.schedule_status.last_at IS 'When a task of it was last enqueued';
COMMENT ON COLUMN orchestrator.schedule_status.last_task IS 'Its last task; overlap looks at this one';
COMMENT ON COLUMN orchestrator.schedule_status.last_state IS 'Null: retention dropped the task';
COMMENT ON COLUMN orchestrator.schedule_status.enqueued IS 'Tasks enqueued, also by run_now()';
COMMENT ON COLUMN orchestrator.schedule_status.skipped IS 'Slots that overlap did without';
COMMENT ON COLUMN orchestrator.schedule_status.missed IS 'Slots that catch_up did without; counted up to 100000 at once';
COMMENT ON COLUMN orchestrator.schedule_status.waiting IS 'Slots that wait for the task before, of overlap => ''queue''';
COMMENT ON COLUMN orchestrator.schedule_status.error IS 'Why its slots that are due could not be enqueued, when last tried';
COMMENT ON COLUMN orchestrator.schedule_status.last_tick IS 'When tick() was last called in this database';
