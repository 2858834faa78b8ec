-- What the application writes: its tables, its handlers, a workflow for a
-- document, and one call to enqueue a run of it for every page.  Run by
-- demo_app, an ordinary role.

CREATE TABLE demo.document (
  page    text PRIMARY KEY,
  title   text NOT NULL,
  outline text,
  words   tsvector,
  rank    float8 NOT NULL DEFAULT 0
);
CREATE INDEX ON demo.document USING gin (words);

CREATE TABLE demo.section (
  page   text NOT NULL,
  number int NOT NULL,
  title  text,
  body   text NOT NULL,
  words  tsvector,
  PRIMARY KEY (page, number)
);

CREATE TABLE demo.link (
  source text NOT NULL,
  target text NOT NULL,
  PRIMARY KEY (source, target)
);

CREATE FUNCTION demo.plain_text(html text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
  SELECT btrim(regexp_replace(
    replace(replace(replace(replace(
      regexp_replace($1, '<head>.*?</head>|<(script|style).*?</\1>|<[^>]*>', ' ', 'g'),
      '&nbsp;', ' '), '&lt;', '<'), '&gt;', '>'), '&amp;', '&'), '\s+', ' ', 'g'))
$$;

-- {"page": name}: is it there, and what is it called?  With "readable_from": n
-- the attempts before the nth fail.
CREATE FUNCTION demo.extract(input jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  v_page text := input ->> 'page';
  v_html text;
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

  INSERT INTO demo.document (page, title)
  VALUES (v_page, demo.plain_text(substring(v_html FROM '<title>(.*?)</title>')))
  ON CONFLICT (page) DO UPDATE SET title = excluded.title;
  RETURN jsonb_build_object('page', v_page, 'characters', length(v_html));
END
$$;

-- Cut the page at its headings.
CREATE FUNCTION demo.split(input jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  v_page text := input ->> 'page';
BEGIN
  DELETE FROM demo.section WHERE page = v_page;
  INSERT INTO demo.section (page, number, title, body)
  SELECT v_page, part.number,
    CASE WHEN part.number > 1 THEN demo.plain_text(substring(part.html FROM '^.*?>(.*?)</h[2-5]>')) END,
    demo.plain_text('<' || part.html)
  FROM demo.page, regexp_split_to_table(html, '<(?=h[2-5] class="title")') WITH ORDINALITY AS part(html, number)
  WHERE name = v_page;
  RETURN (SELECT jsonb_build_object('sections', jsonb_agg(number ORDER BY number)) FROM demo.section WHERE page = v_page);
END
$$;

-- {"page": name, "section": number}: one section, one task.
CREATE FUNCTION demo.index_section(input jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
  UPDATE demo.section
  SET words = setweight(to_tsvector('english', coalesce(title, '')), 'A') || to_tsvector('english', body)
  WHERE page = input ->> 'page' AND number = (input ->> 'section')::int;
  RETURN to_jsonb((SELECT length(words) FROM demo.section
                   WHERE page = input ->> 'page' AND number = (input ->> 'section')::int));
END
$$;

-- The links to other pages; one that leads nowhere is an error.
CREATE FUNCTION demo.collect_links(input jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  v_page  text := input ->> 'page';
  v_links text[] := ARRAY(SELECT DISTINCT link[1]
                          FROM demo.page, regexp_matches(html, '<a [^>]*href="([a-z0-9-]+\.html)', 'g') AS link
                          WHERE name = v_page AND link[1] <> v_page);
  v_lost  text;
BEGIN
  IF v_page = 'errcodes-appendix.html' THEN
    v_links := v_links || 'no-such-page.html';   -- so that one fails
  END IF;
  SELECT l INTO v_lost FROM unnest(v_links) AS l WHERE NOT EXISTS (SELECT FROM demo.page WHERE name = l) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'the link to "%" leads nowhere', v_lost;
  END IF;
  DELETE FROM demo.link WHERE source = v_page;
  INSERT INTO demo.link (source, target) SELECT v_page, l FROM unnest(v_links) AS l;
  RETURN to_jsonb(cardinality(v_links));
END
$$;

-- Of long documents: their headings.
CREATE FUNCTION demo.outline(input jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
  UPDATE demo.document
  SET outline = (SELECT string_agg(title, E'\n' ORDER BY number) FROM demo.section s WHERE s.page = input ->> 'page')
  WHERE page = input ->> 'page';
  RETURN 'true';
END
$$;

-- What comes of all: the words of the document are those of its sections.
CREATE FUNCTION demo.summarise(input jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  v_page  text := input ->> 'page';
  v_words tsvector := '';
  v_part  tsvector;
BEGIN
  FOR v_part IN SELECT words FROM demo.section WHERE page = v_page ORDER BY number LOOP
    v_words := v_words || v_part;
  END LOOP;
  UPDATE demo.document SET words = v_words WHERE page = v_page;
  RETURN jsonb_build_object('sections', jsonb_array_length(input -> 'lexemes'), 'lexemes', length(v_words), 'links', input -> 'links');
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

SELECT orchestrator.define('rank_pages', handler => 'demo.rank_pages(jsonb)') \g /dev/null

-- The pipeline. A step takes from its document what it needs: the input of the
-- run, and the outputs of the steps before. Progress is weighted.
SELECT orchestrator.define_workflow('document', ARRAY[
  orchestrator.step('extract', 'demo.extract', input => '"$.input"', max_attempts => 3, retry_delay => '1 second'),
  orchestrator.step('split', 'demo.split', needs => '{extract}', input => '{"page": "$.input.page"}'),
  orchestrator.step('index', 'demo.index_section', needs => '{split}', weight => 5,
                    each => '$.steps.split.sections', max_parallel => 4,
                    input => '{"page": "$.input.page", "section": "$.item"}'),
  orchestrator.step('links', 'demo.collect_links', needs => '{extract}', input => '{"page": "$.input.page"}',
                    optional => true, max_attempts => 1),
  orchestrator.step('outline', 'demo.outline', needs => '{split}', input => '{"page": "$.input.page"}',
                    "when" => '$.steps.split.sections.size() > 10'),
  orchestrator.step('summarise', 'demo.summarise', needs => '{index,links,outline}', weight => 2,
                    input => '{"page": "$.input.page", "lexemes": "$.steps.index", "links": "$.steps.links"}'),
  orchestrator.step('approval', needs => '{summarise}', wait_for => 'approval', "when" => '$.input.approve == true')
], description => 'index one page of the manual') \g /dev/null

-- Committed together or not at all: 'mvcc.html' cannot be read until the third
-- attempt and waits for an approval at its end, 'no-such-page.html' cannot be
-- read ever.
BEGIN;
SELECT orchestrator.enqueue('document', '{"page": "no-such-page.html"}', name => 'a page that is missing') \g /dev/null
SELECT orchestrator.enqueue('document', '{"page": "mvcc.html", "readable_from": 3}', name => 'a page that fails twice') \g /dev/null
SELECT orchestrator.enqueue('document', '{"page": "runtime-config-client.html", "approve": true}', name => 'a page that somebody approves') \g /dev/null
SELECT cardinality(orchestrator.enqueue_many('document',
         array_agg(jsonb_build_object('page', name) ORDER BY name))) AS "documents enqueued"
FROM demo.page WHERE name NOT IN ('mvcc.html', 'runtime-config-client.html');
COMMIT;

-- And from now on the first page again every hour, by pg_cron.
SELECT cron.schedule('index the first page again', '0 * * * *',
  $$SELECT orchestrator.enqueue('document', '{"page": "index.html"}')$$) \g /dev/null
