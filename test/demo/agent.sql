-- An agent whose tool is a search of what was indexed.  Run by demo_app.
\pset footer off

CREATE FUNCTION demo.search(input jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
  SELECT coalesce(jsonb_agg(jsonb_build_object('page', f.page, 'title', f.title) ORDER BY f.score DESC), '[]')
  FROM (SELECT d.page, d.title, ts_rank(d.words, query) * (1 + ln(1 + 1000 * d.rank)) AS score
        FROM websearch_to_tsquery('english', $1 ->> 'query') AS query, demo.document d
        WHERE d.words @@ query ORDER BY score DESC LIMIT 3) f
$$;
SELECT orchestrator.define('search', 'demo.search', description => 'Finds the pages of the manual about something.') AS version \gset
SELECT orchestrator.define_tool('search',
  '{"type": "object", "required": ["query"], "properties": {"query": {"type": "string"}}, "additionalProperties": false}') AS tool \gset

SELECT orchestrator.orchestrate('How do I keep two sessions from changing the same thing?', '{search}', 'model', 'demo', max_steps => 20, max_tokens => 20000) AS run \gset
SELECT (orchestrator.wait(:run, '1 minute')).output ->> 'answer' AS answer;
SELECT detail ->> 'decision' AS decision, detail ->> 'reason' AS reason, detail -> 'steps' AS steps
FROM orchestrator.trace WHERE task_id = :run AND event = 'decision' ORDER BY at;
SELECT s.step, s.kind, s.state, t.tokens_in, t.tokens_out, left(coalesce(s.output -> 'content', s.output)::text, 70) AS "gave"
FROM orchestrator.step_status s JOIN orchestrator.task_status t ON t.task_id = s.task_id
WHERE s.run_id = :run AND s.kind <> 'wait' ORDER BY s.number;
SELECT tokens_in, tokens_out, round(cost, 6) AS cost, duration FROM orchestrator.task_status WHERE task_id = :run;
