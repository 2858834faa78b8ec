-- What the application writes: its tables, two handlers, and one call to
-- enqueue a task for every page.  Run by demo_app, an ordinary role.

CREATE TABLE demo.document (
  page  text PRIMARY KEY,
  title text NOT NULL,
  body  text NOT NULL,
  words tsvector NOT NULL,
  rank  float8 NOT NULL DEFAULT 0
);
CREATE INDEX ON demo.document USING gin (words);

CREATE TABLE demo.link (
  source text NOT NULL,
  target text NOT NULL,
  PRIMARY KEY (source, target)
);

-- {"page": name}: strip the markup, build the tsvector, collect the links.
-- With "readable_from": n the attempts before the nth fail.
CREATE FUNCTION demo.index_page(input jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  v_page  text := input ->> 'page';
  v_html  text;
  v_title text;
  v_body  text;
  v_links bigint;
BEGIN
  IF (SELECT attempt FROM orchestrator.current_task()) < (input ->> 'readable_from')::int THEN
    RAISE EXCEPTION 'page "%" cannot be read yet', v_page
      USING ERRCODE = 'lock_not_available';
  END IF;

  SELECT html INTO v_html FROM demo.page WHERE name = v_page;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no page "%"', v_page
      USING ERRCODE = 'no_data_found', HINT = 'Load the page into demo.page, then retry the task.';
  END IF;

  v_title := substring(v_html FROM '<title>(.*?)</title>');
  v_body := regexp_replace(v_html, '<head>.*?</head>|<(script|style).*?</\1>|<[^>]*>', ' ', 'g');
  v_body := replace(replace(replace(replace(v_body, '&nbsp;', ' '), '&lt;', '<'), '&gt;', '>'), '&amp;', '&');
  v_body := regexp_replace(v_body, '\s+', ' ', 'g');

  INSERT INTO demo.document (page, title, body, words)
  VALUES (v_page, v_title, v_body,
          setweight(to_tsvector('english', v_title), 'A') || to_tsvector('english', v_body))
  ON CONFLICT (page) DO UPDATE
    SET title = excluded.title, body = excluded.body, words = excluded.words;

  DELETE FROM demo.link WHERE source = v_page;
  INSERT INTO demo.link (source, target)
  SELECT DISTINCT v_page, link[1]
  FROM regexp_matches(v_html, '<a [^>]*href="([a-z0-9-]+\.html)', 'g') AS link
  WHERE link[1] <> v_page;
  GET DIAGNOSTICS v_links = ROW_COUNT;

  RETURN jsonb_build_object('title', v_title, 'characters', length(v_body), 'links', v_links);
END
$$;

-- {"rounds": n}: PageRank.  Each round tells how far it is: others read that
-- while this transaction is open and none of its rows can be seen.
CREATE FUNCTION demo.rank_pages(input jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  v_rounds int := (input ->> 'rounds')::int;
  v_pages  bigint;
BEGIN
  CREATE TEMPORARY TABLE score ON COMMIT DROP AS
    SELECT page, 1.0::float8 / count(*) OVER () AS rank FROM demo.document;
  SELECT count(*) INTO v_pages FROM score;

  FOR v_round IN 1 .. v_rounds LOOP
    CREATE TEMPORARY TABLE next_score ON COMMIT DROP AS
      SELECT d.page, 0.15 / v_pages + 0.85 * coalesce(sum(s.rank / o.links), 0) AS rank
      FROM demo.document d
        LEFT JOIN demo.link l ON l.target = d.page
        LEFT JOIN score s ON s.page = l.source
        LEFT JOIN (SELECT source, count(*) AS links FROM demo.link GROUP BY source) o ON o.source = l.source
      GROUP BY d.page;
    DROP TABLE score;
    ALTER TABLE next_score RENAME TO score;
    PERFORM orchestrator.progress(v_round / v_rounds::float8, format('round %s of %s', v_round, v_rounds));
  END LOOP;

  UPDATE demo.document d SET rank = s.rank FROM score s WHERE s.page = d.page;
  RETURN jsonb_build_object('pages', v_pages, 'best', (SELECT page FROM score ORDER BY rank DESC LIMIT 1));
END
$$;

SELECT orchestrator.define('index_page', handler => 'demo.index_page(jsonb)',
                           max_attempts => 3, retry_delay => '1 second') \g /dev/null
SELECT orchestrator.define('rank_pages', handler => 'demo.rank_pages(jsonb)') \g /dev/null

-- Committed together or not at all: 'mvcc.html' cannot be read until the third
-- attempt, and 'no-such-page.html' not ever.
BEGIN;
SELECT orchestrator.enqueue('index_page', '{"page": "no-such-page.html"}', name => 'a page that is missing') \g /dev/null
SELECT orchestrator.enqueue('index_page', '{"page": "mvcc.html", "readable_from": 3}', name => 'a page that fails twice') \g /dev/null
SELECT cardinality(orchestrator.enqueue_many('index_page',
         array_agg(jsonb_build_object('page', name) ORDER BY name))) AS "tasks enqueued"
FROM demo.page WHERE name <> 'mvcc.html';
COMMIT;

-- And from now on the first page again every hour, by pg_cron.
SELECT cron.schedule('index the first page again', '0 * * * *',
  $$SELECT orchestrator.enqueue('index_page', '{"page": "index.html"}')$$) \g /dev/null
