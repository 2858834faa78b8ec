-- The application's role and its data.  Run by the superuser; psql variable
-- html is the folder of the manual.

CREATE EXTENSION orchestrator;
CREATE EXTENSION pg_cron;

CREATE ROLE demo_app LOGIN;
SELECT orchestrator.grant_usage('demo_app', 'producer') \g /dev/null
GRANT USAGE ON SCHEMA cron TO demo_app;
CREATE SCHEMA demo AUTHORIZATION demo_app;

CREATE TABLE demo.page (
  name text PRIMARY KEY,
  html text NOT NULL
);
INSERT INTO demo.page (name, html)
SELECT name, pg_read_file(:'html' || '/' || name)
FROM pg_ls_dir(:'html') AS name
WHERE name LIKE '%.html';
ALTER TABLE demo.page OWNER TO demo_app;
ANALYZE demo.page;
