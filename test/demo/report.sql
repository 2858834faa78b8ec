-- What came of it.  Run by demo_app.
\pset footer off

\echo
\echo '== Full-text search over the result: "isolation levels", by relevance and PageRank'
\echo
SELECT d.page, left(s.title, 40) AS section,
  round((ts_rank(d.words, query) * (1 + ln(1 + 1000 * d.rank)))::numeric, 3) AS score,
  ts_headline('english', left(s.body, 20000), query,
              'MaxFragments=1, MaxWords=8, MinWords=4, StartSel=*, StopSel=*') AS fragment
FROM websearch_to_tsquery('english', 'isolation levels') AS query,
  demo.document d,
  LATERAL (SELECT title, body FROM demo.section
           WHERE page = d.page AND words @@ query ORDER BY ts_rank(words, query) DESC LIMIT 1) AS s
WHERE d.words @@ query
ORDER BY score DESC, page
LIMIT 6;

\echo '== The states of the documents, of their steps, and of the sections that were indexed'
\echo
SELECT coalesce(definition, 'all') AS definition, state, count(*) AS runs
FROM orchestrator.task_status
WHERE definition IN ('document', 'rank_pages')
GROUP BY definition, state
ORDER BY definition, state;
SELECT number, step, kind, state, count(*) AS steps, sum(items_total) AS items, max(attempt) AS "most attempts"
FROM orchestrator.step_status
GROUP BY number, step, kind, state
ORDER BY number, state;

\echo '== The page that failed twice, and the one that never succeeds: their traces'
\echo
SELECT r.name, r.state, s.step, s.attempt, s.error ->> 'sqlstate' AS sqlstate, s.error ->> 'message' AS message
FROM orchestrator.task_status r
  JOIN orchestrator.step_status s ON s.run_id = r.task_id AND s.step = 'extract'
WHERE r.name IN ('a page that is missing', 'a page that fails twice')
ORDER BY r.task_id DESC;
SELECT r.name, to_char(tr.at, 'HH24:MI:SS.MS') AS at, tr.event, tr.attempt,
  tr.detail ->> 'message' AS message
FROM orchestrator.task_status r
  JOIN orchestrator.step_status s ON s.run_id = r.task_id AND s.step = 'extract'
  JOIN orchestrator.trace tr ON tr.task_id = s.task_id
WHERE r.name IN ('a page that is missing', 'a page that fails twice')
ORDER BY r.task_id DESC, tr.at, tr.attempt;

\echo '== Throughput, from the first enqueue to the last document that went through at once'
\echo
SELECT r.documents, t.tasks, round(r.seconds, 2) AS seconds,
  round(r.documents / r.seconds) AS "documents per second", round(t.tasks / r.seconds) AS "tasks per second"
FROM (SELECT count(*) AS documents, extract(epoch FROM max(finished_at) - min(created_at)) AS seconds
      FROM orchestrator.task_status
      WHERE definition = 'document' AND state = 'completed' AND name IS NULL) AS r,
  (SELECT count(*) AS tasks FROM orchestrator.task WHERE root_id IS NOT NULL AND started_at IS NOT NULL) AS t;
