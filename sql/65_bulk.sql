-- Control of many tasks, by filter: those among them that the caller may
-- control, in order of their ids, a thousand at a time.

CREATE FUNCTION orchestrator.cancel_many(definition text DEFAULT NULL, queue text DEFAULT NULL, states text[] DEFAULT NULL,
    older_than interval DEFAULT NULL, max_rows int DEFAULT NULL, all_tasks boolean DEFAULT false, reason text DEFAULT NULL) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.cancel_many(text, text, text[], interval, int, boolean, text) IS
  'Cancels all tasks that match; returns how many. Without a filter only with all_tasks';

CREATE FUNCTION orchestrator.pause_many(definition text DEFAULT NULL, queue text DEFAULT NULL, states text[] DEFAULT NULL,
    older_than interval DEFAULT NULL, max_rows int DEFAULT NULL, all_tasks boolean DEFAULT false, force boolean DEFAULT false) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.pause_many(text, text, text[], interval, int, boolean, boolean) IS
  'Pauses all tasks that match; returns how many. Without a filter only with all_tasks';

CREATE FUNCTION orchestrator.resume_many(definition text DEFAULT NULL, queue text DEFAULT NULL, states text[] DEFAULT NULL,
    older_than interval DEFAULT NULL, max_rows int DEFAULT NULL, all_tasks boolean DEFAULT false) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.resume_many(text, text, text[], interval, int, boolean) IS
  'Resumes all paused tasks that match; returns how many. Without a filter only with all_tasks';

CREATE FUNCTION orchestrator.retry_many(definition text DEFAULT NULL, queue text DEFAULT NULL, states text[] DEFAULT NULL,
    older_than interval DEFAULT NULL, max_rows int DEFAULT NULL, all_tasks boolean DEFAULT false, attempts int DEFAULT 1) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.retry_many(text, text, text[], interval, int, boolean, int) IS
  'Retries all failed tasks that match (cancelled ones if states names them); returns how many. Without a filter only with all_tasks';

-- The states a call is about: those it names, or all that the verb can act on.
CREATE FUNCTION orchestrator._many_states(verb text, states text[], possible text[]) RETURNS orchestrator.task_state[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_wrong text;
BEGIN
  SELECT s INTO v_wrong FROM unnest($2) s WHERE s IS NULL OR s <> ALL ($3) LIMIT 1;
  PERFORM orchestrator._require(NOT FOUND, format('%s() cannot act on tasks in the state "%s"', $1, v_wrong),
                                'It can on: ' || array_to_string($3, ', ') || '.');
  RETURN coalesce($2, $3)::orchestrator.task_state[];
END
$$;

-- Refuse a call that would touch everything by mistake.
CREATE FUNCTION orchestrator._require_filter(verb text, filters int, all_tasks boolean, max_rows int) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require($2 > 0 OR coalesce($3, false), format('%s() without a filter', $1),
                                'Name a definition, queue, states or older_than, or say all_tasks => true.');
  PERFORM orchestrator._require($4 > 0, 'max_rows must be positive');
END
$$;

-- Refuse names that mean nothing to the caller: neither something of a role
-- whose tasks it may control, though it was dropped, nor what is shared with it,
-- nor what such tasks are of. The engine's own are made when they are needed.
CREATE FUNCTION orchestrator._require_known(caller oid, definition text, queue text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_owners int[] := orchestrator._controlled_owners($1);
BEGIN
  IF $2 NOT LIKE 'orchestrator.%'
     AND NOT EXISTS (SELECT FROM orchestrator.definition d WHERE d.name = $2 AND d.owner = ANY (v_owners))
     AND orchestrator._shared_definitions($1, $2) = '{}'
     AND NOT EXISTS (SELECT FROM orchestrator.definition d,
                       LATERAL (SELECT FROM orchestrator.task t WHERE t.definition = d.id AND t.owner = ANY (v_owners) LIMIT 1) used
                     WHERE d.name = $2) THEN
    PERFORM orchestrator._no_definition($2);
  END IF;
  IF $3 <> 'default'
     AND NOT EXISTS (SELECT FROM orchestrator.queue q WHERE q.name = $3 AND q.owner = ANY (v_owners))
     AND orchestrator._shared_queues($1, $3) = '{}'
     AND NOT EXISTS (SELECT FROM orchestrator.queue q,
                       LATERAL (SELECT FROM orchestrator.task t WHERE t.queue = q.id AND t.owner = ANY (v_owners) LIMIT 1) used
                     WHERE q.name = $3) THEN
    PERFORM orchestrator._no_queue($3);
  END IF;
END
$$;

-- Lock up to max_rows live tasks of definitions, and the tops of their trees
-- before them; null: there are none. Used by drop_definition().
CREATE FUNCTION orchestrator._lock_live(definitions int[], max_rows int) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_ids bigint[];
BEGIN
  PERFORM orchestrator._yield(s.task_id) FROM orchestrator._slots() s WHERE s.task_id IS NOT NULL
    AND EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id = s.task_id AND l.definition = ANY ($1));
  LOOP
    v_ids := ARRAY(SELECT l.id FROM orchestrator.task_live l WHERE l.definition = ANY ($1) ORDER BY l.id LIMIT $2);
    IF v_ids = '{}' THEN
      RETURN NULL;
    END IF;
    v_ids := orchestrator._lock_with_roots(v_ids);
    IF v_ids <> '{}' THEN
      RETURN v_ids;
    END IF;
  END LOOP;
END
$$;

-- Lock live tasks, and the tops of their trees before them. Returns those that
-- are still live.
CREATE FUNCTION orchestrator._lock_with_roots(ids bigint[]) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  PERFORM orchestrator._lock_root(r.root, false)
    FROM (SELECT DISTINCT coalesce(l.root_id, l.id) AS root FROM orchestrator.task_live l
          WHERE l.id = ANY ($1) AND (l.root_id IS NOT NULL OR l.remaining IS NOT NULL) ORDER BY 1) r;
  RETURN ARRAY(SELECT l.id FROM orchestrator.task_live l WHERE l.id = ANY ($1) ORDER BY l.id FOR UPDATE);
END
$$;

-- The next tasks after an id that match, locked, those of the fast lane called
-- back first; ids in order, and last: where to go on from (null: no more).
CREATE FUNCTION orchestrator._next_many(caller oid, definition text, queue text, states orchestrator.task_state[],
    older_than interval, after bigint, max_rows int, OUT ids bigint[], OUT last bigint)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
  v_owners      int[] := orchestrator._controlled_owners($1);
  v_definitions int[] := ARRAY(SELECT d.id FROM orchestrator.definition d WHERE d.name = $2);
  v_queues      int[] := ARRAY(SELECT q.id FROM orchestrator.queue q WHERE q.name = $3);
  v_before      timestamptz := orchestrator._now() - $5;
  v_found       bigint[];
  v_root        bigint;
BEGIN
  v_found := ARRAY(
    SELECT t.id FROM orchestrator.task t
    WHERE t.id > $6 AND t.live = ('failed' <> ALL ($4) AND 'cancelled' <> ALL ($4))
      AND t.owner = ANY (v_owners) AND t.state = ANY ($4)
      AND (t.live OR t.step IS NULL AND NOT orchestrator._is_undone(t))   -- steps are retried with their run
      AND ($2 IS NULL OR t.definition = ANY (v_definitions))
      AND ($3 IS NULL OR t.queue = ANY (v_queues))
      AND ($5 IS NULL OR t.created_at < v_before)
    ORDER BY t.id
    LIMIT $7);
  last := v_found[cardinality(v_found)];
  PERFORM orchestrator._yield(s.task_id) FROM orchestrator._slots() s WHERE s.task_id = ANY (v_found);
  -- After the first lot a top may stand before what is locked already: to wait
  -- for it could deadlock with an executor, so it is tried for a second.
  FOR v_root IN SELECT DISTINCT coalesce(t.root_id, t.id) FROM orchestrator.task t
                WHERE t.id = ANY (v_found) AND (t.root_id IS NOT NULL OR t.remaining IS NOT NULL) ORDER BY 1 LOOP
    FOR i IN 1 .. 200 LOOP
      EXIT WHEN orchestrator._lock_root(v_root, $6 > 0);
      PERFORM pg_sleep(0.005);
      IF i = 200 THEN
        RAISE EXCEPTION 'task % is locked by somebody else', v_root USING ERRCODE = 'lock_not_available', HINT = 'Try again.';
      END IF;
    END LOOP;
  END LOOP;
  ids := ARRAY(SELECT t.id FROM orchestrator.task t
               WHERE t.id = ANY (v_found) AND t.state = ANY ($4)
               ORDER BY t.id FOR UPDATE);
END
$$;

-- Do what the verb says to tasks that match, a thousand at a time.
CREATE FUNCTION orchestrator._change_many(verb text, caller oid, definition text, queue text, states orchestrator.task_state[], older_than interval,
    max_rows int, detail jsonb, force boolean DEFAULT NULL, attempts int DEFAULT NULL) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_count bigint := 0;
  v_ids   bigint[];
  v_last  bigint := 0;
BEGIN
  PERFORM orchestrator._require_known($2, $3, $4);
  LOOP
    SELECT n.ids, n.last INTO v_ids, v_last
      FROM orchestrator._next_many($2, $3, $4, $5, $6, v_last, least(1000, $7 - v_count)::int) n;
    EXIT WHEN v_last IS NULL;
    v_count := v_count + CASE $1 WHEN 'cancel' THEN orchestrator._cancel_rows(v_ids, $8)
                                 WHEN 'pause' THEN orchestrator._pause_rows(v_ids, $9, $8)
                                 WHEN 'resume' THEN orchestrator._resume_rows(v_ids, $8)
                                 WHEN 'retry' THEN orchestrator._retry_rows(v_ids, $10, $8) END;
  END LOOP;
  RETURN v_count;
END
$$;

CREATE FUNCTION orchestrator._cancel_many(caller oid, definition text, queue text, states text[], older_than interval,
    max_rows int, all_tasks boolean, reason text) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_states orchestrator.task_state[] := orchestrator._many_states('cancel_many', $4, '{scheduled,pending,running,waiting,paused}');
BEGIN
  PERFORM orchestrator._require_filter('cancel_many', num_nonnulls($2, $3, $4, $5), $7, $6);
  RETURN orchestrator._change_many('cancel', $1, $2, $3, v_states, $5, $6, orchestrator._by($1, $8));
END
$$;

CREATE FUNCTION orchestrator._pause_many(caller oid, definition text, queue text, states text[], older_than interval,
    max_rows int, all_tasks boolean, force boolean) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_states orchestrator.task_state[] := orchestrator._many_states('pause_many', $4, '{scheduled,pending,running,waiting}');
BEGIN
  PERFORM orchestrator._require_filter('pause_many', num_nonnulls($2, $3, $4, $5), $7, $6);
  RETURN orchestrator._change_many('pause', $1, $2, $3, v_states, $5, $6, orchestrator._by($1), force => coalesce($8, false));
END
$$;

CREATE FUNCTION orchestrator._resume_many(caller oid, definition text, queue text, states text[], older_than interval,
    max_rows int, all_tasks boolean) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_states orchestrator.task_state[] := orchestrator._many_states('resume_many', $4, '{paused}');
BEGIN
  PERFORM orchestrator._require_filter('resume_many', num_nonnulls($2, $3, $4, $5), $7, $6);
  RETURN orchestrator._change_many('resume', $1, $2, $3, v_states, $5, $6, orchestrator._by($1));
END
$$;

CREATE FUNCTION orchestrator._retry_many(caller oid, definition text, queue text, states text[], older_than interval,
    max_rows int, all_tasks boolean, attempts int) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_states orchestrator.task_state[] := orchestrator._many_states('retry_many', coalesce($4, '{failed}'), '{failed,cancelled}');
BEGIN
  PERFORM orchestrator._require_filter('retry_many', num_nonnulls($2, $3, $4, $5), $7, $6);
  PERFORM orchestrator._require($8 IS NOT NULL AND $8 BETWEEN 1 AND 10000, 'attempts must be between 1 and 10000');
  RETURN orchestrator._change_many('retry', $1, $2, $3, v_states, $5, $6, orchestrator._by($1), attempts => $8);
END
$$;
