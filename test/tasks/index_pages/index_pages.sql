-- Run at every upload, so it says IF NOT EXISTS and OR REPLACE.

CREATE TABLE IF NOT EXISTS docs.page (
  document text,
  page     int,
  body     text     NOT NULL,
  words    tsvector NOT NULL GENERATED ALWAYS AS (to_tsvector('english', body)) STORED,
  PRIMARY KEY (document, page)
);

CREATE INDEX IF NOT EXISTS page_words ON docs.page USING gin (words);

CREATE OR REPLACE FUNCTION docs.index_pages(input jsonb) RETURNS jsonb
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_pages int;
BEGIN
  INSERT INTO docs.page AS p (document, page, body)
    SELECT input ->> 'document', n.page, n.text
    FROM jsonb_to_recordset(input -> 'pages') n(page int, text text)
    ON CONFLICT (document, page) DO UPDATE SET body = excluded.body;
  GET DIAGNOSTICS v_pages = ROW_COUNT;
  RETURN jsonb_build_object('pages', v_pages);
END
$$;
