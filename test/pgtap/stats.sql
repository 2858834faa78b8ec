-- Statistics: sketches, what is counted in memory and when, what is written and
-- added up, and who sees it. Nothing is counted before a commit, so what other
-- sessions would have counted is written here as rows.
\ir lib/setup.psql
SELECT plan(36);

-- Sketches
CREATE FUNCTION sketch(microseconds bigint[]) RETURNS bytea LANGUAGE sql AS $$
  SELECT orchestrator._sketch(s.one) FROM unnest($1) m CROSS JOIN LATERAL (
    SELECT set_byte(set_byte('\x0000', 0, least(CASE WHEN m <= 1 THEN 0 ELSE ceil(ln(m) / ln(1.05::float8 / 0.95)) END, 255)::int), 1, 1) AS one) s;
$$;
CREATE FUNCTION seconds(span interval) RETURNS float8 LANGUAGE sql AS $$SELECT extract(epoch FROM $1)::float8$$;
CREATE TABLE sample AS
  SELECT 'even' AS name, i AS us FROM generate_series(1, 20000) i
  UNION ALL SELECT 'exponential', (exp(random() * 22))::bigint FROM generate_series(1, 20000)
  UNION ALL SELECT 'two humps', CASE WHEN random() < 0.9 THEN 1000 + random() * 200 ELSE 5e7 + random() * 1e7 END::bigint FROM generate_series(1, 20000)
  UNION ALL SELECT 'one value', 123456 FROM generate_series(1, 7);
SELECT cmp_ok(abs(seconds(orchestrator._percentile(k.sketch, f)) / k.exact - 1)::numeric, '<=', 0.0501, format('p%s of %s is within 5 %%', f * 100, k.name))
FROM (SELECT s.name, f, sketch(array_agg(s.us)) AS sketch, percentile_disc(f) WITHIN GROUP (ORDER BY s.us) / 1e6 AS exact
      FROM sample s, unnest('{0.5,0.95,0.99}'::float8[]) f GROUP BY s.name, f) k;
SELECT is(orchestrator._sketch(s) , sketch((SELECT array_agg(x.us) FROM sample x)), 'sketches are added without loss')
FROM (SELECT sketch(array_agg(x.us)) AS s FROM sample x GROUP BY x.us % 17) parts;
SELECT is(orchestrator._percentile('', 0.5), NULL, 'an empty sketch has no percentile');
SELECT is(orchestrator._sketch(NULL::bytea), ''::bytea, 'nothing adds up to an empty sketch');
SELECT is(orchestrator._percentile(sketch('{0}'), 1), interval '1 microsecond', 'the least time is a microsecond');
SELECT cmp_ok(orchestrator._percentile(sketch(array[1e15::bigint]), 0), '>', interval '24 hours', 'what is longer than a sketch can say is long');
SELECT is(error_of($$SELECT orchestrator._percentile('\x01', 0.5)$$), 'XX001: invalid sketch in orchestrator.stats', 'a sketch that ends early');
SELECT is(error_of($$SELECT orchestrator._percentile('\x01ffffffffffffffffffffffff', 0.5)$$), 'XX001: invalid sketch in orchestrator.stats', 'a count without an end');
SELECT is(error_of($$SELECT orchestrator._percentile('', 'nan')$$), '22023: a fraction is between 0 and 1', 'a fraction is one');
SELECT is(error_of($$SELECT orchestrator._count(1, 1, 1, 'done')$$), 'XX000: unknown count "done"', 'a count is one of five');

-- Views
SELECT orchestrator.grant_usage(role) FROM (SELECT format('stats_%s', w) AS role, 'CREATE ROLE stats_' || w || ' LOGIN' AS command FROM unnest('{app,other,viewer}'::text[]) w) r,
  LATERAL (SELECT error_of(r.command) OFFSET 0) made;
SELECT orchestrator.grant_usage('stats_viewer', 'viewer');
SELECT orchestrator.define_queue('q'), orchestrator.define('job', 'SELECT 1', 'sql', 'q');
SELECT value_of('SELECT orchestrator.define(''job'', ''SELECT 1'', ''sql'')', 'stats_app'), value_of('SELECT orchestrator.define(''job'', ''SELECT 1'', ''sql'')', 'stats_other');
CREATE FUNCTION write(at timestamptz, kind text, id int, role text, started bigint, completed bigint, failed bigint, retried bigint, us bigint[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO orchestrator.stats VALUES ($1, false, $2, $3, owner_id($4), $5, $6, $7, 0, $8, 0, sketch($9), sketch($9));
$$;
SELECT date_trunc('hour', orchestrator._now(), 'UTC') - interval '3 hours' AS hour \gset
SELECT q.id AS queue FROM orchestrator.queue q WHERE q.name = 'q' \gset
SELECT d.id AS mine FROM orchestrator.definition d WHERE d.name = 'job' AND d.owner = owner_id() \gset
SELECT d.id AS app FROM orchestrator.definition d WHERE d.name = 'job' AND d.owner = owner_id('stats_app') \gset
SELECT write(:'hour', 'queue', 1, 'stats_app', 60, 45, 15, 6, array_fill(1000, array[60])),
       write(:'hour', 'queue', 1, 'stats_app', 60, 60, 0, 0, array_fill(1000, array[60])),   -- written twice: crowded, or late
       write(:'hour', 'queue', 1, 'stats_other', 1000, 1000, 0, 0, array_fill(9000, array[1000])),
       write(:'hour'::timestamptz + interval '59 minutes', 'queue', 1, 'stats_app', 10, 10, 0, 0, array_fill(100000, array[10])),
       write(:'hour', 'definition', :app, 'stats_app', 60, 45, 15, 6, array_fill(1000, array[60])),
       write(:'hour', 'queue', :queue, 'stats_app', 1, 1, 0, 0, '{5}'),
       write(:'hour', 'definition', 999999, 'stats_app', 1, 1, 0, 0, '{5}');
SELECT results_eq($$SELECT x.* FROM unnest(ARRAY(SELECT value_of('SELECT string_agg(concat_ws('' '', queue, at >= now() - interval ''1 day'', started, completed, failed, retried, round(throughput::numeric, 4), failure_rate, retry_rate), '', '' ORDER BY at) FROM orchestrator.queue_stats WHERE period = ''minute''', 'stats_app'))) x$$,
  $$VALUES ('default t 120 105 15 6 1.7500 0.125 0.05, default t 10 10 0 0 0.1667 0 0')$$, 'minutes, of one''s own tasks, in queues that one may use');
SELECT is(value_of('SELECT string_agg(concat_ws('' '', queue, started, completed, failed, retried, round(throughput::numeric, 4), round(seconds(wait_p50)::numeric, 5), round(seconds(run_p99)::numeric, 5)), '', '') FROM orchestrator.queue_stats WHERE period = ''hour''', 'stats_app'),
  (SELECT format('default 130 115 15 6 0.0319 %s %s', round(seconds(orchestrator._percentile(sketch('{1000}'), 1))::numeric, 5), round(seconds(orchestrator._percentile(sketch('{100000}'), 1))::numeric, 5))), 'and hours');
SELECT is(value_of('SELECT sum(started) FROM orchestrator.queue_stats WHERE period = ''hour''', 'stats_other'), '1000', 'others see theirs');
SELECT is(value_of('SELECT count(*) FROM orchestrator.stats WHERE owner <> (SELECT id FROM orchestrator.owner WHERE name = ''stats_other'')', 'stats_other'), '0', 'in the table, too');
SELECT is(value_of('SELECT sum(started) FROM orchestrator.queue_stats WHERE period = ''hour'' AND queue = ''default'' AND at < now() - interval ''2 hours''', 'stats_viewer'), '1130', 'a viewer sees all');
SELECT is(value_of('SELECT string_agg(concat_ws('' '', definition, version, owner, started, completed, failed, retried), '', '') FROM orchestrator.definition_stats WHERE period = ''minute''', 'stats_app'),
  'job 1 stats_app 60 45 15 6', 'by definition; of one that is gone nothing');
SELECT is(value_of('SELECT count(*) FROM orchestrator.definition_stats', 'stats_other'), '0', 'of another''s definition nothing');

-- Minutes become hours after two days, hours go after ninety. By then there is nothing in between.
DELETE FROM orchestrator.stats s WHERE s.owner <> ALL (array[owner_id('stats_app'), owner_id('stats_other')]);
CREATE FUNCTION total() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(concat_ws(' ', s.kind, s.id, s.owner, s.n, s.f, md5(s.w)), ', ' ORDER BY s.kind, s.id, s.owner)
  FROM (SELECT kind, id, owner, sum(started) AS n, sum(failed) AS f, orchestrator._sketch(wait) AS w FROM orchestrator.stats GROUP BY 1, 2, 3) s;
$$;
SELECT total() AS before \gset
SELECT orchestrator._save_stats(false);
SELECT is((SELECT count(*) FROM orchestrator.stats WHERE hourly), 0::bigint, 'minutes of today stay');
SELECT write(:'hour'::timestamptz + interval '2 hours', 'queue', 1, 'stats_app', 7, 7, 0, 0, '{8,8,8,8,8,8,8}');
SELECT later(45 * 3600);
SELECT orchestrator._save_stats(false);
SELECT is((SELECT count(*) FROM orchestrator.stats WHERE hourly), 0::bigint, 'and until their hour is two days old');
SELECT later(2 * 3600);
SELECT orchestrator._save_stats(false);
SELECT results_eq('SELECT hourly, count(*), sum(started)::bigint FROM orchestrator.stats GROUP BY 1 ORDER BY 1', $$VALUES (false, 1::bigint, 7::bigint), (true, 5::bigint, 1192::bigint)$$, 'one hour is added up');
SELECT is(value_of('SELECT string_agg(concat_ws('' '', queue, period, started, failed), '', '' ORDER BY at, period) FROM orchestrator.queue_stats', 'stats_app'), 'default hour 130 15, default hour 7 0, default minute 7 0', 'it is no minute any more');
SELECT orchestrator._save_stats(false);
SELECT is((SELECT sum(started) FROM orchestrator.stats WHERE hourly), 1192::numeric, 'it is added up once');
SELECT later(24 * 3600);
SELECT orchestrator._save_stats(false);
SELECT is((SELECT count(*) FROM orchestrator.stats WHERE NOT hourly), 0::bigint, 'then the next');
DELETE FROM orchestrator.stats WHERE at = :'hour'::timestamptz + interval '2 hours';
SELECT is(total(), :'before', 'nothing is lost by it');
SELECT write(orchestrator._now(), 'queue', 1, 'stats_app', 3, 3, 0, 0, '{8,8,8}');
SELECT later(89 * 24 * 3600);
SELECT orchestrator._save_stats(false);
SELECT results_eq('SELECT hourly, sum(started)::bigint FROM orchestrator.stats GROUP BY 1', 'VALUES (true, 3::bigint)', 'hours go after 90 days');

SELECT * FROM finish();
ROLLBACK;
