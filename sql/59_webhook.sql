-- Webhooks: events that are posted to endpoints of provider webhook, signed.
--
-- A webhook is a task of kind webhook, made in the transaction in which its
-- event happens, so there is one exactly if that commits. Its request is JSON;
-- the courier's program signs it at every attempt, in the form of Standard
-- Webhooks (src/courier/sign.c), with an id that stays.
--
-- Those about one task, or queue, to one endpoint are posted in the order of
-- their events: each has a row in the table webhook while it lives, and one that
-- is not the first of its line waits until the one before it is final.

-- Whether a role may have webhooks posted to an endpoint.
CREATE FUNCTION orchestrator._check_webhook_endpoint(role oid, endpoint text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._check_endpoint($1, $2);
  PERFORM orchestrator._require(orchestrator._provider($2) = 'webhook', format('endpoint "%s" is of provider %s, which takes no webhooks', $2, orchestrator._provider($2)),
                                'Its provider must be webhook.');
END
$$;

-- The request of kind webhook. Strings that begin with $ are paths over the input.
CREATE FUNCTION orchestrator._check_webhook_request(request jsonb) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require_keys('request', $1, '{path,query,headers,type,body}', 'The keys of a webhook are path, query, headers, type and body.');
  PERFORM orchestrator._require(jsonb_typeof($1 -> 'type') = 'string', 'request, key "type": is not a string');
  PERFORM orchestrator._check_request($1 - 'type'::text);
  PERFORM orchestrator._check_templates($1 -> 'type');
END
$$;

-- What is posted: the same at every attempt.
CREATE FUNCTION orchestrator._webhook_request(d orchestrator.definition, t orchestrator.task) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_request jsonb := orchestrator._render(d.request, t.input);
BEGIN
  IF NOT d.request ? 'body' THEN
    v_request := v_request || jsonb_build_object('body', jsonb_build_object('type', coalesce(v_request -> 'type', t.metadata -> 'event', to_jsonb(d.name)),
      'timestamp', to_char(t.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'data', t.input));
  END IF;
  RETURN v_request - 'type'::text || '{"method": "POST"}';
END
$$;

-- Enqueue, as an owner, what is to follow an event: a definition, or a webhook
-- to an endpoint. about: the task that it happened to; below 0: the queue.
CREATE FUNCTION orchestrator._follow(owner int, definition text, endpoint text, event text, about bigint, input jsonb) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d       orchestrator.definition;
  t       orchestrator.task;
  v_id    int;
  v_waits interval;
BEGIN
  IF $3 IS NULL THEN
    SELECT x.definition_id, x.queue, x.priority, x.queue_timeout INTO v_id, t.queue, t.priority, v_waits
      FROM orchestrator._resolve_definition((SELECT o.role FROM orchestrator.owner o WHERE o.id = $1), $2) x;
  ELSE
    v_id := orchestrator._internal_definition($1, 'webhook', $3);
  END IF;
  SELECT x.kind, x.endpoint INTO d.kind, d.endpoint FROM orchestrator.definition x WHERE x.id = v_id;
  IF d.kind = 'webhook' THEN
    t.id := orchestrator._next_id();
    t.name := $4 || ' ' || abs($5);
    t.metadata := jsonb_build_object('event', $4, CASE WHEN $5 < 0 THEN 'queue' ELSE 'task' END, abs($5));
    t.callbacks := '[{"line": true}]';
    t.state := CASE WHEN orchestrator._line_up(t.id, $5, d.endpoint) THEN 'waiting' END;
  END IF;
  RETURN orchestrator._place_root(t, $1, v_id, $6, v_waits);
END
$$;

-- A webhook joins its line. True: it must wait. Those before it cannot end
-- while we make up our mind; one that is about to is final, and nothing to wait
-- for.
CREATE FUNCTION orchestrator._line_up(task bigint, about bigint, endpoint text) RETURNS boolean
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_waits boolean;
BEGIN
  PERFORM FROM orchestrator.webhook w WHERE w.about = $2 AND w.endpoint = $3 FOR KEY SHARE SKIP LOCKED;
  v_waits := FOUND;
  INSERT INTO orchestrator.webhook (task_id, about, endpoint) VALUES ($1, $2, $3);
  RETURN v_waits;
END
$$;

-- A webhook is final: the next one goes, unless others stand before it. Rows are
-- locked in the order of their line only.
CREATE FUNCTION orchestrator._leave_line(task bigint) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
  w      orchestrator.webhook;
  t      orchestrator.task;
  v_next bigint;
BEGIN
  DELETE FROM orchestrator.webhook x WHERE x.task_id = $1 RETURNING x.* INTO w;
  LOOP
    SELECT min(x.task_id) INTO v_next FROM orchestrator.webhook x WHERE x.about = w.about AND x.endpoint = w.endpoint;
    IF v_next IS NULL OR v_next < $1 THEN
      RETURN;
    END IF;
    SELECT l.* INTO t FROM orchestrator.task_live l WHERE l.id = v_next FOR UPDATE;
    EXIT WHEN FOUND;
    DELETE FROM orchestrator.webhook x WHERE x.task_id = v_next;   -- it was cancelled meanwhile
  END LOOP;
  IF t.state = 'paused' AND t.held_state = 'waiting' THEN
    UPDATE orchestrator.task_live l SET held_state = 'pending' WHERE l.id = t.id;
  ELSIF t.state = 'waiting' THEN
    t.state := 'pending';
    t.expire_at := least(t.deadline, orchestrator._now() + (SELECT d.queue_timeout FROM orchestrator.definition d WHERE d.id = t.definition));
    PERFORM orchestrator._requeue(t);
  END IF;
END
$$;

-- An alert of a queue, posted as a task of whoever asked for it.
CREATE FUNCTION orchestrator._post_alert(q orchestrator.queue, kind text, event text, value float8, threshold float8) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._follow(q.alert_owner, NULL, q.alert_endpoint, 'queue.alert.' || $3, -q.id,
    jsonb_build_object('queue', q.name, 'kind', $2, 'value', round($4::numeric, 3), 'limit', round($5::numeric, 3)));
END
$$;

-- Those are no work of the queue: they neither raise its alert nor keep it up.
CREATE FUNCTION orchestrator._alerts_waiting(queue int) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  RETURN (SELECT count(*) FROM orchestrator.webhook w JOIN orchestrator.task_live l ON l.id = w.task_id
          WHERE w.about < 0 AND l.queue = $1 AND l.state IN ('pending', 'scheduled'));
END
$$;
