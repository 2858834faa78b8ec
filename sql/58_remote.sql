-- Remote workers: programs of any language that claim tasks of kind remote over
-- SQL, with a lease, and report what became of them.
--
--   claim(queues, worker) -> tasks with their tokens     nothing? CALL await_work(queues, timeout)
--   heartbeat(task, token, ...)                          running: go on; cancel, lost: stop
--   complete(task, token, output) | fail(task, token, error) | release(task, token)
--
-- All of it works through a pooler that changes sessions between transactions,
-- and without the library preloaded; then nothing becomes due unless somebody
-- claims, and limits are held by locked rows (_claim_limited in chapter 40).
--
-- A task of kind remote stands in the index of parked rows, in a lane of its
-- queue (parked_on below 0), where no executor looks; it keeps that while it
-- lives. Its claim is a row of lease, which goes when the row of the task
-- leaves the state running, whoever does that (the triggers below). A report
-- without the token of the claim that stands changes nothing: OR010.
--
-- Locks: the top of the tree, the task, its lease. The time is the server's.
--
-- Whoever waits for a task waits for its claim, too: the functions on that way
-- do not plan their statements anew for the arrays they are given, which took
-- most of their time.

CREATE FUNCTION orchestrator.claim(queues text[], worker text, max_tasks int DEFAULT 1, lease interval DEFAULT NULL,
    definitions text[] DEFAULT NULL) RETURNS SETOF orchestrator.claimed_task
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner_loosely';
COMMENT ON FUNCTION orchestrator.claim(text[], text, int, interval, text[]) IS
  'Gives a remote worker up to max_tasks (1 to 1000) ready tasks of kind remote, its own or those of queues that were shared with it for that; of some definitions (or handlers) only, if they are named. Unless it reports, they are taken back when the lease ends: after response_timeout of the definition or 1 minute, if not given';

CREATE PROCEDURE orchestrator.await_work(queues text[], timeout interval DEFAULT NULL, INOUT ready boolean DEFAULT NULL)
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_await_work';
COMMENT ON PROCEDURE orchestrator.await_work(text[], interval, boolean) IS
  'Sleeps until claim() may find a task in one of the queues, or the timeout has passed (ready is false), without keeping a snapshot open';

CREATE FUNCTION orchestrator.heartbeat(task bigint, token text, lease interval DEFAULT NULL, fraction float8 DEFAULT NULL,
    message text DEFAULT NULL, stage text DEFAULT NULL) RETURNS text
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner_loosely';
COMMENT ON FUNCTION orchestrator.heartbeat(bigint, text, interval, float8, text, text) IS
  'Begins the lease of a claimed task again, and tells how far it is (0 to 1). What the worker should obey: running (go on), cancel (stop: it was cancelled or paused) or lost (stop: the lease ended, or somebody else has it)';

CREATE FUNCTION orchestrator.heartbeat_many(tasks bigint[], tokens text[], lease interval DEFAULT NULL)
    RETURNS TABLE (task_id bigint, state text)
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner_loosely';
COMMENT ON FUNCTION orchestrator.heartbeat_many(bigint[], text[], interval) IS 'heartbeat() of many tasks at once';

CREATE FUNCTION orchestrator.complete(task bigint, token text, output jsonb DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.complete(bigint, text, jsonb) IS 'Reports that a claimed task is done. An output larger than orchestrator.max_input_size fails it for good. Raises OR010 when it is no longer the worker''s';

CREATE FUNCTION orchestrator.complete_many(tasks bigint[], tokens text[], outputs jsonb[] DEFAULT NULL)
    RETURNS TABLE (task_id bigint, state text)
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.complete_many(bigint[], text[], jsonb[]) IS
  'complete() of many tasks at once, in the order given. state is completed, failed or waiting (for steps it added), or lost: no longer the worker''s, nothing was changed';

CREATE FUNCTION orchestrator.fail(task bigint, token text, error jsonb DEFAULT NULL, retryable boolean DEFAULT true)
    RETURNS orchestrator.task_state
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.fail(bigint, text, jsonb, boolean) IS
  'Reports that a claimed task failed; error is a message, or {message, sqlstate, detail, hint, ...}. It is retried as its definition says, or not if retryable is false. Returns the new state. Raises OR010 when it is no longer the worker''s';

CREATE FUNCTION orchestrator.release(task bigint, token text) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.release(bigint, text) IS
  'Gives a claimed task back as if it had not been claimed: the attempt is not counted. Raises OR010 when it is no longer the worker''s';

CREATE FUNCTION orchestrator.log(task bigint, token text, level text, message text, detail jsonb DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.log(bigint, text, text, text, jsonb) IS
  'Writes to the trace of a claimed task, as the event notice; level is debug, info, notice, warning or error. Raises OR010 when it is no longer the worker''s';

-- Provided by the library (src/remote.c). Permits are of the limits of a task.
CREATE FUNCTION orchestrator._secret() RETURNS bytea
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_secret';
CREATE FUNCTION orchestrator._has_permits(t orchestrator.task) RETURNS boolean
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_has_permits';
CREATE FUNCTION orchestrator._give_back_permits(ids bigint[]) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_give_back_permits';
CREATE FUNCTION orchestrator._take_permits_again(ids bigint[]) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_take_permits_again';
CREATE FUNCTION orchestrator._count_attempt(t orchestrator.task) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_count_attempt';

-- By src/remote_lane.c: the queues of a remote worker by name, all that it can enqueue
-- into, though there its own tasks only, unless it was granted all; and lanes of
-- queues in which it may have work, in the order in which it is to look.
CREATE FUNCTION orchestrator._remote_queues(caller oid, queues text[]) RETURNS int[]
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_remote_queues';
CREATE FUNCTION orchestrator._remote_lanes(caller oid, queues int[], OUT queue int, OUT owner int) RETURNS SETOF record
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_remote_lanes';

-- And by src/lease.c: what is plain, many at a time. Claims are those of all
-- lanes of queues, or of one; complete_plain() returns the tasks that it completed.
CREATE FUNCTION orchestrator._claim_work(caller oid, claimer int, queues int[], max_tasks int, worker text, lease interval, definitions int[])
  RETURNS SETOF orchestrator.claimed_task
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_claim_work';
CREATE FUNCTION orchestrator._claim_rows(claimer int, queue int, owner int, max_rows int, worker text, lease interval, definitions int[])
  RETURNS SETOF orchestrator.claimed_task
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_claim_rows';
CREATE FUNCTION orchestrator._complete_plain(owners int[], tasks bigint[], tokens text[], outputs jsonb[]) RETURNS bigint[]
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_complete_plain';

-- Leases -------------------------------------------------------------------

CREATE FUNCTION orchestrator._end_lease() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_permits bigint[];
BEGIN
  DELETE FROM orchestrator.lease z WHERE z.task_id = OLD.id AND z.epoch <= OLD.epoch RETURNING z.permits INTO v_permits;
  IF v_permits <> '{}' THEN
    PERFORM orchestrator._give_back_permits(v_permits);
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER end_lease AFTER UPDATE OF epoch ON orchestrator.task_live
  FOR EACH ROW WHEN (OLD.parked_on < 0 AND OLD.worker IS NULL AND OLD.state = 'running' AND NEW.epoch <> OLD.epoch) EXECUTE FUNCTION orchestrator._end_lease();
CREATE TRIGGER end_lease_of_deleted AFTER DELETE ON orchestrator.task_live
  FOR EACH ROW WHEN (OLD.parked_on < 0 AND OLD.worker IS NULL AND OLD.state = 'running') EXECUTE FUNCTION orchestrator._end_lease();

-- A lease of a task that starts, or is heard of, now: when it ends, and when
-- somebody has to look at it.
CREATE FUNCTION orchestrator._lease_times(z orchestrator.lease, d orchestrator.definition, deadline timestamptz) RETURNS orchestrator.lease
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_timeout timestamptz := least(z.started_at + d.timeout, z.heartbeat_at + d.response_timeout);
BEGIN
  z.ends_at := least(z.heartbeat_at + z.length, $3);
  IF d.timeout_policy = 'alert' THEN
    z.look_at := least(z.ends_at, CASE WHEN NOT z.alerted THEN v_timeout END);
  ELSE
    z.ends_at := least(z.ends_at, v_timeout);
    z.look_at := z.ends_at;
  END IF;
  RETURN z;
END
$$;

-- The lease that a token is for; raises OR010 when it does not stand. Locks
-- nothing: what the caller does next must.
CREATE FUNCTION orchestrator._lease(caller oid, task bigint, token text) RETURNS orchestrator.lease
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  z orchestrator.lease;
BEGIN
  PERFORM orchestrator._require($2 IS NOT NULL AND $3 IS NOT NULL, 'task and token must not be null', 'Give both as claim() returned them.');
  SELECT x.* INTO z FROM orchestrator.lease x WHERE x.task_id = $2;
  IF z.task_id IS NULL OR z.epoch || '-' || encode(z.secret, 'hex') <> $3 OR z.ends_at <= orchestrator._now()
     OR z.claimed_by <> ALL (orchestrator._member_owners($1)) THEN
    PERFORM orchestrator._stale($2);
  END IF;
  RETURN z;
END
$$;

CREATE FUNCTION orchestrator._stale(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'task % is no longer claimed with this token', $1
    USING ERRCODE = 'OR010', DETAIL = 'Its lease ended, or it was cancelled, paused or taken over; the report changes nothing.',
          HINT = 'Stop working on it. Call orchestrator.heartbeat() more often, or claim with a longer lease.';
END
$$;

-- End leases that were not kept; returns how many.
CREATE FUNCTION orchestrator._end_leases(max_rows int) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_count int := 0;
  v_task  bigint;
  v_began timestamptz;
BEGIN
  FOR v_task IN SELECT z.task_id FROM orchestrator.lease z WHERE z.look_at <= v_now ORDER BY z.look_at LIMIT $1 LOOP
    v_began := clock_timestamp();
    BEGIN
      v_count := v_count + orchestrator._look_at_lease(v_task, v_now)::int;
    EXCEPTION WHEN OTHERS OR query_canceled THEN
      PERFORM orchestrator._give_up(v_task, v_began, 'the lease of task %s could not be ended', SQLERRM);
      UPDATE orchestrator.lease z SET look_at = v_now + interval '1 second' WHERE z.task_id = v_task;
    END;
  END LOOP;
  RETURN v_count;
END
$$;

-- One of them: true unless somebody has it locked, or it goes on.
CREATE FUNCTION orchestrator._look_at_lease(task bigint, at timestamptz) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t         orchestrator.task;
  d         orchestrator.definition;
  z         orchestrator.lease;
  v_message text;
BEGIN
  IF NOT EXISTS (SELECT FROM orchestrator.task_live l JOIN orchestrator.lease x ON x.task_id = l.id AND x.epoch = l.epoch WHERE l.id = $1 AND l.state::text = 'running') THEN
    DELETE FROM orchestrator.lease x WHERE x.task_id = $1 AND x.look_at <= $2;   -- of a task that was restored from a dump
    RETURN false;
  END IF;
  IF NOT orchestrator._lock_root((SELECT coalesce(l.root_id, l.id) FROM orchestrator.task_live l WHERE l.id = $1), true) THEN
    RETURN false;
  END IF;
  SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = $1 FOR UPDATE SKIP LOCKED;
  SELECT x.* INTO z FROM orchestrator.lease x WHERE x.task_id = $1 AND x.look_at <= $2 FOR UPDATE SKIP LOCKED;
  IF t.id IS NULL OR z.task_id IS NULL OR z.epoch <> t.epoch THEN
    RETURN false;
  END IF;
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = t.definition;
  v_message := CASE WHEN z.started_at + d.timeout <= $2 THEN format('the step ran longer than %s', d.timeout)
                    WHEN z.heartbeat_at + d.response_timeout <= $2 THEN format('worker "%s" did not report for %s', z.worker, d.response_timeout) END;
  IF z.ends_at > $2 THEN
    PERFORM orchestrator._note(t.id, t.owner, t.attempt, t.epoch, $2, 'timeout', jsonb_build_object('message', v_message));
    UPDATE orchestrator.lease x SET alerted = true, look_at = z.ends_at WHERE x.task_id = $1;
    RETURN true;
  END IF;
  PERFORM orchestrator._count_attempt(t);
  IF t.deadline <= $2 THEN
    t.error := jsonb_build_object('sqlstate', 'OR002', 'message', format('deadline %s passed before the task was finished', t.deadline));
    PERFORM orchestrator._trace(t, t.started_at, t.attempt, 'started', NULL);
    PERFORM orchestrator._count(t.owner, t.queue, t.definition, 'expired');
    PERFORM orchestrator._fail(t, t.error);
  ELSIF v_message IS NOT NULL AND d.timeout_policy <> 'alert' THEN
    PERFORM orchestrator._end_attempt(t, 'timeout', jsonb_build_object('sqlstate', 'OR004', 'message', v_message));
  ELSE
    PERFORM orchestrator._end_attempt(t, 'lost', jsonb_build_object('sqlstate', 'OR003',
      'message', format('worker "%s" did not report before its lease ended, at %s', z.worker, z.ends_at)));
  END IF;
  RETURN true;
END
$$;

-- Claim --------------------------------------------------------------------

-- Whether a remote worker may claim the tasks of everybody in a queue: it is its
-- own, or was shared with it for that.
CREATE FUNCTION orchestrator._claims_all(caller oid, queue int) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_mine int[] := orchestrator._member_owners($1);
BEGIN
  RETURN EXISTS (SELECT FROM orchestrator.queue q WHERE q.id = $2 AND q.owner = ANY (v_mine))
      OR EXISTS (SELECT FROM orchestrator.queue_share s WHERE s.queue = $2 AND s.may_claim AND s.grantee = ANY (v_mine || 0));
END
$$;

-- Whether claim() would find something: 0 no, 1 yes, 2 only what limits hold up.
CREATE FUNCTION orchestrator._has_work(caller oid, queues int[]) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_found int := 0;
  v_lane  record;
  t       orchestrator.task;
BEGIN
  IF NOT orchestrator._preloaded() THEN
    PERFORM orchestrator._tend();
  END IF;
  FOR v_lane IN SELECT w.* FROM orchestrator._remote_lanes($1, $2) w LOOP
    FOR t IN SELECT l.* FROM orchestrator.task_live l
             WHERE l.owner = v_lane.owner AND l.parked_on = -v_lane.queue::bigint AND l.state = 'pending'
               AND (l.expire_at IS NULL OR l.expire_at > v_now)
             ORDER BY l.sort_key, l.id LIMIT 10 LOOP
      IF NOT orchestrator._preloaded() OR orchestrator._has_permits(t) THEN
        RETURN 1;
      END IF;
      v_found := 2;
    END LOOP;
  END LOOP;
  RETURN v_found;
END
$$;

-- Without preload nobody else sees to what is due: one worker at a time does.
CREATE FUNCTION orchestrator._tend() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF orchestrator._next_due() <= orchestrator._now() AND pg_try_advisory_xact_lock('orchestrator.lease'::regclass::int, 0) THEN
    PERFORM orchestrator._promote_due(100), orchestrator._expire(100);
  END IF;
END
$$;

CREATE FUNCTION orchestrator._claim(caller oid, queues text[], worker text, max_tasks int, lease interval, definitions text[])
  RETURNS SETOF orchestrator.claimed_task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_queues  int[];
  v_ids     int[];
  v_left    int := $4;
  v_lanes   record;
  v_n       int;
  v_i       int := 0;
BEGIN
  PERFORM orchestrator._require($3 IS NOT NULL AND btrim($3) <> '' AND octet_length($3) <= 200 AND $3 !~ '[[:cntrl:]]',
                                'the name of a worker must have 1 to 200 bytes, and no control characters');
  PERFORM orchestrator._require($4 IS NOT NULL AND $4 BETWEEN 1 AND 1000, 'max_tasks must be between 1 and 1000');
  PERFORM orchestrator._check_lease($5);
  v_queues := orchestrator._remote_queues($1, $2);
  IF NOT orchestrator._may_fire() THEN
    RAISE EXCEPTION 'tasks do not run in database "%": it is a copy', current_database()
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'An administrator lets them with orchestrator.activate().';
  END IF;
  IF $6 IS NOT NULL THEN
    v_ids := ARRAY(SELECT d.id FROM orchestrator.definition d WHERE d.kind = 'remote' AND (d.name = ANY ($6) OR d.handler = ANY ($6)));
  END IF;
  IF orchestrator._preloaded() THEN
    RETURN QUERY SELECT c.* FROM orchestrator._claim_work($1, orchestrator._owner($1), v_queues, $4, $3, $5, v_ids) c;
    RETURN;
  END IF;
  PERFORM orchestrator._tend();
  -- as there: each lane its share; then, who has more
  FOR v_round IN 1 .. 2 LOOP
    FOR v_lanes IN SELECT w.*, row_number() OVER () AS place, count(*) OVER () AS n FROM orchestrator._remote_lanes($1, v_queues) w LOOP
      EXIT WHEN v_left <= 0;
      v_n := CASE v_round WHEN 1 THEN greatest(v_left / (v_lanes.n - v_lanes.place + 1), 1) ELSE v_left END;
      RETURN QUERY SELECT c.* FROM orchestrator._claim_lane(orchestrator._owner($1), v_lanes.queue, v_lanes.owner, v_n, $3, $5, v_ids) c;
      GET DIAGNOSTICS v_i = ROW_COUNT;
      v_left := v_left - v_i;
    END LOOP;
    EXIT WHEN v_left = $4 OR v_left <= 0;
  END LOOP;
END
$$;

CREATE FUNCTION orchestrator._check_lease(lease interval) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require($1 IS NULL OR $1 BETWEEN interval '1 second' AND interval '7 days', 'lease must be between 1 second and 7 days',
                                'A worker that needs longer calls orchestrator.heartbeat().');
END
$$;

-- The oldest ready tasks of one lane, without preload. Under limits, of which
-- there are no permits then, each is asked for by itself, as far as the next 1,000.
CREATE FUNCTION orchestrator._claim_lane(claimer int, queue int, owner int, max_rows int, worker text, lease interval, definitions int[])
  RETURNS SETOF orchestrator.claimed_task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_here  text := (SELECT i.system_identifier || '-' || i.database FROM orchestrator.database_identity i LIMIT 1);
  v_tasks bigint[] := '{}';
  q       orchestrator.queue;
  t       orchestrator.task;
BEGIN
  IF NOT orchestrator._is_limited($2) THEN
    RETURN QUERY SELECT c.* FROM orchestrator._claim_rows($1, $2, $3, $4, $5, $6, $7) c;
    RETURN;
  END IF;
  SELECT x.* INTO q FROM orchestrator.queue x WHERE x.id = $2 FOR NO KEY UPDATE;
  FOR t IN SELECT l.* FROM orchestrator.task_live l
           WHERE l.owner = $3 AND l.parked_on = -$2::bigint AND l.state = 'pending' AND (l.expire_at IS NULL OR l.expire_at > v_now)
             AND ($7 IS NULL OR l.definition = ANY ($7))
           ORDER BY l.sort_key, l.id LIMIT 1000 FOR UPDATE SKIP LOCKED LOOP
    EXIT WHEN cardinality(v_tasks) >= $4 OR NOT orchestrator._fits(q.max_running, q.rate_limit, q.rate_period, q.id, NULL, NULL, NULL);
    CONTINUE WHEN NOT orchestrator._has_room(t);
    -- what is counted next must see it
    UPDATE orchestrator.task_live l SET state = 'running', started_at = v_now WHERE l.id = t.id;
    v_tasks := v_tasks || t.id;
  END LOOP;
  RETURN QUERY SELECT c.* FROM orchestrator._lease_tasks($1, v_tasks, $5, $6, v_now, v_here) c;
END
$$;

-- Make locked tasks running, each with its lease.
CREATE FUNCTION orchestrator._lease_tasks(claimer int, tasks bigint[], worker text, lease interval, at timestamptz, here text)
  RETURNS SETOF orchestrator.claimed_task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  RETURN QUERY
    WITH claimed AS (
      UPDATE orchestrator.task_live l
        SET state = 'running', attempt = l.attempt + 1, epoch = l.epoch + 1, started_at = $5, worker = NULL
        WHERE l.id = ANY ($2)
        RETURNING l.*
    ), leased AS (
      INSERT INTO orchestrator.lease AS x (task_id, epoch, secret, worker, claimed_by, owner, queue, started_at, heartbeat_at, length, ends_at, look_at)
        SELECT c.id, c.epoch, orchestrator._secret(), $3, $1, c.owner, c.queue, $5, $5, z.length, z.ends_at, z.look_at
        FROM claimed c
        JOIN orchestrator.definition d ON d.id = c.definition
        CROSS JOIN LATERAL orchestrator._lease_times(
          ROW(c.id, c.epoch, '', '', 0, 0, 0, $5, $5, coalesce($4, d.response_timeout, '1 minute'), $5, $5, false, NULL, NULL, NULL, '{}', NULL)::orchestrator.lease,
          d, c.deadline) z
        RETURNING x.task_id, x.epoch, x.secret, x.ends_at, x.look_at
    )
    SELECT c.id, z.epoch || '-' || encode(z.secret, 'hex'), d.name, coalesce(d.handler, d.name), c.input, c.attempt, c.max_attempts,
           $6 || '-' || c.id || coalesce('.' || nullif(c.iteration, 1), ''), q.name, o.name::text, c.name, c.parent_id, coalesce(c.root_id, c.id), c.key, c.metadata, c.deadline,
           $5 + d.timeout, z.ends_at, c.traceparent
    FROM claimed c
    JOIN leased z ON z.task_id = c.id
    JOIN orchestrator.definition d ON d.id = c.definition
    JOIN orchestrator.queue q ON q.id = c.queue
    JOIN orchestrator.owner o ON o.id = c.owner
    CROSS JOIN LATERAL (SELECT orchestrator._claimed(c.owner, c.queue, c.sort_key, c.priority), orchestrator._due(z.look_at),
                               orchestrator._emit(c.id, c.root_id, c.parent_id, 'started', 'running', NULL, c.attempt, d.notify <> 'off') OFFSET 0) told
    ORDER BY c.sort_key, c.id;
END
$$;

-- Reports ------------------------------------------------------------------

CREATE FUNCTION orchestrator._heartbeat(caller oid, task bigint, token text, lease interval, fraction float8, message text, stage text)
  RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
  t     orchestrator.task;
  d     orchestrator.definition;
  z     orchestrator.lease;
BEGIN
  PERFORM orchestrator._check_lease($4);
  PERFORM orchestrator._require($5 BETWEEN 0 AND 1, 'fraction must be between 0 and 1');
  SELECT x.* INTO z FROM orchestrator.lease x
    WHERE x.task_id = $2 AND x.epoch || '-' || encode(x.secret, 'hex') = $3 AND x.ends_at > v_now
      AND x.claimed_by = ANY (orchestrator._member_owners($1))
    FOR UPDATE;
  IF NOT FOUND THEN
    RETURN orchestrator._lost_state($1, $2);
  END IF;
  SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = $2;
  SELECT x.* INTO d FROM orchestrator.definition x WHERE x.id = t.definition;
  z.heartbeat_at := v_now;
  z.length := coalesce($4, z.length);
  z := orchestrator._lease_times(z, d, t.deadline);
  z.progress := coalesce($5, z.progress);
  z.message := CASE WHEN $6 IS NULL THEN z.message ELSE left($6, 255) END;
  z.stage := CASE WHEN $7 IS NULL THEN z.stage ELSE left($7, 63) END;
  UPDATE orchestrator.lease x
    SET heartbeat_at = z.heartbeat_at, length = z.length, ends_at = z.ends_at, look_at = z.look_at,
        progress = z.progress, message = z.message, stage = z.stage
    WHERE x.task_id = $2;
  PERFORM orchestrator._due(z.look_at);
  IF $5 IS NOT NULL AND d.notify <> 'off' THEN
    PERFORM orchestrator._emit($2, t.root_id, t.parent_id, 'progress', 'running', z.progress, t.attempt, true);
  END IF;
  RETURN 'running';
END
$$;

-- What a worker whose claim does not stand should do: of a task that it could
-- see, stop because somebody wants that, or because it is not its own.
CREATE FUNCTION orchestrator._lost_state(caller oid, task bigint) RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_mine int[] := orchestrator._member_owners($1);
BEGIN
  IF EXISTS (SELECT FROM orchestrator.task x
             WHERE x.id = $2 AND x.state IN ('cancelled', 'paused')
               AND (x.owner = ANY (v_mine)
                    OR EXISTS (SELECT FROM orchestrator.queue q WHERE q.id = x.queue AND q.owner = ANY (v_mine))
                    OR EXISTS (SELECT FROM orchestrator.queue_share s WHERE s.queue = x.queue AND s.may_claim AND s.grantee = ANY (v_mine || 0)))) THEN
    RETURN 'cancel';
  END IF;
  RETURN 'lost';
END
$$;

CREATE FUNCTION orchestrator._heartbeat_many(caller oid, tasks bigint[], tokens text[], lease interval) RETURNS TABLE (task_id bigint, state text)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._check_reports($2, $3);
  -- in the order of their ids: two that overlap do not lock each other up
  RETURN QUERY
    SELECT h.task, h.state
    FROM (SELECT u.task, u.place, orchestrator._heartbeat($1, u.task, u.token, $4, NULL, NULL, NULL) AS state
          FROM (SELECT * FROM unnest($2, $3) WITH ORDINALITY u(task, token, place) ORDER BY u.task OFFSET 0) u OFFSET 0) h
    ORDER BY h.place;
END
$$;

CREATE FUNCTION orchestrator._check_reports(tasks bigint[], tokens text[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require($1 IS NOT NULL AND $2 IS NOT NULL, 'tasks and tokens must not be null');
  IF cardinality($1) <> cardinality($2) THEN
    RAISE EXCEPTION 'tokens must have as many elements as tasks' USING ERRCODE = 'array_subscript_error';
  END IF;
END
$$;

-- Why an output of that size is not kept; null: it is.
CREATE FUNCTION orchestrator._output_error(bytes int) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_limit bigint := pg_size_bytes(current_setting('orchestrator.max_input_size'));
BEGIN
  IF $1 > v_limit THEN
    RETURN jsonb_build_object('sqlstate', '54000', 'message', format('output of %s bytes is larger than %s bytes', $1, v_limit),
                              'hint', 'Store large results in a table and return their key, or raise orchestrator.max_input_size.');
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION orchestrator._complete(caller oid, task bigint, token text, output jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_error jsonb := orchestrator._output_error(pg_column_size($4));
  z       orchestrator.lease;
BEGIN
  IF v_error IS NOT NULL THEN
    PERFORM orchestrator._fail($1, $2, $3, v_error, false);
    RETURN;
  END IF;
  IF orchestrator._complete_plain(orchestrator._member_owners($1), ARRAY[$2], ARRAY[$3], ARRAY[$4]) <> '{}' THEN
    RETURN;
  END IF;
  z := orchestrator._lease($1, $2, $3);
  PERFORM orchestrator._count_attempt(l) FROM orchestrator.task_live l WHERE l.id = $2;
  IF NOT orchestrator._settle_completed($2, z.epoch, $4, NULL, NULL, z.requests) THEN
    PERFORM orchestrator._stale($2);
  END IF;
END
$$;

-- Those that nothing hangs on go together, the others one by one, as do all when
-- an output cannot be kept.
CREATE FUNCTION orchestrator._complete_many(caller oid, tasks bigint[], tokens text[], outputs jsonb[]) RETURNS TABLE (task_id bigint, state text)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_states jsonb := '{}';
  v_plain  bigint[];
  v_task   bigint;
  v_token  text;
  v_output jsonb;
BEGIN
  PERFORM orchestrator._check_reports($2, $3);
  IF cardinality($4) <> cardinality($2) THEN
    RAISE EXCEPTION 'outputs must have as many elements as tasks' USING ERRCODE = 'array_subscript_error';
  END IF;
  v_plain := CASE WHEN orchestrator._output_error((SELECT max(pg_column_size(o)) FROM unnest($4) o)) IS NULL
                  THEN orchestrator._complete_plain(orchestrator._member_owners($1), $2, $3, $4) ELSE '{}' END;
  IF cardinality(v_plain) = cardinality($2) THEN
    RETURN QUERY SELECT u.task, 'completed' FROM unnest($2) u(task);
    RETURN;
  END IF;
  FOR v_task, v_token, v_output IN
    SELECT u.task, u.token, u.output FROM unnest($2, $3, $4) u(task, token, output)
    WHERE coalesce(u.task <> ALL (v_plain), true) ORDER BY u.task
  LOOP
    BEGIN
      PERFORM orchestrator._complete($1, v_task, v_token, v_output);
      v_states := v_states || jsonb_build_object(v_task::text, (SELECT x.state FROM orchestrator.task x WHERE x.id = v_task));
    EXCEPTION WHEN SQLSTATE 'OR010' OR invalid_parameter_value THEN
      CONTINUE;
    END;
  END LOOP;
  RETURN QUERY
    SELECT u.task, CASE WHEN u.task = ANY (v_plain) THEN 'completed' ELSE coalesce(v_states ->> u.task::text, 'lost') END
    FROM unnest($2) WITH ORDINALITY u(task, place) ORDER BY u.place;
END
$$;

-- An error as it is kept: at least a message and an SQLSTATE, and not large.
CREATE FUNCTION orchestrator._error_of(error jsonb, retryable boolean) RETURNS jsonb
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  e jsonb := CASE jsonb_typeof($1) WHEN 'object' THEN $1 WHEN 'string' THEN jsonb_build_object('message', $1) ELSE '{}' END;
BEGIN
  IF octet_length(e::text) > 8192 THEN
    e := jsonb_strip_nulls(jsonb_build_object('sqlstate', e -> 'sqlstate', 'message', left(e ->> 'message', 2000), 'detail', left(e ->> 'detail', 2000),
                                              'hint', left(e ->> 'hint', 500)));
  END IF;
  IF coalesce(e ->> 'sqlstate', '') !~ '^[0-9A-Z]{5}$' THEN
    e := e || '{"sqlstate": "OR011"}';
  END IF;
  IF coalesce(jsonb_typeof(e -> 'message'), '') <> 'string' THEN
    e := e || '{"message": "the step failed"}';
  END IF;
  RETURN e - 'retry'::text || CASE WHEN $2 IS FALSE THEN '{"retry": false}'::jsonb ELSE '{}' END;
END
$$;

CREATE FUNCTION orchestrator._fail(caller oid, task bigint, token text, error jsonb, retryable boolean) RETURNS orchestrator.task_state
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  z       orchestrator.lease := orchestrator._lease($1, $2, $3);
  v_state orchestrator.task_state;
BEGIN
  PERFORM orchestrator._count_attempt(l) FROM orchestrator.task_live l WHERE l.id = $2;
  v_state := orchestrator._settle_failed($2, z.epoch, 'error', orchestrator._error_of($4, $5), NULL, NULL);
  IF v_state IS NULL THEN
    PERFORM orchestrator._stale($2);
  END IF;
  RETURN v_state;
END
$$;

CREATE FUNCTION orchestrator._release(caller oid, task bigint, token text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  z orchestrator.lease := orchestrator._lease($1, $2, $3);
BEGIN
  IF orchestrator._settle_failed($2, z.epoch, 'released', NULL, z.started_at, NULL) IS NULL THEN
    PERFORM orchestrator._stale($2);
  END IF;
END
$$;

-- Only while the lease is locked: a task that moved on gets no line of an
-- attempt that is over.
CREATE FUNCTION orchestrator._log(caller oid, task bigint, token text, level text, message text, detail jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  z orchestrator.lease := orchestrator._lease($1, $2, $3);
BEGIN
  PERFORM orchestrator._require($4 IN ('debug', 'info', 'notice', 'warning', 'error') AND $4 IS NOT NULL, format('unknown level "%s"', $4),
                                'Say debug, info, notice, warning or error.');
  PERFORM orchestrator._require($5 IS NOT NULL, 'message must not be null');
  PERFORM orchestrator._require(coalesce(pg_column_size($6), 0) <= 8192, 'detail must not be larger than 8192 bytes');
  PERFORM FROM orchestrator.lease x WHERE x.task_id = $2 AND x.epoch = z.epoch FOR SHARE;
  IF NOT FOUND THEN
    PERFORM orchestrator._stale($2);
  END IF;
  PERFORM orchestrator._note(l.id, l.owner, l.attempt, l.epoch, orchestrator._now(), 'notice',
                             jsonb_strip_nulls(jsonb_build_object('level', $4, 'message', left($5, 4000))) || CASE WHEN $6 IS NULL THEN '{}' ELSE jsonb_build_object('detail', $6) END)
    FROM orchestrator.task_live l WHERE l.id = $2;
END
$$;

-- Keep what a remote worker asks of its run until the task completes, as
-- src/request.c does for a step in an executor.
CREATE FUNCTION orchestrator._request(caller oid, task bigint, token text, request jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  z orchestrator.lease := orchestrator._lease($1, $2, $3);
BEGIN
  UPDATE orchestrator.lease x SET requests = coalesce(x.requests, '[]') || $4 WHERE x.task_id = $2 AND x.epoch = z.epoch RETURNING x.* INTO z;
  IF NOT FOUND THEN
    PERFORM orchestrator._stale($2);
  END IF;
  PERFORM orchestrator._check_input(z.requests);
END
$$;

-- Steps run as the owner of the task: only who is that role may add some.
CREATE FUNCTION orchestrator._request_steps(caller oid, task bigint, token text, steps jsonb, delay interval) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  z      orchestrator.lease := orchestrator._lease($1, $2, $3);
  v_role oid;
BEGIN
  IF z.owner <> ALL (orchestrator._member_owners($1)) THEN
    RAISE EXCEPTION 'only the owner of task % may add steps to its run', $2
      USING ERRCODE = 'insufficient_privilege', HINT = 'They would run with the rights of that role: return what is to be done, and let a step of its own workflow do it.';
  END IF;
  PERFORM orchestrator._require($4 IS NOT NULL, 'steps must not be null');
  PERFORM orchestrator._require($5 IS NULL OR $5 BETWEEN interval '0' AND interval '100 years', 'delay must be between 0 and 100 years');
  v_role := (SELECT o.role FROM orchestrator.owner o WHERE o.id = z.owner);
  PERFORM orchestrator._check_steps(v_role, $2, $4);
  PERFORM orchestrator._request($1, $2, $3, jsonb_strip_nulls(jsonb_build_object('verb', 'add_steps', 'delay', $5)) || jsonb_build_object('steps', $4));
END
$$;
