-- Graphs: a picture of a run with the states of its steps, or of a workflow.
--
-- Steps become nodes, arrays of objects with id, name, state, info, needs
-- (ids), inside (the id of the step whose own steps these are) and indent; the
-- text is drawn from these alone. Steps stand below the last of their needs.

CREATE FUNCTION orchestrator.graph(task bigint, format text DEFAULT 'text') RETURNS text
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.graph(bigint, text) IS
  'Draws a run with the present states of its steps, as text, dot (Graphviz) or mermaid. Sub-workflows are drawn too, items of maps counted';

CREATE FUNCTION orchestrator.definition_graph(name text, format text DEFAULT 'text') RETURNS text
  LANGUAGE C AS 'MODULE_PATHNAME', 'orchestrator_as_owner';
COMMENT ON FUNCTION orchestrator.definition_graph(text, text) IS
  'Draws the current version of a workflow, as text, dot (Graphviz) or mermaid';

CREATE FUNCTION orchestrator._graph(caller oid, task bigint, format text) RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres SET enable_seqscan = off SET jit = off AS $$
DECLARE
  s record;
BEGIN
  PERFORM orchestrator._check_format($3);
  SELECT x.name, x.definition, x.state, x.progress, x.compensation, o.id AS owner INTO s
    FROM orchestrator.task_status x
    JOIN orchestrator.task t ON t.id = x.task_id
    JOIN orchestrator.owner o ON o.id = t.owner
    WHERE x.task_id = $2;
  IF s.owner IS NULL OR s.owner <> ALL (orchestrator._visible_owners_of($1)) THEN
    RAISE EXCEPTION 'task % does not exist', coalesce($2::text, 'null') USING ERRCODE = 'undefined_object';
  END IF;
  RETURN orchestrator._draw(
    concat_ws(' ', 'task ' || $2, '"' || coalesce(s.name, CASE WHEN s.definition NOT LIKE 'orchestrator.%' THEN s.definition END) || '"')
      || ': ' || s.state || CASE WHEN s.state IN ('completed', 'scheduled') THEN '' ELSE format(', %s %%', round(100 * s.progress::numeric)) END
      || CASE s.compensation WHEN 'none' THEN '' ELSE ', compensation ' || s.compensation END,
    orchestrator._run_nodes($2, 's', ''), $3);
END
$$;

CREATE FUNCTION orchestrator._definition_graph(caller oid, name text, format text) RETURNS text
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres AS $$
DECLARE
  d orchestrator.definition;
BEGIN
  PERFORM orchestrator._check_format($3);
  d := orchestrator._find_definition($1, $2);
  IF d.kind <> 'workflow' THEN
    RAISE EXCEPTION 'definition "%" is not a workflow', $2
      USING ERRCODE = 'wrong_object_type', HINT = 'Workflows are made by orchestrator.define_workflow().';
  END IF;
  RETURN orchestrator._draw(format('workflow "%s", version %s', d.name, d.version), orchestrator._definition_nodes(d.id, 's', ''), $3);
END
$$;

CREATE FUNCTION orchestrator._check_format(format text) RETURNS void
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM orchestrator._require(coalesce($1 IN ('text', 'dot', 'mermaid'), false), format('unknown format "%s"', coalesce($1, 'null')),
                                'Formats are text, dot and mermaid.');
END
$$;

-- Steps in the order of a tree, and how deep they stand in it: each below that
-- of its needs that is deepest. They are objects with number and needs (numbers).
CREATE FUNCTION orchestrator._order_steps(steps jsonb, OUT step jsonb, OUT depth int) RETURNS SETOF record
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_n      int := coalesce(jsonb_array_length($1), 0);
  v_depth  int[] := array_fill(0, ARRAY[v_n]);
  v_parent int[] := array_fill(0, ARRAY[v_n]);
  v_again  boolean := true;
  v_step   int;
  v_need   int;
BEGIN
  WHILE v_again LOOP   -- once, where needs come before those that need them
    v_again := false;
    FOR v_step, v_need IN SELECT (e.s ->> 'number')::int, n::int FROM jsonb_array_elements($1) e(s), jsonb_array_elements_text(e.s -> 'needs') n ORDER BY 1 LOOP
      IF v_depth[v_need] >= v_depth[v_step] THEN
        v_depth[v_step] := v_depth[v_need] + 1;
        v_parent[v_step] := v_need;
        v_again := true;
      END IF;
    END LOOP;
  END LOOP;
  RETURN QUERY
    WITH RECURSIVE tree AS (
      SELECT i AS number, ARRAY[i] AS path FROM generate_series(1, v_n) i WHERE v_parent[i] = 0
      UNION ALL
      SELECT i, t.path || i FROM tree t JOIN LATERAL (SELECT u.i::int FROM unnest(v_parent) WITH ORDINALITY u(p, i) WHERE u.p = t.number) c ON true
    )
    SELECT e.s, v_depth[t.number] FROM tree t JOIN jsonb_array_elements($1) e(s) ON (e.s ->> 'number')::int = t.number ORDER BY t.path;
END
$$;

-- The nodes of a run, and of the runs that its steps are.
CREATE FUNCTION orchestrator._run_nodes(run bigint, prefix text, indent text) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres SET enable_seqscan = off
  SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  v_steps jsonb;
  v_nodes jsonb := '[]';
  s       record;
BEGIN
  WITH x AS MATERIALIZED (SELECT y.* FROM orchestrator.step_status y WHERE y.run_id = $1)
  SELECT jsonb_agg(jsonb_build_object('number', x.number, 'name', x.step, 'state', x.state, 'task', x.task_id, 'kind', x.kind,
           'needs', (SELECT coalesce(jsonb_agg(m.number -> n), '[]') FROM unnest(x.needs) n),
           'info', array_to_string(ARRAY[
             CASE WHEN x.items_total IS NOT NULL AND x.state <> 'skipped' THEN format('%s of %s items', x.items_done, x.items_total) END,
             CASE WHEN x.state = 'running' AND x.progress > 0 AND x.items_total IS NULL THEN format('%s %%', round(100 * x.progress::numeric)) END,
             x.message,
             CASE WHEN x.attempt > 1 THEN 'attempt ' || x.attempt END,
             CASE WHEN x.iteration > 1 AND x.items_total IS NULL THEN 'round ' || x.iteration END,
             CASE WHEN x.wait_for IS NOT NULL AND x.task_id IS NOT NULL AND x.finished_at IS NULL THEN format('for signal "%s"', x.wait_for) END,
             CASE WHEN x.finished_at IS NULL AND x.wakes_at IS NOT NULL THEN 'until ' || date_trunc('second', x.wakes_at) END,
             CASE WHEN x.finished_at IS NOT NULL THEN orchestrator._short_time(x.duration) END,
             CASE WHEN x.state = 'failed' THEN left(x.error ->> 'message', 80) END], ', ')) ORDER BY x.number)
    INTO v_steps FROM x, (SELECT jsonb_object_agg(x.step, x.number) AS number FROM x) m;
  FOR s IN SELECT o.step, o.depth FROM orchestrator._order_steps(v_steps) o LOOP
    v_nodes := v_nodes || orchestrator._node(s.step, s.depth, $2, $3);
    IF s.step ->> 'kind' IN ('workflow', 'llm', 'tool') AND s.step ? 'task' THEN
      v_nodes := v_nodes || coalesce(orchestrator._run_nodes((s.step ->> 'task')::bigint, v_nodes -> -1 ->> 'id', (v_nodes -> -1 ->> 'indent') || '  | '), '[]');
    END IF;
  END LOOP;
  RETURN v_nodes;
END
$$;

-- The same of a workflow that nobody runs.
CREATE FUNCTION orchestrator._definition_nodes(definition int, prefix text, indent text) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres AS $$
DECLARE
  v_steps jsonb;
  v_nodes jsonb := '[]';
  s       record;
BEGIN
  SELECT jsonb_agg(e.spec || jsonb_build_object('number', e.place, 'needs', coalesce(e.spec -> 'needs', '[]'),
           'info', array_to_string(ARRAY[
             CASE WHEN x.name NOT LIKE 'orchestrator.%' THEN x.name END,
             'each ' || (e.spec ->> 'each'), 'when ' || (e.spec ->> 'when'), 'repeat while ' || (e.spec ->> 'repeat_while'),
             'waits for signal "' || (e.spec ->> 'wait_for') || '"', 'sleeps ' || (e.spec ->> 'sleep'),
             CASE WHEN (e.spec ->> 'optional')::boolean THEN 'optional' END,
             'on failure ' || replace(e.spec ->> 'on_failure', '_', ' '), CASE WHEN e.spec ? 'undo' THEN 'has undo' END], ', ')) ORDER BY e.place)
    INTO v_steps
    FROM orchestrator.definition d
    CROSS JOIN LATERAL jsonb_array_elements(d.steps) WITH ORDINALITY e(spec, place)
    LEFT JOIN orchestrator.definition x ON x.id = (e.spec ->> 'definition')::int
    WHERE d.id = $1;
  FOR s IN SELECT o.step, o.depth FROM orchestrator._order_steps(v_steps) o LOOP
    v_nodes := v_nodes || orchestrator._node(s.step, s.depth, $2, $3);
    IF s.step ->> 'kind' = 'workflow' THEN
      v_nodes := v_nodes || orchestrator._definition_nodes((s.step ->> 'definition')::int, v_nodes -> -1 ->> 'id', (v_nodes -> -1 ->> 'indent') || '  | ');
    END IF;
  END LOOP;
  RETURN v_nodes;
END
$$;

-- A long chain does not run out of the page.
CREATE FUNCTION orchestrator._node(step jsonb, depth int, prefix text, indent text) RETURNS jsonb
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN jsonb_build_object('id', $3 || '_' || ($1 ->> 'number'), 'inside', nullif($3, 's'), 'name', $1 -> 'name', 'state', $1 -> 'state',
    'info', $1 -> 'info', 'indent', $4 || repeat('  ', least($2, 10)),
    'needs', (SELECT coalesce(jsonb_agg($3 || '_' || n ORDER BY n::int), '[]') FROM jsonb_array_elements_text($1 -> 'needs') n));
END
$$;

CREATE FUNCTION orchestrator._short_time(duration interval) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres AS $$
DECLARE
  v_seconds numeric := extract(epoch FROM $1);
BEGIN
  RETURN CASE WHEN v_seconds < 1 THEN round(1000 * v_seconds, 1) || ' ms'
              WHEN v_seconds < 60 THEN round(v_seconds, 1) || ' s'
              ELSE date_trunc('second', $1)::text END;
END
$$;

CREATE FUNCTION orchestrator._draw(title text, nodes jsonb, format text) RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- nothing in a name may end a line
  RETURN CASE $3 WHEN 'dot' THEN orchestrator._draw_dot(regexp_replace($1, '[[:cntrl:]]', '?', 'g'), $2)
                 WHEN 'mermaid' THEN orchestrator._draw_mermaid(regexp_replace($1, '[[:cntrl:]]', '?', 'g'), $2)
                 ELSE orchestrator._draw_text(regexp_replace($1, '[[:cntrl:]]', '?', 'g'), $2) END;
END
$$;

-- [x] name <- needs   state, and what more there is to say
CREATE FUNCTION orchestrator._draw_text(title text, nodes jsonb) RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_marks constant jsonb := '{"completed": "[x] ", "running": "[>] ", "failed": "[!] ", "cancelled": "[/] ", "skipped": "[-] ", "paused": "[=] "}';
BEGIN
  RETURN $1 || (
    SELECT coalesce(string_agg(E'\n' || rtrim(rpad(l.line, greatest(length(l.line), l.width)) || '  ' || l.what), '' ORDER BY l.place), '')
    FROM (SELECT x.line, x.what, x.place, least(max(length(x.line)) OVER (), 60) AS width
          FROM (SELECT e.place, concat_ws(', ', e.n ->> 'state', nullif(regexp_replace(e.n ->> 'info', '[[:cntrl:]]', ' ', 'g'), '')) AS what,
                       (e.n ->> 'indent') || CASE WHEN e.n ->> 'state' IS NULL THEN '' ELSE coalesce(v_marks ->> (e.n ->> 'state'), '[ ] ') END
                       || regexp_replace((e.n ->> 'name') || coalesce(' <- ' || (SELECT string_agg(m.n ->> 'name', ', ' ORDER BY m.place)
                                                                               FROM jsonb_array_elements($2) WITH ORDINALITY m(n, place)
                                                                               WHERE e.n -> 'needs' ? (m.n ->> 'id')), ''), '[[:cntrl:]]', '?', 'g') AS line
                FROM jsonb_array_elements($2) WITH ORDINALITY e(n, place)) x) l);
END
$$;

CREATE FUNCTION orchestrator._draw_dot(title text, nodes jsonb) RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $_$
DECLARE
  v_colours constant jsonb := '{"completed": "#c8e6c9", "running": "#bbdefb", "failed": "#ffcdd2", "cancelled": "#d7ccc8", "skipped": "#eeeeee", "paused": "#fff9c4"}';
  v_text    text := E'digraph {\n  label="' || orchestrator._dot_text($1) || E'";\n  node [shape=box, style="rounded,filled", fillcolor=white];\n';
BEGIN
  SELECT v_text || coalesce(string_agg(format(E'  %s [label="%s"%s];\n', e.n ->> 'id',
           orchestrator._dot_text(e.n ->> 'name') || coalesce(E'\\n' || nullif(orchestrator._dot_text(concat_ws(', ', e.n ->> 'state', nullif(e.n ->> 'info', ''))), ''), ''),
           coalesce(', fillcolor="' || (v_colours ->> (e.n ->> 'state')) || '"', '')), '' ORDER BY e.place), '')
    INTO v_text FROM jsonb_array_elements($2) WITH ORDINALITY e(n, place);
  SELECT v_text || coalesce(string_agg(format(E'  subgraph cluster_%s { label="%s"; style=dashed; %s }\n', g.inside, orchestrator._dot_text(g.name), g.ids), '' ORDER BY g.inside), '')
    INTO v_text
    FROM (SELECT e.n ->> 'inside' AS inside, string_agg((e.n ->> 'id') || ';', ' ' ORDER BY e.place) AS ids, min(m.n ->> 'name') AS name
          FROM jsonb_array_elements($2) WITH ORDINALITY e(n, place) JOIN jsonb_array_elements($2) m(n) ON m.n ->> 'id' = e.n ->> 'inside'
          GROUP BY e.n ->> 'inside') g;
  RETURN v_text || (SELECT coalesce(string_agg(format(E'  %s -> %s%s;\n', a.source, a.target, CASE WHEN a.nested THEN ' [style=dashed]' ELSE '' END), '' ORDER BY a.place, a.source), '')
                    FROM orchestrator._arrows($2) a) || '}';
END
$_$;

CREATE FUNCTION orchestrator._draw_mermaid(title text, nodes jsonb) RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_text text;
BEGIN
  v_text := E'flowchart TD\n  title["' || orchestrator._mermaid_text($1) || E'"]\n'
    || E'  classDef completed fill:#c8e6c9\n  classDef running fill:#bbdefb\n  classDef failed fill:#ffcdd2\n  classDef cancelled fill:#d7ccc8\n'
    || E'  classDef skipped fill:#eeeeee\n  classDef paused fill:#fff9c4\n  style title fill:none,stroke:none\n';
  SELECT v_text || coalesce(string_agg(format(E'  %s["%s"]%s\n', e.n ->> 'id',
           orchestrator._mermaid_text(e.n ->> 'name')
             || coalesce('<br/>' || nullif(orchestrator._mermaid_text(concat_ws(', ', e.n ->> 'state', nullif(e.n ->> 'info', ''))), ''), ''),
           coalesce(':::' || (e.n ->> 'state'), '')), '' ORDER BY e.place), '')
    INTO v_text FROM jsonb_array_elements($2) WITH ORDINALITY e(n, place);
  RETURN rtrim(v_text || (SELECT coalesce(string_agg(format(E'  %s %s %s\n', a.source, CASE WHEN a.nested THEN '-.->' ELSE '-->' END, a.target), '' ORDER BY a.place, a.source), '')
                          FROM orchestrator._arrows($2) a), E'\n');
END
$$;

-- From needs to those that need them; from a step that is a workflow to those
-- of its steps that need nothing.
CREATE FUNCTION orchestrator._arrows(nodes jsonb, OUT place bigint, OUT source text, OUT target text, OUT nested boolean) RETURNS SETOF record
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY
    SELECT e.place, s.id, e.n ->> 'id', false FROM jsonb_array_elements($1) WITH ORDINALITY e(n, place), jsonb_array_elements_text(e.n -> 'needs') s(id)
    UNION ALL
    SELECT e.place, e.n ->> 'inside', e.n ->> 'id', true FROM jsonb_array_elements($1) WITH ORDINALITY e(n, place)
    WHERE e.n ->> 'inside' IS NOT NULL AND e.n -> 'needs' = '[]';
END
$$;

CREATE FUNCTION orchestrator._dot_text(value text) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $_$
BEGIN
  RETURN replace(replace(regexp_replace($1, '[[:cntrl:]]', ' ', 'g'), E'\\', E'\\\\'), '"', E'\\"');
END
$_$;

CREATE FUNCTION orchestrator._mermaid_text(value text) RETURNS text
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN replace(replace(replace(replace(replace(replace(regexp_replace($1, '[[:cntrl:]]', ' ', 'g'),
    '#', '#35;'), '&', '#amp;'), '"', '#quot;'), '<', '#lt;'), '>', '#gt;'), '`', '#96;');
END
$$;
