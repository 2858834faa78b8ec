-- Claim, the way in SQL (the hot one is src/claim.c), and what becomes due.
--
-- Statistics of task_live are out of date whenever they matter: it may hold
-- nothing now and a million rows a second later. So the functions that look
-- into it, in all chapters, turn off the plans that would read all of it, and
-- just-in-time compilation, which the costs of plans turned off call for. Who
-- looks for a row by its id asks for its state as text: else a partial index
-- of that state, which statistics take for empty, is read for it from one end
-- to the other.

-- Claim the oldest ready tasks of a queue for a worker: those with the least
-- sort key that nobody else has locked, and that limits have room for.
CREATE FUNCTION orchestrator._claim(owner int, queue int, worker int, max_rows int) RETURNS SETOF orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
BEGIN
  IF (SELECT q.paused FROM orchestrator.queue q WHERE q.id = $2) THEN
    RETURN;
  ELSIF orchestrator._is_limited($2) THEN
    RETURN QUERY SELECT c.* FROM orchestrator._claim_limited($1, $2, $3, $4) c;
    RETURN;
  END IF;
  RETURN QUERY
    WITH ready AS MATERIALIZED (
      SELECT l.id FROM orchestrator.task_live l
      WHERE l.owner = $1 AND l.queue = $2 AND l.state = 'pending' AND l.parked_on IS NULL
        AND (l.expire_at IS NULL OR l.expire_at > v_now)
      ORDER BY l.sort_key, l.id
      LIMIT $4
      FOR UPDATE SKIP LOCKED
    ), claimed AS (
      UPDATE orchestrator.task_live l
        SET state = 'running', attempt = l.attempt + 1, epoch = l.epoch + 1, started_at = v_now, worker = $3
        FROM ready WHERE l.id = ready.id
        RETURNING l.*
    )
    SELECT c.* FROM claimed c
    CROSS JOIN LATERAL (SELECT orchestrator._claimed(c.owner, c.queue, c.sort_key, c.priority) OFFSET 0) told
    ORDER BY c.sort_key, c.id;
END
$$;

-- Read from the tasks that wait what was forgotten of the turns of a queue's
-- tenants (src/fair.c): where each ends, as far as the last 10,000 tasks say,
-- and the turn of the first; null: none waits.
CREATE FUNCTION orchestrator._read_turns(owner int, queue int) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_key      bigint;
  v_priority int;
BEGIN
  PERFORM orchestrator._read_turn($1, $2, r.input, r.sort_key, r.priority)
    FROM (SELECT l.input, l.sort_key, l.priority FROM orchestrator.task_live l
          WHERE l.owner = $1 AND l.queue = $2 AND l.state = 'pending' AND l.parked_on IS NULL
          ORDER BY l.sort_key DESC, l.id DESC LIMIT 10000) r;
  SELECT l.sort_key, l.priority INTO v_key, v_priority FROM orchestrator.task_live l
    WHERE l.owner = $1 AND l.queue = $2 AND l.state = 'pending' AND l.parked_on IS NULL
    ORDER BY l.sort_key, l.id LIMIT 1;
  RETURN v_key + v_priority * (orchestrator._sort_key('2000-01-01 00:00+00', 0) - orchestrator._sort_key('2000-01-01 00:00+00', 1));
END
$$;

-- Whether tasks of a queue may be under a limit.
CREATE FUNCTION orchestrator._is_limited(queue int) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (SELECT FROM orchestrator.queue q WHERE q.id = $1 AND num_nonnulls(q.max_running, q.rate_limit) > 0)
      OR EXISTS (SELECT FROM orchestrator.definition d WHERE num_nonnulls(d.max_running, d.rate_limit, d.concurrency_key) > 0);
END
$$;

-- The same one by one, under locks on the rows of the queue and of the
-- definitions: who claims from the same waits until this commits. Without
-- preload there are no permits (src/permit.c), so what runs is counted; a rate
-- counts the history of its period as well, which reads it.
CREATE FUNCTION orchestrator._claim_limited(owner int, queue int, worker int, max_rows int) RETURNS SETOF orchestrator.task
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
  v_now  timestamptz := orchestrator._now();
  v_left int := $4;
  q      orchestrator.queue;
  t      orchestrator.task;
BEGIN
  SELECT x.* INTO q FROM orchestrator.queue x WHERE x.id = $2 FOR NO KEY UPDATE;
  FOR t IN SELECT l.* FROM orchestrator.task_live l
           WHERE l.owner = $1 AND l.queue = $2 AND l.state = 'pending' AND (l.expire_at IS NULL OR l.expire_at > v_now)
           ORDER BY l.sort_key, l.id
           FOR UPDATE SKIP LOCKED LOOP
    EXIT WHEN v_left <= 0 OR NOT orchestrator._fits(q.max_running, q.rate_limit, q.rate_period, q.id, NULL, NULL, NULL);
    CONTINUE WHEN NOT orchestrator._has_room(t);
    RETURN QUERY
      UPDATE orchestrator.task_live l
        SET state = 'running', attempt = l.attempt + 1, epoch = l.epoch + 1, started_at = v_now, worker = $3, parked_on = NULL
        WHERE l.id = t.id RETURNING l.*;
    v_left := v_left - 1;
  END LOOP;
END
$$;

-- Whether the limits of the definition and the workflow of a ready task have
-- room for it; holds their rows.
CREATE FUNCTION orchestrator._has_room(t orchestrator.task) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d     orchestrator.definition;
  v_all int[];
BEGIN
  IF t.step < 0 THEN
    RETURN true;   -- undoing is under no limit
  END IF;
  FOR d IN SELECT c.* FROM orchestrator.definition x
           JOIN orchestrator.definition c ON c.owner = x.owner AND c.name = x.name AND (c.is_current OR c.id = x.id AND x.name LIKE 'orchestrator.%')
           WHERE x.id IN (t.definition, t.plan) AND num_nonnulls(c.max_running, c.rate_limit, c.concurrency_key) > 0
           ORDER BY c.id FOR NO KEY UPDATE OF c LOOP
    v_all := ARRAY(SELECT x.id FROM orchestrator.definition x WHERE x.owner = d.owner AND x.name = d.name);
    IF NOT orchestrator._fits(d.max_running, d.rate_limit, d.rate_period, NULL, v_all, NULL, NULL)
       OR t.definition = ANY (v_all) AND d.concurrency_key IS NOT NULL
          AND NOT orchestrator._fits(d.key_max_running, d.key_rate_limit, d.key_rate_period, NULL, v_all, d.concurrency_key,
                                     jsonb_path_query_first(t.input, d.concurrency_key::jsonpath, silent => true) #>> '{}') THEN
      RETURN false;
    END IF;
  END LOOP;
  RETURN true;
END
$$;

-- Whether fewer run, and were started within the period, than a limit allows:
-- of a queue, or of definitions and, with a path, what it finds there. A task
-- without a key is under no limit of keys.
CREATE FUNCTION orchestrator._fits(max_running int, rate_limit int, rate_period interval, queue int, definitions int[], path text, key text)
  RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  IF $6 IS NOT NULL AND $7 IS NULL THEN
    RETURN true;
  END IF;
  RETURN ($1 IS NULL OR $1 > (
      SELECT count(*) FROM orchestrator.task_live l
      WHERE l.state = 'running' AND ($4 IS NULL OR l.queue = $4) AND ($5 IS NULL OR l.definition = ANY ($5) OR l.plan = ANY ($5) AND $6 IS NULL)
        AND ($6 IS NULL OR jsonb_path_query_first(l.input, $6::jsonpath, silent => true) #>> '{}' = $7)))
    AND ($2 IS NULL OR $2 > (
      SELECT count(*) FROM orchestrator.task x
      WHERE x.started_at > orchestrator._now() - $3
        AND ($4 IS NULL OR x.queue = $4) AND ($5 IS NULL OR x.definition = ANY ($5) OR x.plan = ANY ($5) AND $6 IS NULL)
        AND ($6 IS NULL OR jsonb_path_query_first(x.input, $6::jsonpath, silent => true) #>> '{}' = $7)));
END
$$;

-- Make ready what was scheduled for now or earlier; returns how many. Tasks due
-- at the same time get sort keys of their own, as in enqueue_many(): else the
-- mark of the claims could not pass through them.
CREATE FUNCTION orchestrator._promote_due(max_rows int) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_count int;
  v_runs  int := 0;
  v_began timestamptz;
  v_task  bigint;
  v_root  bigint;
  t       orchestrator.task;
BEGIN
  PERFORM orchestrator._deliver_signals();
  FOR v_task, v_root IN SELECT d.id, d.root_id
                        FROM (SELECT l.id, l.root_id FROM orchestrator.task_live l
                              WHERE l.state = 'scheduled' AND l.run_at <= v_now AND l.remaining IS NOT NULL
                              ORDER BY l.run_at LIMIT $1) d   -- in the order of their index
                        ORDER BY d.id LOOP
    CONTINUE WHEN NOT orchestrator._lock_root(coalesce(v_root, v_task), true);
    v_began := clock_timestamp();
    BEGIN
      UPDATE orchestrator.task_live l SET state = 'waiting', run_at = NULL,
          expire_at = least(l.deadline, v_now + (SELECT d.timeout FROM orchestrator.definition d WHERE d.id = l.definition))
        WHERE l.id = v_task AND l.state::text = 'scheduled' RETURNING l.* INTO t;
      CONTINUE WHEN NOT FOUND;
      PERFORM orchestrator._due(t.expire_at);
      PERFORM orchestrator._go_on(t.id);
    EXCEPTION WHEN OTHERS OR query_canceled THEN
      PERFORM orchestrator._give_up(v_task, v_began, 'task %s could not be started', SQLERRM);
      UPDATE orchestrator.task_live l SET run_at = v_now + interval '1 second' WHERE l.id = v_task AND l.state::text = 'scheduled';
    END;
    v_runs := v_runs + 1;
  END LOOP;
  WITH due AS MATERIALIZED (
    SELECT l.id, l.owner, l.queue, orchestrator._ready_key(l.owner, l.queue, l.input, l.run_at, l.priority) AS sort_key FROM orchestrator.task_live l
    WHERE l.state = 'scheduled' AND l.run_at <= v_now AND l.remaining IS NULL
    ORDER BY l.run_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
  ), placed AS (
    SELECT d.id, d.sort_key + row_number() OVER (PARTITION BY d.owner, d.queue, d.sort_key ORDER BY d.id) - 1 AS sort_key FROM due d
  ), promoted AS (
    UPDATE orchestrator.task_live l
      SET state = 'pending', sort_key = p.sort_key
      FROM placed p WHERE l.id = p.id
      RETURNING l.owner, l.queue, l.sort_key, l.parked_on
  ), lane AS (
    SELECT p.owner, p.queue, p.parked_on, min(p.sort_key) AS sort_key, count(*) AS n FROM promoted p GROUP BY 1, 2, 3
  )
  SELECT sum(n) INTO v_count FROM (SELECT n, orchestrator._ready(owner, queue, sort_key, parked_on) FROM lane OFFSET 0) told;
  RETURN coalesce(v_count, 0) + v_runs;
END
$$;

-- End what waited long enough: fail what was not started or finished in time,
-- end sleeps and waits, and the leases of remote workers; returns how many. A
-- step that an executor runs is stopped at its deadline by it.
CREATE FUNCTION orchestrator._expire(max_rows int) RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
  v_now   timestamptz := orchestrator._now();
  v_count int := 0;
  v_task  bigint;
  v_root  bigint;
  v_began timestamptz;
  t       orchestrator.task;
BEGIN
  v_count := orchestrator._end_leases($1);
  FOR v_task, v_root IN
    SELECT l.id, l.root_id FROM orchestrator.task_live l
    WHERE l.expire_at <= v_now AND l.state <> 'running'
    ORDER BY l.expire_at
    LIMIT $1
  LOOP
    CONTINUE WHEN v_root IS NOT NULL AND NOT orchestrator._lock_root(v_root, true);
    SELECT l.* INTO t FROM orchestrator.task_live l
      WHERE l.id = v_task AND coalesce(l.expire_at <= v_now, false) AND l.state <> 'running' FOR UPDATE SKIP LOCKED;
    CONTINUE WHEN NOT FOUND;
    v_count := v_count + 1;
    IF t.parent_id IS NULL AND t.remaining IS NULL AND t.callbacks IS NULL THEN
      PERFORM orchestrator._expire_row(t, v_now);
      CONTINUE;
    END IF;
    v_began := clock_timestamp();
    BEGIN
      PERFORM orchestrator._expire_row(t, v_now);
    EXCEPTION WHEN OTHERS OR query_canceled THEN
      PERFORM orchestrator._give_up(t.id, v_began, 'task %s could not be ended', SQLERRM);
      UPDATE orchestrator.task_live l SET expire_at = v_now + interval '1 second' WHERE l.id = t.id;
    END;
  END LOOP;
  RETURN v_count;
END
$$;

CREATE FUNCTION orchestrator._expire_row(t orchestrator.task, at timestamptz) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_kind text := orchestrator._kind(t.definition);
BEGIN
  IF t.state = 'waiting' AND coalesce(t.deadline > $2, true) AND v_kind = 'wait' THEN
    PERFORM orchestrator._end_wait(t);
    RETURN;
  ELSIF t.state = 'waiting' AND coalesce(t.deadline > $2, true) AND v_kind = 'procedure' AND t.remaining IS NULL THEN
    PERFORM orchestrator._wake_procedure(t.id);
    RETURN;
  END IF;
  IF t.state = 'pending' THEN
    PERFORM orchestrator._return_turn(t.owner, t.queue, t.input, t.priority);
  END IF;
  t.error := jsonb_build_object('sqlstate', CASE WHEN coalesce(t.deadline > $2, true) AND t.remaining IS NOT NULL THEN 'OR004' ELSE 'OR002' END, 'message',
               CASE WHEN t.deadline <= $2 THEN format('deadline %s passed before the task was finished', t.deadline)
                    WHEN t.remaining IS NOT NULL THEN format('not finished within the timeout of its definition, until %s', t.expire_at)
                    ELSE format('not started within the queue_timeout of its definition, until %s', t.expire_at) END);
  IF t.remaining IS NOT NULL THEN
    PERFORM orchestrator._cancel_below(t.id, jsonb_build_object('by', 'orchestrator', 'reason', t.error ->> 'message'));
  END IF;
  PERFORM orchestrator._count(t.owner, t.queue, t.definition, 'expired');
  PERFORM orchestrator._fail(t, t.error);
END
$$;

-- When _promote_due() or _expire() has something to do next; null: never. A
-- signal that could not be delivered is tried again soon.
CREATE FUNCTION orchestrator._next_due() RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
BEGIN
  RETURN least((SELECT orchestrator._now() + interval '10 ms' FROM orchestrator.signal s WHERE s.undelivered LIMIT 1),
               (SELECT min(l.run_at) FROM orchestrator.task_live l WHERE l.state = 'scheduled'),
               (SELECT min(z.look_at) FROM orchestrator.lease z),
               (SELECT min(l.expire_at) FROM orchestrator.task_live l WHERE l.expire_at IS NOT NULL AND l.state <> 'running'));
END
$$;
