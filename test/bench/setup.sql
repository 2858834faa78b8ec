-- What every database of the benchmark has.  The extension and role app are
-- there already; app owns the schema and is nothing but an application's role.
CREATE SCHEMA bench AUTHORIZATION app;
SET ROLE app;

CREATE FUNCTION bench.noop(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS
  $$BEGIN RETURN input; END$$;
CREATE FUNCTION bench.stamp(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS
  $$BEGIN RETURN to_jsonb(clock_timestamp()); END$$;
CREATE FUNCTION bench.insert_row(input jsonb) RETURNS void LANGUAGE plpgsql AS
  $$BEGIN INSERT INTO bench.ledger (n) VALUES ((input ->> 'n')::bigint); END$$;

-- No unique key: a task that ran twice must show.
CREATE TABLE bench.ledger (n bigint NOT NULL, at timestamptz NOT NULL DEFAULT now());
CREATE TABLE bench.queue (id bigserial PRIMARY KEY, payload jsonb NOT NULL);
CREATE TABLE bench.plain (id bigserial PRIMARY KEY, kind int NOT NULL, created_at timestamptz NOT NULL,
                          name text, input jsonb NOT NULL);

-- Inputs are made beforehand, so that enqueue_many alone is under the clock.
CREATE TABLE bench.inputs (n int PRIMARY KEY, inputs jsonb[] NOT NULL);

SELECT orchestrator.define_queue('bench');
SELECT orchestrator.define('noop', 'bench.noop');
SELECT orchestrator.define('stamp', 'bench.stamp');
SELECT orchestrator.define('insert_row', 'bench.insert_row');
SELECT orchestrator.define('insert_sql', 'INSERT INTO bench.ledger (n) VALUES (($1 ->> ''n'')::bigint)', kind => 'sql');

-- Limits of each kind, none of which binds.
SELECT orchestrator.define_queue('limited', max_running => 1000, rate_limit => 1000000000, rate_period => '1 s');
SELECT orchestrator.define('limited', 'bench.noop', max_running => 1000, rate_limit => 1000000000, rate_period => '1 s',
                           concurrency_key => '$.n', key_max_running => 1000, key_rate_limit => 1000000, key_rate_period => '1 s');

-- Workflows: a -> b -> c; a map; a chain of 1,000.
CREATE FUNCTION bench.identity(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS
  $$BEGIN RETURN input -> 'item'; END$$;
SELECT orchestrator.define('identity', 'bench.identity');
SELECT orchestrator.define_workflow('abc', ARRAY[
  orchestrator.step('a', definition => 'noop'),
  orchestrator.step('b', definition => 'noop', needs => '{a}'),
  orchestrator.step('c', definition => 'noop', needs => '{b}')]::orchestrator.step_spec[]);
SELECT orchestrator.define_workflow('map', ARRAY[
  orchestrator.step('m', definition => 'identity', each => '$.input.items[*]')]::orchestrator.step_spec[]);
SELECT orchestrator.define_workflow('chain', ARRAY(
  SELECT orchestrator.step('s' || i, definition => 'identity', needs => CASE WHEN i > 1 THEN ARRAY['s' || i - 1] ELSE '{}' END)
  FROM generate_series(1, 1000) i ORDER BY i)::orchestrator.step_spec[]);
RESET ROLE;

-- About where the drain is: ids are finished nearly in order.
CREATE FUNCTION bench.last_finished() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
  'SELECT coalesce(max(id), 0) FROM orchestrator.task_finished';

-- Keep work waiting until the time is over, a commit to 2,000 tasks.  Neither
-- the loop nor its naps leave a snapshot open for longer than a few ms.
CREATE PROCEDURE bench.keep_busy(duration interval, depth int) LANGUAGE plpgsql AS $$
DECLARE
  v_inputs jsonb[] := ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, 2000) i);
  v_end    timestamptz := clock_timestamp() + duration;
  v_ids    bigint[];
  v_last   bigint := 0;
  v_ahead  bigint;
  v_least  bigint;
BEGIN
  WHILE clock_timestamp() < v_end LOOP
    v_ahead := v_last - bench.last_finished();
    IF v_last > 2 * depth THEN
      v_least := least(v_least, v_ahead);
    END IF;
    IF v_ahead < depth THEN
      v_ids := orchestrator.enqueue_many('noop', v_inputs, queue => 'bench');
      v_last := v_ids[2000];
    ELSE
      PERFORM pg_sleep(0.005);
    END IF;
    COMMIT;
  END LOOP;
  RAISE NOTICE 'at least % tasks were waiting', v_least;
END
$$;
