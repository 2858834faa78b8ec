-- Recover: tasks whose worker is gone.

-- Hand back running tasks of workers that are gone, unless somebody else did:
-- those in charged were being run by a process that died and spend the
-- attempt, the others do not. Returns how many. Locks by id.
CREATE FUNCTION orchestrator._recover(tasks bigint[], epochs int[], charged bigint[]) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_task   bigint;
  v_epoch  int;
  v_locked boolean;
  v_began  timestamptz;
  v_count  int := 0;
  v_left   int := 0;
BEGIN
  FOR v_task, v_epoch IN SELECT u.task, u.epoch FROM unnest($1, $2) u(task, epoch) ORDER BY u.task LOOP
    -- a session may keep the row locked for as long as it likes: never wait for it
    v_locked := orchestrator._lock_root((SELECT coalesce(l.root_id, l.id) FROM orchestrator.task_live l WHERE l.id = v_task), true);
    IF v_locked THEN
      PERFORM FROM orchestrator.task_live l WHERE l.id = v_task FOR UPDATE SKIP LOCKED;
      v_locked := FOUND;
    END IF;
    IF NOT v_locked AND EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = v_task AND l.state::text = 'running' AND l.epoch = v_epoch) THEN
      v_left := v_left + 1;
      CONTINUE;
    END IF;
    v_began := clock_timestamp();
    BEGIN
      IF orchestrator._settle_failed(v_task, v_epoch, CASE WHEN v_task = ANY ($3) THEN 'lost' ELSE 'released' END,
                                     NULL, NULL, NULL) IS NOT NULL THEN
        v_count := v_count + 1;
      END IF;
    EXCEPTION WHEN insufficient_resources THEN
      -- of disk or memory: the others would fare no better
      RAISE WARNING 'tasks could not be handed back: %', SQLERRM USING ERRCODE = SQLSTATE;
      v_left := v_left + 1;
      EXIT;
    WHEN OTHERS OR query_canceled THEN
      PERFORM orchestrator._give_up(v_task, v_began, 'task %s could not be handed back', SQLERRM);
      v_left := v_left + 1;
    END;
  END LOOP;
  RETURN CASE WHEN v_left > 0 THEN -v_left ELSE v_count END;   -- negative: so many are locked, come again
END
$$;

-- Tasks that executors of this database hold, also dead ones (src/supervisor.c).
CREATE FUNCTION orchestrator._held() RETURNS bigint[]
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'orchestrator_held';

-- The same for every running task that no executor holds (null: ask them): its
-- worker died before the supervisor looked, or it was taken back and not handed
-- on. First what runs, then who holds it: an executor takes a task into its slot
-- before its claim can be seen, so the other order would miss a new claim.
CREATE FUNCTION orchestrator._recover_all(charged bigint[], held bigint[]) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_tasks  bigint[];
  v_epochs int[];
  v_held   bigint[];
  v_left   int;
  v_count  int;
BEGIN
  SELECT array_agg(l.id), array_agg(l.epoch) INTO v_tasks, v_epochs
    FROM orchestrator.task_live l
    WHERE l.state = 'running'
      AND NOT (l.parked_on < 0 AND EXISTS (SELECT FROM orchestrator.lease z WHERE z.task_id = l.id AND z.epoch = l.epoch))   -- remote workers
      AND (l.worker IS NULL OR l.parked_on IS NULL OR l.parked_on >= orchestrator._courier_lane(0));   -- the courier
  v_held := coalesce($2, orchestrator._held());
  SELECT array_agg(u.task ORDER BY u.task), array_agg(u.epoch ORDER BY u.task) INTO v_tasks, v_epochs
    FROM unnest(v_tasks, v_epochs) u(task, epoch) WHERE u.task <> ALL (v_held);
  v_left := orchestrator._recover_calls();
  v_count := orchestrator._recover(v_tasks, v_epochs, $1);
  RETURN CASE WHEN v_left < 0 OR v_count < 0 THEN least(v_left, 0) + least(v_count, 0) ELSE v_left + v_count END;
END
$$;

-- A crash undid the claim of a task, but the note file proves that this
-- attempt of it ran in the process that died: it is spent.
CREATE FUNCTION orchestrator._charge(task bigint, attempt int) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  t orchestrator.task;
BEGIN
  IF orchestrator._lock_root((SELECT coalesce(l.root_id, l.id) FROM orchestrator.task_live l WHERE l.id = $1), true) THEN
    SELECT l.* INTO t FROM orchestrator.task_live l
      WHERE l.id = $1 AND l.state = 'pending' AND l.attempt < $2 FOR UPDATE SKIP LOCKED;
  END IF;
  IF t.id IS NULL THEN
    -- false: somebody has it locked, come again
    RETURN NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = $1 AND l.state = 'pending' AND l.attempt < $2);
  END IF;
  t.attempt := $2;
  t.started_at := NULL;
  PERFORM orchestrator._end_attempt(t, 'lost', NULL);
  RETURN true;
END
$$;

-- Tasks of an owner whose role cannot run them (gone, renamed, no LOGIN) fail
-- with the reason. Returns how many. Locks by id.
CREATE FUNCTION orchestrator._fail_unrunnable(owner int, reason text) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t       orchestrator.task;
  v_task  bigint;
  v_root  bigint;
  v_count int := 0;
BEGIN
  FOR v_task, v_root IN SELECT l.id, l.root_id FROM orchestrator.task_live l
                        WHERE l.owner = $1 AND l.state = 'pending' ORDER BY l.id LOOP
    CONTINUE WHEN v_root IS NOT NULL AND NOT orchestrator._lock_root(v_root, true);
    SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = v_task AND l.state = 'pending' FOR UPDATE SKIP LOCKED;
    CONTINUE WHEN NOT FOUND;
    t.error := jsonb_build_object('sqlstate', 'OR005', 'message', 'the task cannot run: ' || $2,
      'hint', 'Enqueue it again as a role that may log in and connect to this database.');
    PERFORM orchestrator._fail(t, t.error);
    v_count := v_count + 1;
  END LOOP;
  RETURN v_count;
END
$$;

-- Count a start of some time ago for a limit (src/permit.c).
CREATE FUNCTION orchestrator._restore_rate(kind text, number int, name text, rate_limit int, period interval, ago interval, n int)
  RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_restore_rate';

-- After a restart of the server: the permits of leases that go on, all or none.
CREATE FUNCTION orchestrator._retake_permits() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._take_permits_again(ARRAY(SELECT unnest(z.permits) FROM orchestrator.lease z));
END
$$;

-- After a restart of the server: what was started within the periods of rate
-- limits. Finished rows stand in their partition in the order of their ends, so
-- each is read from its end, as far back as the longest period. Returns whether
-- there may be any: the database was there before the restart.
CREATE FUNCTION orchestrator._restore_rates(restarted_at timestamptz) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_chunk  constant int := 256;   -- blocks
  v_size   constant int := current_setting('block_size')::int;
  v_since  timestamptz;
  v_leaf   oid;
  v_blocks bigint;
  v_newest timestamptz;
BEGIN
  IF NOT EXISTS (SELECT FROM orchestrator.database_identity i WHERE i.activated_at < $1) THEN
    RETURN false;
  END IF;
  SELECT orchestrator._now() - max(p.period) INTO v_since
    FROM (SELECT q.rate_period FROM orchestrator.queue q UNION ALL SELECT d.rate_period FROM orchestrator.definition d) p(period);
  IF v_since IS NULL THEN
    RETURN true;
  END IF;
  PERFORM orchestrator._restore_starts('orchestrator.task_live', v_since, '(0,0)');
  FOR v_leaf IN SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = 'orchestrator.task_finished'::regclass ORDER BY 1 DESC LOOP
    v_blocks := pg_relation_size(v_leaf) / v_size;
    WHILE v_blocks > 0 LOOP
      v_blocks := greatest(v_blocks - v_chunk, 0);
      v_newest := orchestrator._restore_starts(v_leaf, v_since, format('(%s,0)', v_blocks)::tid, format('(%s,0)', v_blocks + v_chunk)::tid);
      EXIT WHEN v_newest < v_since;
    END LOOP;
  END LOOP;
  RETURN true;
END
$$;

-- The starts in a part of a leaf; returns when the last row there ended.
CREATE FUNCTION orchestrator._restore_starts(leaf regclass, since timestamptz, first tid, upto tid DEFAULT '(4294967294,0)')
  RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_now    timestamptz := orchestrator._now();
  v_newest timestamptz;
BEGIN
  EXECUTE format(
    $sql$WITH started AS MATERIALIZED (
           SELECT t.queue, t.definition, t.plan, t.started_at, t.finished_at FROM %1$s t WHERE t.ctid >= $3 AND t.ctid < $4
         ), recent AS MATERIALIZED (
           SELECT s.queue, s.definition, s.plan, date_trunc('milliseconds', $1 - s.started_at) AS ago, count(*)::int AS n
           FROM started s WHERE s.started_at >= $2 GROUP BY 1, 2, 3, 4
         ), counted AS (
           SELECT orchestrator._restore_rate('queue', q.id, '', q.rate_limit, q.rate_period, r.ago, r.n)
           FROM recent r JOIN orchestrator.queue q ON q.id = r.queue AND q.rate_limit IS NOT NULL
           UNION ALL
           SELECT orchestrator._restore_rate('definition', d.owner, d.name, c.rate_limit, c.rate_period, r.ago, r.n)
           FROM recent r
           JOIN orchestrator.definition d ON d.id IN (r.definition, r.plan)
           JOIN orchestrator.definition c ON c.owner = d.owner AND c.name = d.name AND c.rate_limit IS NOT NULL
                                             AND (c.is_current OR c.id = d.id AND d.name LIKE 'orchestrator.%%')
         )
         SELECT max(s.finished_at) FROM started s WHERE (SELECT count(*) FROM counted) >= 0$sql$, $1)
    INTO v_newest USING v_now, $2, $3, $4;
  RETURN coalesce(v_newest, $2);
END
$$;
