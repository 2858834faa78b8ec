-- What came of it.  Run by demo_app.
\pset footer off

\echo
\echo '== Full-text search over the result: "isolation levels", by relevance and PageRank'
\echo
SELECT page, left(title, 40) AS title,
  round((ts_rank(words, query) * (1 + ln(1 + 1000 * rank)))::numeric, 3) AS score,
  ts_headline('english', left(body, 20000), query,
              'MaxFragments=1, MaxWords=8, MinWords=4, StartSel=*, StopSel=*') AS fragment
FROM demo.document, websearch_to_tsquery('english', 'isolation levels') AS query
WHERE words @@ query
ORDER BY score DESC, page
LIMIT 6;

\echo '== The states of the tasks'
\echo
SELECT definition, state, count(*) AS tasks, max(attempt) AS "most attempts"
FROM orchestrator.task_status
GROUP BY definition, state
ORDER BY definition, state;

\echo '== The page that failed twice, and the one that never succeeds: their traces'
\echo
SELECT t.name, t.state, t.attempt, t.error ->> 'sqlstate' AS sqlstate, t.error ->> 'message' AS message
FROM orchestrator.task_status t
WHERE t.name LIKE 'a page that%'
ORDER BY t.task_id DESC;
SELECT t.name, to_char(tr.at, 'HH24:MI:SS.MS') AS at, tr.event, tr.attempt,
  tr.detail ->> 'message' AS message
FROM orchestrator.trace tr
  JOIN orchestrator.task_status t USING (task_id)
WHERE t.name LIKE 'a page that%'
ORDER BY t.task_id DESC, tr.at, tr.attempt;

\echo '== Throughput of the pages that went through at the first attempt'
\echo
SELECT count(*) AS tasks,
  round(extract(epoch FROM max(finished_at) - min(created_at))::numeric, 2) AS seconds,
  round(count(*) / extract(epoch FROM max(finished_at) - min(created_at))) AS "tasks per second"
FROM orchestrator.task_status
WHERE definition = 'index_page' AND state = 'completed' AND attempt = 1;
