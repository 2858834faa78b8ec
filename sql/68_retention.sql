-- Retention: finished tasks go when they are old enough, by whole partitions.
--
-- A partition holds a million ids: their finished rows and, beside it, their
-- traces. It goes when nothing in it is to be kept:
--
--   a task by itself   as long as its queue says, from when it finished
--   a run, a batch     likewise, by its own row; its steps and tasks stay until
--                      that row is gone, and it stays while anything below is live
--   live tasks         their traces stay
--
-- Where a tenth of the rows or less is to be kept (failed ones, say), they are
-- copied to a new partition of the same ids, which takes the old one's place;
-- where it is more, the partition waits.
--
-- A worker of its own does it (src/retention.c), a step to a transaction, each
-- of which can be done again: what a crash leaves is found in the catalog.
--
--   task_finished_7           attached, judged by _judge(), then
--   task_finished_7           detached CONCURRENTLY: no reader waits or fails
--   expired_task_finished_7   set aside; archive tasks may read it through views
--   the same, closed          nobody may any more: its blocks are given back, from
--                             the end, a few megabytes at a time
--   (dropped)                 with keys, signals, checkpoints and the like
--
-- A lock is waited for 50 ms (the worker's lock_timeout; the end of transactions
-- while a partition is detached, 2 s), and tried again later.

CREATE TABLE orchestrator.partition_state (
  range     bigint      PRIMARY KEY,    -- ids divided by 1,000,000
  closed_at timestamptz NOT NULL,       -- seen first when no new task could get an id of it; the server's clock
  look_at   timestamptz NOT NULL,       -- nothing can be due before ...
  settings  text,                       -- ... while these are the settings
  leaving   boolean     NOT NULL DEFAULT false,  -- found due: where detached, it is retention's to drop
  freeing   boolean     NOT NULL DEFAULT false   -- what was set aside may have lost rows: it is only to be dropped
);
COMMENT ON TABLE orchestrator.partition_state IS 'When retention looks at the partitions of a range of ids again';

CREATE TABLE orchestrator.archive_hook (
  owner      int  PRIMARY KEY,
  definition text NOT NULL
);
COMMENT ON TABLE orchestrator.archive_hook IS 'What archive_with() asked for: a task of this definition is run before finished tasks of the owner are dropped';

CREATE TABLE orchestrator.archive_run (
  range   bigint      NOT NULL,
  owner   int         NOT NULL,
  task_id bigint,                       -- null: it could not be enqueued
  until   timestamptz NOT NULL,         -- dropped then, whatever became of the task
  PRIMARY KEY (range, owner)
);
COMMENT ON TABLE orchestrator.archive_run IS 'Archive tasks under way, each before its range of ids is dropped';

CREATE FUNCTION orchestrator.archive_with(definition text, owner text DEFAULT NULL) RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.archive_with(text, text) IS
  'Before finished tasks of the caller are dropped by retention, runs a task of this definition that may read them, for a day at most. Null: no more';

CREATE FUNCTION orchestrator.purge(definition text DEFAULT NULL, queue text DEFAULT NULL, states text[] DEFAULT NULL,
    older_than interval DEFAULT NULL, max_rows int DEFAULT NULL, all_tasks boolean DEFAULT false, owner text DEFAULT NULL) RETURNS bigint
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.purge(text, text, text[], interval, int, boolean, text) IS
  'Deletes all finished tasks that match, by the time they finished, with their steps, traces, keys and signals; returns how many tasks, steps not counted. Without a filter only with all_tasks';

CREATE FUNCTION orchestrator._wake_retention() RETURNS void
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_wake_retention';
COMMENT ON FUNCTION orchestrator._wake_retention() IS 'Has retention look when this transaction commits';

-- Rows of a query, in the columns of a table that this transaction made, as if
-- they had been there always: also for snapshots that are older.
CREATE FUNCTION orchestrator._copy_frozen(query text, target regclass) RETURNS bigint
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_copy_frozen';

-- How the rows of a partition of finished tasks stand, or those of a hundred of
-- its blocks: by queue, state, and whether they are of a tree.
CREATE FUNCTION orchestrator._count_rows(partition regclass, sample boolean, OUT queue int, OUT state orchestrator.task_state, OUT in_tree boolean,
    OUT rows bigint, OUT newest timestamptz, OUT least_root bigint, OUT last_root bigint) RETURNS SETOF record
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_count_rows';

-- Let a table or view go with the extension, without CASCADE.
CREATE FUNCTION orchestrator._goes_along(relation regclass) RETURNS void
  LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'orchestrator_goes_along';

-- How long finished tasks are kept where their queue does not say; null: for ever.
CREATE FUNCTION orchestrator._default_retention(failed boolean) RETURNS interval
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_setting text := current_setting(CASE WHEN $1 THEN 'orchestrator.retention_failed' ELSE 'orchestrator.retention' END);
BEGIN
  RETURN CASE WHEN v_setting <> '-1' THEN v_setting::interval END;
END
$$;

-- What look_at was judged by; those of queues have it changed themselves.
CREATE FUNCTION orchestrator._retention_settings() RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN concat_ws('/', current_setting('orchestrator.retention'), current_setting('orchestrator.retention_failed'));
END
$$;

-- What a queue keeps for how long has changed: look at everything again.
CREATE FUNCTION orchestrator._review() RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE orchestrator.partition_state s SET look_at = orchestrator._now() WHERE s.look_at > orchestrator._now();
  PERFORM orchestrator._wake_retention();
END
$$;

-- For each queue, and for none (null), the time before which finished tasks are
-- due.
CREATE FUNCTION orchestrator._cutoffs(OUT queue int, OUT failed boolean, OUT keep interval, OUT cutoff timestamptz) RETURNS SETOF record
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_now    timestamptz := orchestrator._now();
  v_keep   interval := orchestrator._default_retention(false);
  v_failed interval := orchestrator._default_retention(true);
BEGIN
  RETURN QUERY
    SELECT x.id, x.failed, x.keep, coalesce(v_now - x.keep, '-infinity')
    FROM (SELECT q.id, false AS failed, coalesce(q.retention, v_keep) AS keep FROM orchestrator.queue q
          UNION ALL SELECT q.id, true, coalesce(q.retention_failed, q.retention, v_failed) FROM orchestrator.queue q
          UNION ALL VALUES (NULL::int, false, v_keep), (NULL, true, v_failed)) x;
END
$$;

-- Tables of a kind (task_finished or trace_log), attached or not, by range.
CREATE FUNCTION orchestrator._partitions(kind text, OUT range bigint, OUT name name, OUT attached boolean, OUT pending boolean) RETURNS SETOF record
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY
    SELECT substring(c.relname FROM E'\\d+$')::bigint, c.relname, i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false)
    FROM pg_class c
    LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind = 'r'
      AND c.relname ~ format(E'^%s_\\d{1,13}$', $1);
END
$$;

-- Whether new tasks may still get ids of a range.
CREATE FUNCTION orchestrator._is_open(range bigint) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_node bigint := current_setting('orchestrator.node_id')::bigint;
  v_last bigint := coalesce(pg_sequence_last_value('orchestrator.task_id_seq'), 0);
BEGIN
  RETURN $1 >= (v_node << 42 | v_last) / 1000000 AND $1 * 1000000 < (v_node + 1) << 42;
END
$$;

-- What was begun and has to be finished at top level: commands.
CREATE FUNCTION orchestrator._retention_commands() RETURNS text[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN ARRAY(
    SELECT format('ALTER TABLE orchestrator.%s DETACH PARTITION orchestrator.%I FINALIZE', k.kind, p.name)
    FROM unnest('{task_finished,trace_log}'::text[]) k(kind), orchestrator._partitions(k.kind) p
    WHERE p.pending
    UNION ALL   -- traces whose tasks are detached
    SELECT format('ALTER TABLE orchestrator.trace_log DETACH PARTITION orchestrator.%I CONCURRENTLY', p.name)
    FROM orchestrator._partitions('trace_log') p JOIN orchestrator.partition_state s ON s.range = p.range AND s.leaving
    WHERE p.attached AND NOT p.pending
      AND NOT EXISTS (SELECT FROM orchestrator._partitions('task_finished') t WHERE t.range = p.range AND t.attached));
END
$$;

-- Ranges that are full, and when to judge each. One of which a table was set
-- aside is not judged before that is gone.
CREATE FUNCTION orchestrator._judgeable(OUT range bigint, OUT at timestamptz) RETURNS SETOF record
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY
    SELECT s.range, CASE WHEN s.settings <> orchestrator._retention_settings() THEN orchestrator._now() ELSE s.look_at END
    FROM orchestrator.partition_state s
    JOIN orchestrator._partitions('task_finished') p ON p.range = s.range AND p.attached
    WHERE NOT orchestrator._is_open(s.range)
      AND NOT EXISTS (SELECT FROM unnest('{expired_task_finished,expired_trace_log}'::text[]) k(kind), orchestrator._partitions(k.kind) e
                      WHERE e.range = s.range);
END
$$;

-- Ranges to be judged now. Those that were closed since are noted.
CREATE FUNCTION orchestrator._retention_due() RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM orchestrator.partition_state s
    WHERE NOT s.leaving AND NOT s.freeing
      AND NOT EXISTS (SELECT FROM orchestrator._partitions('task_finished') p WHERE p.range = s.range AND p.attached);
  INSERT INTO orchestrator.partition_state (range, closed_at, look_at)
    SELECT p.range, clock_timestamp(), orchestrator._now() FROM orchestrator._partitions('task_finished') p
    WHERE p.attached AND NOT orchestrator._is_open(p.range)
    ON CONFLICT DO NOTHING;
  RETURN ARRAY(SELECT j.range FROM orchestrator._judgeable() j WHERE j.at <= orchestrator._now() ORDER BY j.range);
END
$$;

-- Look at a range again then, a minute from now at the earliest.
CREATE FUNCTION orchestrator._look_later(range bigint, at timestamptz) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE orchestrator.partition_state s
    SET leaving = false, settings = orchestrator._retention_settings(), look_at = greatest($2, orchestrator._now() + interval '1 minute')
    WHERE s.range = $1;
END
$$;

-- Tops of trees that are to be kept with all that finished below them: those of
-- a range that are live, or have anything live below, and those of other ranges
-- that have a row.
CREATE FUNCTION orchestrator._held_tops(range bigint, steps_from bigint) RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_from bigint := $1 * 1000000;
  v_held bigint[];
BEGIN
  v_held := ARRAY(SELECT l.id FROM orchestrator.task_live l
                  WHERE l.id >= v_from AND l.id < v_from + 1000000 AND l.parent_id IS NULL AND l.remaining IS NOT NULL
                  UNION
                  SELECT l.root_id FROM orchestrator.task_live l
                  WHERE l.parent_id IS NOT NULL AND l.root_id >= v_from AND l.root_id < v_from + 1000000);
  IF $2 < v_from THEN
    EXECUTE format('SELECT array_cat($1, ARRAY(
                      SELECT r.id
                      FROM (SELECT DISTINCT t.root_id FROM orchestrator.task_finished_%s t WHERE t.root_id < $2 OR t.root_id >= $2 + 1000000) o
                      CROSS JOIN LATERAL (SELECT x.id FROM orchestrator.task x WHERE x.id = o.root_id LIMIT 1) r))', $1)
      INTO v_held USING v_held, v_from;
  END IF;
  RETURN v_held;
END
$$;

-- How the rows of a range stand: by queue and state that count for them. In a
-- sample, those of trees count as older than anything.
CREATE FUNCTION orchestrator._survey(range bigint, sample boolean, OUT queue int, OUT failed boolean, OUT held boolean, OUT rows bigint,
    OUT newest timestamptz) RETURNS SETOF record
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_held bigint[];
  g      record;
  v_from bigint;
BEGIN
  FOR g IN SELECT c.* FROM orchestrator._count_rows(format('orchestrator.task_finished_%s', $1)::regclass, $2) c LOOP
    IF g.in_tree AND NOT $2 THEN
      v_from := least(v_from, g.least_root, CASE WHEN g.last_root >= ($1 + 1) * 1000000 THEN 0 END, $1 * 1000000);
    ELSE
      queue := g.queue;
      failed := g.state = 'failed';
      held := false;
      rows := g.rows;
      newest := CASE WHEN g.in_tree THEN '-infinity' ELSE g.newest END;
      RETURN NEXT;
    END IF;
  END LOOP;
  IF v_from IS NULL THEN
    RETURN;
  END IF;
  v_held := orchestrator._held_tops($1, v_from);
  -- a step whose top is gone counts as older than anything
  RETURN QUERY EXECUTE format('
    SELECT r.queue, coalesce(r.state = ''failed'', false), coalesce(t.root_id, t.id) = ANY ($1), count(*),
           coalesce(max(coalesce(r.finished_at, r.created_at)), ''-infinity'')
    FROM orchestrator.task_finished_%1$s t LEFT JOIN orchestrator.task_finished_%1$s r ON r.id = coalesce(t.root_id, t.id)
    WHERE t.root_id IS NOT NULL OR t.remaining IS NOT NULL
    GROUP BY 1, 2, 3', $1) USING v_held;
END
$$;

-- How many rows a range, or a sample of it, has, how many of them stay now, and
-- when no more than a tenth will: from the one that stays longest.
CREATE FUNCTION orchestrator._weigh(range bigint, sample boolean, OUT rows bigint, OUT kept bigint, OUT look timestamptz)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
  WITH due AS MATERIALIZED (
    SELECT s.rows, CASE WHEN s.held OR c.keep IS NULL THEN 'infinity' ELSE s.newest + c.keep END AS at
    FROM orchestrator._survey($1, $2) s
    LEFT JOIN orchestrator.queue q ON q.id = s.queue
    JOIN orchestrator._cutoffs() c ON coalesce(c.queue, 0) = coalesce(q.id, 0) AND c.failed = s.failed
  ), longest AS (
    SELECT d.rows, d.at, sum(d.rows) OVER (ORDER BY d.at DESC) AS up_to, sum(d.rows) OVER () AS total FROM due d
  )
  SELECT coalesce(sum(l.rows), 0), coalesce(sum(l.rows) FILTER (WHERE l.at > orchestrator._now()), 0),
         max(l.at) FILTER (WHERE l.at > orchestrator._now() AND l.up_to * 10 > l.total)
    INTO rows, kept, look FROM longest l;
END
$$;

-- Whether tasks of a range are live.
CREATE FUNCTION orchestrator._has_live(range bigint) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (SELECT FROM orchestrator.task_live l WHERE l.id >= $1 * 1000000 AND l.id < ($1 + 1) * 1000000);
END
$$;

-- Before a range is locked and counted: whether that may be worth it. What
-- is held by a live run, or kept for ever, is looked at daily.
CREATE FUNCTION orchestrator._glance(range bigint) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
  w     record;
BEGIN
  -- a transaction that is older than that may have enqueued with an id of it
  IF EXISTS (SELECT FROM pg_stat_activity a, orchestrator.partition_state s
             WHERE s.range = $1 AND a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.xact_start <= s.closed_at
               AND a.backend_type NOT IN ('autovacuum worker', 'walsender'))
     OR EXISTS (SELECT FROM pg_prepared_xacts x, orchestrator.partition_state s
                WHERE s.range = $1 AND x.database = current_database() AND x.prepared <= s.closed_at) THEN
    PERFORM orchestrator._look_later($1, v_now);
    RETURN false;
  END IF;
  -- a sample may be wrong: ask for twice as many as would do
  SELECT x.* INTO w FROM orchestrator._weigh($1, true) x;
  IF w.kept * 5 > w.rows
     OR w.rows = 0 AND orchestrator._has_live($1) THEN
    PERFORM orchestrator._look_later($1, CASE WHEN w.look < 'infinity' THEN w.look ELSE v_now + interval '1 day' END);
    RETURN false;
  END IF;
  RETURN true;
END
$$;

-- Whether a range may go: keep, drop, or rewrite with the few that stay. Nobody
-- can change its finished rows while the caller holds an EXCLUSIVE lock on them.
CREATE FUNCTION orchestrator._judge(range bigint) RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
  w     record;
BEGIN
  SELECT x.* INTO w FROM orchestrator._weigh($1, false) x;
  IF w.kept = 0 AND NOT orchestrator._has_live($1) THEN
    UPDATE orchestrator.partition_state s SET leaving = true WHERE s.range = $1;
    RETURN 'drop';
  ELSIF w.kept < w.rows AND w.kept * 10 <= w.rows THEN
    RETURN 'rewrite';
  END IF;
  PERFORM orchestrator._look_later($1, CASE WHEN w.look < 'infinity' THEN w.look ELSE v_now + interval '1 day' END);
  RETURN 'keep';
END
$$;

-- The columns of a partitioned table, for a partition may have them in another
-- order.
CREATE FUNCTION orchestrator._columns(relation regclass, alias text) RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT string_agg(format('%I.%I', $2, a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
          WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped);
END
$$;

-- Give a partition and its indexes another name.
CREATE FUNCTION orchestrator._rename_partition(old text, new text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_old name;
  v_new name;
BEGIN
  FOR v_old, v_new IN SELECT c.relname, $2 || substr(c.relname, length($1) + 1) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                      WHERE i.indrelid = format('orchestrator.%I', $1)::regclass AND starts_with(c.relname, $1) LOOP
    EXECUTE format('ALTER INDEX orchestrator.%I RENAME TO %I', v_old, v_new);
  END LOOP;
  EXECUTE format('ALTER TABLE orchestrator.%I RENAME TO %I', $1, $2);
END
$$;

-- A detached partition that is to be dropped makes room for one of the same
-- ids. What somebody else detached is not touched.
CREATE FUNCTION orchestrator._set_aside(partition text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._rename_partition($1, 'expired_' || $1);
  PERFORM orchestrator._goes_along(format('orchestrator.%I', 'expired_' || $1)::regclass);
END
$$;

-- Replace the partitions of a range by new ones with the rows that stay. The
-- caller holds EXCLUSIVE locks on the old ones: nothing changes while they are
-- read. The parents are locked at the end, for the moment of the exchange.
CREATE FUNCTION orchestrator._rewrite(range bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_from bigint := $1 * 1000000;
  v_tree boolean;    -- it has rows of steps
  v_held bigint[];
  v_kind text;
  v_least timestamptz[] := (SELECT ARRAY[min(c.cutoff) FILTER (WHERE NOT c.failed), min(c.cutoff) FILTER (WHERE c.failed)] FROM orchestrator._cutoffs() c);
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT FROM orchestrator.task_finished_%s t WHERE t.parent_id IS NOT NULL)', $1) INTO v_tree;
  v_held := orchestrator._held_tops($1, CASE WHEN v_tree THEN 0 ELSE v_from END);
  PERFORM orchestrator._create_partition('rest_task_finished', 'task_finished', $1);
  PERFORM orchestrator._create_partition('rest_trace_log', 'trace_log', $1);
  -- so that nothing is scanned when they are attached
  EXECUTE format('ALTER TABLE orchestrator.rest_task_finished_%s ADD CONSTRAINT bounds CHECK (live = false AND id >= %s AND id < %s)', $1, v_from, v_from + 1000000);
  EXECUTE format('ALTER TABLE orchestrator.rest_trace_log_%s ADD CONSTRAINT bounds CHECK (task_id >= %s AND task_id < %s)', $1, v_from, v_from + 1000000);
  -- each part reads all of the partition
  PERFORM orchestrator._copy_frozen(format(concat_ws(' UNION ALL ', '
    SELECT %2$s FROM orchestrator.task_finished_%1$s t
      LEFT JOIN orchestrator.queue q ON q.id = t.queue
      JOIN orchestrator._cutoffs() c ON coalesce(c.queue, 0) = coalesce(q.id, 0) AND c.failed = (t.state = ''failed'')
    WHERE t.root_id IS NULL AND t.id <> ALL (%3$L::bigint[]) AND coalesce(t.finished_at, t.created_at) > c.cutoff
      AND coalesce(t.finished_at, t.created_at) > CASE WHEN t.state = ''failed'' THEN %4$L ELSE %5$L END::timestamptz',
    CASE WHEN v_held <> '{}' THEN '
    SELECT %2$s FROM orchestrator.task_finished_%1$s t
    WHERE coalesce(t.root_id, t.id) = ANY (%3$L::bigint[])' END,
    CASE WHEN v_tree THEN '
    SELECT %2$s FROM orchestrator.task_finished_%1$s t
      JOIN orchestrator.task_finished_%1$s r ON r.id = t.root_id
      LEFT JOIN orchestrator.queue q ON q.id = r.queue
      JOIN orchestrator._cutoffs() c ON coalesce(c.queue, 0) = coalesce(q.id, 0) AND c.failed = (r.state = ''failed'')
    WHERE t.root_id IS NOT NULL AND t.root_id <> ALL (%3$L::bigint[]) AND coalesce(r.finished_at, r.created_at) > c.cutoff' END),
    $1, orchestrator._columns('orchestrator.task_finished', 't'), v_held, v_least[2], v_least[1]), format('orchestrator.rest_task_finished_%s', $1)::regclass);
  PERFORM orchestrator._copy_frozen(format('
    SELECT %2$s FROM orchestrator.trace_log_%1$s t
    WHERE t.task_id IN (SELECT r.id FROM orchestrator.rest_task_finished_%1$s r)
       OR t.task_id IN (SELECT l.id FROM orchestrator.task_live l WHERE l.id >= %3$s AND l.id < %4$s)',
    $1, orchestrator._columns('orchestrator.trace_log', 't'), v_from, v_from + 1000000), format('orchestrator.rest_trace_log_%s', $1)::regclass);
  PERFORM orchestrator._index_partition('rest_task_finished', 'task_finished', $1);
  PERFORM orchestrator._index_partition('rest_trace_log', 'trace_log', $1);

  LOCK TABLE ONLY orchestrator.task_finished, ONLY orchestrator.trace_log IN ACCESS EXCLUSIVE MODE;
  FOREACH v_kind IN ARRAY '{task_finished,trace_log}'::text[] LOOP
    EXECUTE format('ALTER TABLE orchestrator.%1$s DETACH PARTITION orchestrator.%1$s_%2$s', v_kind, $1);
    PERFORM orchestrator._set_aside(format('%s_%s', v_kind, $1));
    PERFORM orchestrator._rename_partition(format('rest_%s_%s', v_kind, $1), format('%s_%s', v_kind, $1));
    PERFORM orchestrator._attach_partition(v_kind, $1);
    EXECUTE format('ALTER TABLE orchestrator.%s_%s DROP CONSTRAINT bounds', v_kind, $1);
  END LOOP;
  PERFORM orchestrator._look_later($1, orchestrator._now());
END
$$;

-- Ranges with tables that were set aside, or detached and are to be.
CREATE FUNCTION orchestrator._expired_ranges() RETURNS bigint[]
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._set_aside(p.name)
    FROM unnest('{task_finished,trace_log}'::text[]) k(kind), orchestrator._partitions(k.kind) p
    JOIN orchestrator.partition_state s ON s.range = p.range AND s.leaving
    WHERE NOT p.attached AND to_regclass(format('orchestrator.expired_%s', p.name)) IS NULL;
  RETURN ARRAY(SELECT DISTINCT p.range FROM unnest('{expired_task_finished,expired_trace_log}'::text[]) k(kind), orchestrator._partitions(k.kind) p
               ORDER BY 1);
END
$$;

-- The tasks that archive a range: true when there is none to wait for. What a
-- new partition of the same ids has is not theirs.
CREATE FUNCTION orchestrator._archive(range bigint) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  v_owner int;
BEGIN
  IF to_regclass(format('orchestrator.expired_task_finished_%s', $1)) IS NULL
     OR EXISTS (SELECT FROM orchestrator.partition_state s WHERE s.range = $1 AND s.freeing) THEN
    RETURN true;
  ELSIF to_regclass(format('orchestrator.expired_trace_log_%s', $1)) IS NULL
        AND EXISTS (SELECT FROM orchestrator._partitions('trace_log') p WHERE p.range = $1 AND p.attached)
        AND NOT EXISTS (SELECT FROM orchestrator._partitions('task_finished') p WHERE p.range = $1 AND p.attached) THEN
    RETURN false;   -- its traces follow
  END IF;
  IF NOT EXISTS (SELECT FROM orchestrator.archive_run a WHERE a.range = $1) AND EXISTS (SELECT FROM orchestrator.archive_hook) THEN
    FOR v_owner IN EXECUTE format('SELECT DISTINCT t.owner FROM orchestrator.expired_task_finished_%s t', $1) LOOP
      PERFORM orchestrator._start_archive($1, h.owner, h.definition) FROM orchestrator.archive_hook h WHERE h.owner = v_owner;
    END LOOP;
  END IF;
  -- one that failed can be retried until then
  RETURN NOT EXISTS (SELECT FROM orchestrator.archive_run a JOIN orchestrator.task t ON t.id = a.task_id
                     WHERE a.range = $1 AND a.until > orchestrator._now() AND t.state <> 'completed');
END
$$;

-- One owner's archive task, which reads its rows through views of its own.
CREATE FUNCTION orchestrator._start_archive(range bigint, owner int, definition text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_until timestamptz := orchestrator._now() + interval '1 day';
  v_role  name;
  v_task  bigint;
  v_views text[] := ARRAY[format('archive_task_%s_%s', $1, $2), format('archive_trace_%s_%s', $1, $2)];
BEGIN
  SELECT o.name INTO v_role FROM orchestrator.owner o JOIN pg_authid a ON a.oid = o.role AND a.rolname = o.name WHERE o.id = $2;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  PERFORM orchestrator._archive_view(v_views[1], format('expired_task_finished_%s', $1), format('task_finished_%s', $1), 'id', $2, v_role);
  PERFORM orchestrator._archive_view(v_views[2], format('expired_trace_log_%s', $1), format('task_finished_%s', $1), 'task_id', $2, v_role);
  BEGIN
    v_task := orchestrator._enqueue_as($2, $3, jsonb_build_object('tasks', 'orchestrator.' || v_views[1],
      'traces', CASE WHEN to_regclass('orchestrator.' || v_views[2]) IS NOT NULL THEN 'orchestrator.' || v_views[2] END,
      'from_id', $1 * 1000000, 'to_id', ($1 + 1) * 1000000 - 1, 'until', v_until));
  EXCEPTION WHEN undefined_object OR insufficient_privilege OR object_not_in_prerequisite_state OR ambiguous_alias
              OR data_exception OR program_limit_exceeded THEN
    RAISE WARNING 'finished tasks of role "%" are dropped without their archive task: %', v_role, SQLERRM USING ERRCODE = SQLSTATE;
  END;
  INSERT INTO orchestrator.archive_run (range, owner, task_id, until) VALUES ($1, $2, v_task, v_until);
END
$$;

CREATE FUNCTION orchestrator._archive_view(name text, source text, rest text, id text, owner int, role name) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF to_regclass('orchestrator.' || $2) IS NULL THEN
    RETURN;
  END IF;
  EXECUTE format('CREATE VIEW orchestrator.%I WITH (security_barrier = true) AS SELECT x.* FROM orchestrator.%I x WHERE x.owner = %s %s',
    $1, $2, $5, CASE WHEN orchestrator._attached($3) THEN format('AND NOT EXISTS (SELECT FROM orchestrator.%I r WHERE r.id = x.%I)', $3, $4) END);
  PERFORM orchestrator._close_relation($1);
  EXECUTE format('GRANT SELECT ON orchestrator.%I TO %I', $1, $6);
  PERFORM orchestrator._goes_along(format('orchestrator.%I', $1)::regclass);
END
$$;

-- Delete what hangs on tasks that are gone, for the next 20,000 ids from one on
-- that anything hangs on. Returns where to go on; null: that was all.
CREATE FUNCTION orchestrator._forget_range(range bigint, from_id bigint) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_to    constant bigint := ($1 + 1) * 1000000;
  v_first bigint;
  v_gone  bigint[];
BEGIN
  SELECT min(x.id) INTO v_first
    FROM (SELECT min(k.task_id) FROM orchestrator.task_key k WHERE k.task_id >= $2 AND k.task_id < v_to
          UNION ALL SELECT min(s.task_id) FROM orchestrator.signal s WHERE s.task_id >= $2 AND s.task_id < v_to
          UNION ALL SELECT min(c.task_id) FROM orchestrator.checkpoint c WHERE c.task_id >= $2 AND c.task_id < v_to
          UNION ALL SELECT min(r.task_id) FROM orchestrator.run_context r WHERE r.task_id >= $2 AND r.task_id < v_to
          UNION ALL SELECT min(m.task_id) FROM orchestrator.step_memo m WHERE m.task_id >= $2 AND m.task_id < v_to
          UNION ALL SELECT min(a.task_id) FROM orchestrator.added_step a WHERE a.task_id >= $2 AND a.task_id < v_to) x(id);
  IF v_first IS NULL THEN
    RETURN NULL;
  END IF;
  v_gone := ARRAY(
    SELECT x.id
    FROM (SELECT k.task_id FROM orchestrator.task_key k WHERE k.task_id >= v_first AND k.task_id < least(v_first + 20000, v_to)
          UNION SELECT s.task_id FROM orchestrator.signal s WHERE s.task_id >= v_first AND s.task_id < least(v_first + 20000, v_to)
          UNION SELECT c.task_id FROM orchestrator.checkpoint c WHERE c.task_id >= v_first AND c.task_id < least(v_first + 20000, v_to)
          UNION SELECT r.task_id FROM orchestrator.run_context r WHERE r.task_id >= v_first AND r.task_id < least(v_first + 20000, v_to)
          UNION SELECT m.task_id FROM orchestrator.step_memo m WHERE m.task_id >= v_first AND m.task_id < least(v_first + 20000, v_to)
          UNION SELECT a.task_id FROM orchestrator.added_step a WHERE a.task_id >= v_first AND a.task_id < least(v_first + 20000, v_to)) x(id)
    WHERE NOT EXISTS (SELECT FROM orchestrator.task t WHERE t.id = x.id AND t.id >= $1 * 1000000 AND t.id < v_to));
  PERFORM orchestrator._forget(v_gone);
  RETURN v_first + 20000;
END
$$;

-- What hangs on tasks. A key that was taken for a time is kept for that time.
CREATE FUNCTION orchestrator._forget(ids bigint[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  DELETE FROM orchestrator.task_key k WHERE k.task_id = ANY ($1) AND (k.expires_at IS NULL OR k.expires_at <= orchestrator._now());
  DELETE FROM orchestrator.signal s WHERE s.task_id = ANY ($1);
  DELETE FROM orchestrator.checkpoint c WHERE c.task_id = ANY ($1);
  DELETE FROM orchestrator.run_context r WHERE r.task_id = ANY ($1);
  DELETE FROM orchestrator.step_memo m WHERE m.task_id = ANY ($1);
  DELETE FROM orchestrator.added_step a WHERE a.task_id = ANY ($1);
END
$$;

-- Keys whose time has passed, a thousand at most: their tasks may be gone, and
-- nobody may ever use them again. Returns how many. And sessions, likewise.
CREATE FUNCTION orchestrator._forget_keys() RETURNS int
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_count int;
BEGIN
  PERFORM orchestrator._forget_sessions();
  DELETE FROM orchestrator.task_key k
    USING (SELECT x.owner, x.queue, x.key FROM orchestrator.task_key x
           WHERE x.expires_at <= orchestrator._now() ORDER BY x.expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED) x
    WHERE k.owner = x.owner AND k.queue = x.queue AND k.key = x.key;
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END
$$;

-- Nobody is to read any more what was set aside of a range: its blocks are given
-- back, after its views and the indexes, which would point to nothing.
CREATE FUNCTION orchestrator._close_expired(range bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_name       name;
  v_table      regclass;
  v_constraint name;
BEGIN
  UPDATE orchestrator.partition_state s SET freeing = true WHERE s.range = $1 AND NOT s.freeing;
  FOR v_name IN SELECT c.relname FROM pg_class c
                WHERE c.relnamespace = 'orchestrator'::regnamespace AND c.relkind = 'v' AND c.relname ~ format(E'^archive_(task|trace)_%s_\\d+$', $1) LOOP
    EXECUTE format('DROP VIEW orchestrator.%I', v_name);
  END LOOP;
  -- an administrator may have added constraints
  FOR v_table, v_name, v_constraint IN
      SELECT i.indrelid, c.relname, x.conname FROM unnest('{expired_task_finished,expired_trace_log}'::text[]) k(kind)
      JOIN pg_index i ON i.indrelid = to_regclass(format('orchestrator.%s_%s', k.kind, $1)) JOIN pg_class c ON c.oid = i.indexrelid
      LEFT JOIN pg_constraint x ON x.conindid = i.indexrelid AND x.conrelid = i.indrelid LOOP
    IF v_constraint IS NULL THEN
      EXECUTE format('DROP INDEX orchestrator.%I', v_name);
    ELSE
      EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', v_table, v_constraint);
    END IF;
  END LOOP;
END
$$;

-- The end of what was set aside of a range, and closed.
CREATE FUNCTION orchestrator._drop_expired(range bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  EXECUTE format('DROP TABLE IF EXISTS orchestrator.expired_task_finished_%1$s, orchestrator.expired_trace_log_%1$s', $1);
  DELETE FROM orchestrator.archive_run a WHERE a.range = $1;
  UPDATE orchestrator.partition_state s SET leaving = false, freeing = false WHERE s.range = $1;
END
$$;

-- When there is something to look at next; null: until a range is full, nothing.
CREATE FUNCTION orchestrator._retention_next() RETURNS timestamptz
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_now timestamptz := orchestrator._now();
BEGIN
  RETURN least(
    (SELECT min(j.at) FROM orchestrator._judgeable() j),
    (SELECT min(v_now) FROM orchestrator._partitions('task_finished') p
     WHERE NOT orchestrator._is_open(p.range) AND NOT EXISTS (SELECT FROM orchestrator.partition_state s WHERE s.range = p.range)),
    -- what was begun; an archive task tells nobody of its end
    (SELECT min(v_now + interval '1 minute') FROM unnest('{expired_task_finished,expired_trace_log}'::text[]) k(kind), orchestrator._partitions(k.kind)),
    (SELECT min(v_now + interval '1 minute') FROM orchestrator.partition_state s WHERE s.leaving));
END
$$;

CREATE FUNCTION orchestrator._archive_with(caller oid, definition text, owner text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_owner int := orchestrator._owner_for($1, $3);
BEGIN
  PERFORM orchestrator._initialize();
  DELETE FROM orchestrator.archive_hook h WHERE h.owner = v_owner;
  IF $2 IS NOT NULL THEN
    PERFORM orchestrator._find_definition((SELECT o.role FROM orchestrator.owner o WHERE o.id = v_owner), $2);
    INSERT INTO orchestrator.archive_hook (owner, definition) VALUES (v_owner, $2);
  END IF;
END
$$;

-- Finished tasks after an id that match, locked, and last: where to go on from
-- (null: no more). Only tops: what is below goes with them.
CREATE FUNCTION orchestrator._next_purge(owners int[], definition text, queue text, states orchestrator.task_state[],
    before timestamptz, after bigint, max_rows int, OUT ids bigint[], OUT last bigint)
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
  v_definitions int[] := ARRAY(SELECT d.id FROM orchestrator.definition d WHERE d.name = $2);
  v_queues      int[] := ARRAY(SELECT q.id FROM orchestrator.queue q WHERE q.name = $3);
BEGIN
  SELECT array_agg(f.id ORDER BY f.id), max(f.id) INTO ids, last
    FROM (SELECT t.id FROM orchestrator.task_finished t
          WHERE t.id > $6 AND t.parent_id IS NULL AND t.owner = ANY ($1) AND t.state = ANY ($4)
            AND ($2 IS NULL OR t.definition = ANY (v_definitions))
            AND ($3 IS NULL OR t.queue = ANY (v_queues))
            AND ($5 IS NULL OR t.finished_at < $5)
          ORDER BY t.id
          LIMIT $7) f;
  ids := ARRAY(SELECT t.id FROM orchestrator.task_finished t
               WHERE t.id = ANY (ids) AND t.state = ANY ($4)
                 AND NOT EXISTS (SELECT FROM orchestrator.task_live l WHERE l.root_id = t.id AND l.parent_id IS NOT NULL)
               ORDER BY t.id FOR UPDATE);
END
$$;

-- Delete finished tasks, and all that finished below them.
CREATE FUNCTION orchestrator._purge_rows(ids bigint[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_ids bigint[] := $1;
BEGIN
  WHILE v_ids <> '{}' LOOP
    PERFORM orchestrator._forget(v_ids);
    DELETE FROM orchestrator.trace_log g
      WHERE g.task_id = ANY (v_ids)
        AND g.task_id >= (SELECT min(i) FROM unnest(v_ids) i) AND g.task_id <= (SELECT max(i) FROM unnest(v_ids) i);
    DELETE FROM orchestrator.task_finished f WHERE f.id = ANY (v_ids);
    v_ids := ARRAY(SELECT f.id FROM orchestrator.task_finished f WHERE f.parent_id = ANY (v_ids) ORDER BY f.id);
  END LOOP;
END
$$;

CREATE FUNCTION orchestrator._purge(caller oid, definition text, queue text, states text[], older_than interval,
    max_rows int, all_tasks boolean, owner text) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_states orchestrator.task_state[] := orchestrator._many_states('purge', $4, '{completed,failed,cancelled,skipped}');
  v_owners int[] := orchestrator._controlled_owners($1);
  v_before timestamptz := orchestrator._now() - $5;
  v_count  bigint := 0;
  v_ids    bigint[];
  v_last   bigint := 0;
BEGIN
  PERFORM orchestrator._require_filter('purge', num_nonnulls($2, $3, $4, $5, $8), $7, $6);
  IF $8 IS NOT NULL THEN
    v_owners := ARRAY[orchestrator._owner_for($1, $8)];
  END IF;
  PERFORM orchestrator._require_known($1, $2, $3);
  LOOP
    SELECT n.ids, n.last INTO v_ids, v_last
      FROM orchestrator._next_purge(v_owners, $2, $3, v_states, v_before, v_last, least(1000, $6 - v_count)::int) n;
    EXIT WHEN v_last IS NULL;
    PERFORM orchestrator._purge_rows(v_ids);
    v_count := v_count + cardinality(v_ids);
  END LOOP;
  RETURN v_count;
END
$$;

CREATE VIEW orchestrator.retention_status WITH (security_invoker = true) AS
  SELECT x.range * 1000000 AS from_id, x.range * 1000000 + 999999 AS to_id,
         CASE WHEN x.expired THEN 'leaving' WHEN x.inhdetachpending THEN 'detaching' WHEN s.range IS NULL THEN 'open' ELSE 'kept' END AS state,
         sum(x.reltuples) FILTER (WHERE x.tasks AND x.reltuples >= 0)::bigint AS tasks,
         sum(pg_total_relation_size(x.oid))::bigint AS bytes,
         CASE WHEN NOT x.expired THEN min(s.look_at) END AS look_at
  FROM (SELECT c.oid, c.reltuples, substring(c.relname FROM E'\\d+$')::bigint AS range, c.relname ~ 'task_finished' AS tasks,
               c.relname ~ '^expired' AS expired, coalesce(i.inhdetachpending, false) AS inhdetachpending
        FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE c.relnamespace = (SELECT n.oid FROM pg_namespace n WHERE n.nspname = 'orchestrator') AND c.relkind = 'r'
          AND c.relname ~ E'^(expired_)?(task_finished|trace_log)_\\d{1,13}$') x
  LEFT JOIN orchestrator.partition_state s ON s.range = x.range
  GROUP BY x.range, x.expired, x.inhdetachpending, s.range;
COMMENT ON VIEW orchestrator.retention_status IS 'Ranges of finished tasks: their size, and when retention looks at them again';
COMMENT ON COLUMN orchestrator.retention_status.state IS
  'open: new tasks get ids of it; kept; detaching: waits for transactions older than it to end; leaving: waits for an archive task, or is dropped in some seconds';
