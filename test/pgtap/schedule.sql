-- Schedules: cron lines, daylight saving, and what tick() makes of them.
\ir lib/setup.psql
SELECT plan(234);

CREATE ROLE schedule_app LOGIN;
CREATE ROLE schedule_other LOGIN;
CREATE ROLE schedule_admin LOGIN;
SELECT orchestrator.grant_usage('schedule_app'), orchestrator.grant_usage('schedule_other'), orchestrator.grant_usage('schedule_admin', 'admin');
SELECT orchestrator.define('job', 'SELECT 1', 'sql', priority => 3);
SET timezone = 'UTC';

-- ---------------------------------------------------------------- cron lines

SELECT is(error_of(format('SELECT orchestrator.schedule_times(%L)', line)), '22023: invalid cron line "' || line || '": ' || message, 'refused: ' || line)
FROM (VALUES
  ('60 * * * *', '"60" is no valid minute [Values of this field are 0 to 59.]'),
  ('* 24 * * *', '"24" is no valid hour [Values of this field are 0 to 23.]'),
  ('* * 0 * *', '"0" is no valid day of month [Values of this field are 1 to 31.]'),
  ('* * * 13 *', '"13" is no valid month [Values of this field are 1 to 12, or jan to dec.]'),
  ('* * * * 8', '"8" is no valid day of week [Values of this field are 0 to 7, or sun to sat.]'),
  ('* * * january *', '"january" is no valid month [Values of this field are 1 to 12, or jan to dec.]'),
  ('* * mon * *', '"mon" is no valid day of month [Values of this field are 1 to 31.]'),
  ('5- * * * *', '"5-" is no valid minute [Values of this field are 0 to 59.]'),
  ('1,,2 * * * *', '"" is no valid minute [Values of this field are 0 to 59.]'),
  ('-1 * * * *', '"-1" is no valid minute [Values of this field are 0 to 59.]'),
  ('1000 * * * *', '"1000" is no valid minute [Values of this field are 0 to 59.]'),
  ('? * * * *', '"?" is no valid minute [Values of this field are 0 to 59.]'),
  ('*/0 * * * *', '"*/0" has no valid step in field minute [A step is a positive number after a slash, as in "*/15".]'),
  ('*/ * * * *', '"*/" has no valid step in field minute [A step is a positive number after a slash, as in "*/15".]'),
  ('*/x * * * *', '"*/x" has no valid step in field minute [A step is a positive number after a slash, as in "*/15".]'),
  ('* 22-5 * * *', 'range "22-5" of field hour is empty [Write a range from low to high; split one that passes the end in two, as in "22-23,0-5".]'),
  ('* * * *', 'it has 4 fields, not 5 [Write minute, hour, day of month, month and day of week, as in "30 2 * * mon-fri", or @daily.]'),
  ('', 'it has 0 fields, not 5 [Write minute, hour, day of month, month and day of week, as in "30 2 * * mon-fri", or @daily.]'),
  ('0 * * * * *', 'it has 6 fields, not 5 [There is no field for seconds or years.]'),
  ('@reboot', 'unknown word [Words are @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually.]'),
  ('@daily 3', 'unknown word [Words are @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually.]')
) bad(line, message);
SELECT is(error_of('SELECT orchestrator.schedule_times(repeat(''1,'', 100) || ''1 * * * *'')'), '54000: cron line is longer than 200 bytes', 'a line has an end');
SELECT is(error_of('SELECT orchestrator.schedule_times(NULL)'), '22004: cron line must not be null', 'null');
SELECT is(error_of('SELECT orchestrator.schedule_times(''* * * * *'', ''Nowhere/Town'')'), '22023: time zone "Nowhere/Town" not recognized [The view pg_timezone_names lists the names.]', 'a zone that is none');
SELECT is(error_of('SELECT orchestrator.schedule_times(''* * * * *'', NULL, ''infinity'')'), '22023: "from" must be finite, and after 1900', 'from the end of time');
SELECT is(error_of('SELECT orchestrator.schedule_times(''* * * * *'', NULL, NULL, 100001)'), '22023: n must be between 0 and 100000', 'too many');
SELECT is_empty('SELECT orchestrator.schedule_times(''0 0 30 2 *'')', 'the 30th of February');

-- Lines by chance: each is refused as above, or has times, all after the one before.
SELECT setseed(0.4711);
CREATE FUNCTION field() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  v_field text := '';
BEGIN
  FOR i IN 1 .. 1 + floor(random() * 3)::int LOOP
    v_field := v_field || (string_to_array('0 1 2 3 4 5 7 9 12 23 31 59 60 * * * * / / - - , , jan SUN */5 @ 1-5', ' '))[1 + floor(random() * 28)::int];
  END LOOP;
  RETURN v_field;
END
$$;
CREATE TABLE chance AS SELECT n, field() FROM generate_series(1, 15000) n;
CREATE TABLE verdict AS
  SELECT x.line, error_of(format('SELECT count(*) FROM orchestrator.schedule_times(%L, ''Europe/Berlin'', ''2026-01-01'', 20)', x.line)) AS error
  FROM (SELECT string_agg(field, ' ' ORDER BY n) AS line FROM chance GROUP BY n / 5
        UNION ALL SELECT string_agg(CASE WHEN n % 5 = 0 THEN field ELSE '*' END, ' ' ORDER BY n) FROM chance GROUP BY n / 5) x;
SELECT is_empty($$SELECT line, error FROM verdict WHERE error NOT LIKE '22023: invalid cron line%' AND error <> 'no error'$$, 'lines by chance: no other error');
SELECT cmp_ok((SELECT count(*) FROM verdict WHERE error = 'no error'), '>', 300::bigint, 'many are good');
SELECT cmp_ok((SELECT count(*) FROM verdict WHERE error <> 'no error'), '>', 300::bigint, 'and many are not');
SELECT is_empty($$SELECT v.line FROM verdict v WHERE v.error = 'no error' AND EXISTS (
  SELECT FROM (SELECT t, lag(t, 1, '2026-01-01') OVER (ORDER BY n) AS before FROM orchestrator.schedule_times(v.line, 'Europe/Berlin', '2026-01-01', 20) WITH ORDINALITY x(t, n)) y WHERE t <= before)$$, 'times go on');

-- The next times of a line, in its zone; from is a local time.
CREATE FUNCTION times(line text, zone text, after timestamp, n int DEFAULT 4) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(to_char(t AT TIME ZONE $2, 'MM-DD HH24:MI'), ', ' ORDER BY t) FROM orchestrator.schedule_times($1, $2, $3 AT TIME ZONE $2, $4) t;
$$;
SELECT is(times(line, 'UTC', after), fires, 'due: ' || line)
FROM (VALUES
  ('* * * * *', timestamp '2026-01-01 00:00', '01-01 00:01, 01-01 00:02, 01-01 00:03, 01-01 00:04'),
  ('*/25 * * * *', '2026-01-01 00:00', '01-01 00:25, 01-01 00:50, 01-01 01:00, 01-01 01:25'),
  ('50/5 * * * *', '2026-01-01 00:00', '01-01 00:50, 01-01 00:55, 01-01 01:50, 01-01 01:55'),
  ('10-30/10,45 0 * * *', '2026-01-01 00:00', '01-01 00:10, 01-01 00:20, 01-01 00:30, 01-01 00:45'),
  ('5 4-6 * * *', '2026-01-01 05:05', '01-01 06:05, 01-02 04:05, 01-02 05:05, 01-02 06:05'),
  ('0 0 31 * *', '2026-01-01 00:00', '01-31 00:00, 03-31 00:00, 05-31 00:00, 07-31 00:00'),
  ('0 0 1 JAN,jul *', '2026-01-01 00:00', '07-01 00:00, 01-01 00:00, 07-01 00:00, 01-01 00:00'),
  ('0 0 * * mon-fri/2', '2026-01-03 00:00', '01-05 00:00, 01-07 00:00, 01-09 00:00, 01-12 00:00'),
  ('0 0 * * 7', '2026-01-01 00:00', '01-04 00:00, 01-11 00:00, 01-18 00:00, 01-25 00:00'),
  ('0 0 * * sat-sun', '2026-01-01 00:00', '01-03 00:00, 01-04 00:00, 01-10 00:00, 01-11 00:00'),
  ('0 0 * * 5-7', '2026-01-01 00:00', '01-02 00:00, 01-03 00:00, 01-04 00:00, 01-09 00:00'),
  -- either of two days, unless one of them begins with a star
  ('0 0 13 * fri', '2026-01-01 00:00', '01-02 00:00, 01-09 00:00, 01-13 00:00, 01-16 00:00'),
  ('0 0 */13 * fri', '2026-01-01 00:00', '02-27 00:00, 03-27 00:00, 05-01 00:00, 08-14 00:00'),
  ('0 0 13 * *', '2026-01-01 00:00', '01-13 00:00, 02-13 00:00, 03-13 00:00, 04-13 00:00'),
  ('0 0 29 2 *', '2096-01-01 00:00', '02-29 00:00, 02-29 00:00, 02-29 00:00, 02-29 00:00'),
  ('@hourly', '2026-01-01 00:00', '01-01 01:00, 01-01 02:00, 01-01 03:00, 01-01 04:00'),
  (' @Daily ', '2026-01-01 00:00', '01-02 00:00, 01-03 00:00, 01-04 00:00, 01-05 00:00'),
  ('@weekly', '2026-01-01 00:00', '01-04 00:00, 01-11 00:00, 01-18 00:00, 01-25 00:00'),
  ('@monthly', '2026-01-01 00:00', '02-01 00:00, 03-01 00:00, 04-01 00:00, 05-01 00:00'),
  ('@yearly', '2026-01-01 00:00', '01-01 00:00, 01-01 00:00, 01-01 00:00, 01-01 00:00')
) good(line, after, fires);
SELECT is(ARRAY(SELECT extract(year FROM t)::int FROM orchestrator.schedule_times('0 0 29 2 *', 'UTC', '2095-01-01', 3) t), '{2096,2104,2108}', '29 February skips the year 2100');
SELECT is((SELECT min(t) FROM orchestrator.schedule_times('* * * * *', 'UTC', '2026-01-01 00:00:59.999999') t), '2026-01-01 00:01', 'within a second');
SELECT is((SELECT min(t) FROM orchestrator.schedule_times('* * * * *', 'UTC', '1950-01-01 00:00:59.5') t), '1950-01-01 00:01', 'also before 2000');
SELECT is((SELECT min(t) FROM orchestrator.schedule_times('* * * * *', 'UTC', '2026-01-01 00:00:00.000001') t), '2026-01-01 00:01', 'just after one');

-- ---------------------------------------------------------------- daylight saving

CREATE TABLE change (zone text, day text, line text, after timestamp, fires text);
INSERT INTO change VALUES
  ('America/New_York', '2026-03-08, 02:00 -> 03:00', '30 2 * * *', '2026-03-07 12:00', '03-08 03:00, 03-09 02:30'),
  ('America/New_York', '2026-03-08, 02:00 -> 03:00', '*/15 2 * * *', '2026-03-08 00:00', '03-08 03:00, 03-09 02:00'),
  ('America/New_York', '2026-03-08, 02:00 -> 03:00', '0 2,3 * * *', '2026-03-08 00:00', '03-08 03:00, 03-09 02:00'),
  ('America/New_York', '2026-03-08, 02:00 -> 03:00', '30 * * * *', '2026-03-08 00:45', '03-08 01:30, 03-08 03:30'),
  ('America/New_York', '2026-03-08, 02:00 -> 03:00', '0 */2 * * *', '2026-03-08 00:00', '03-08 04:00, 03-08 06:00'),
  ('America/New_York', '2026-11-01, 02:00 -> 01:00', '30 1 * * *', '2026-10-31 12:00', '11-01 01:30 -04, 11-02 01:30 -05'),
  ('America/New_York', '2026-11-01, 02:00 -> 01:00', '30 * * * *', '2026-11-01 00:45', '11-01 01:30 -04, 11-01 01:30 -05'),
  ('America/New_York', '2026-11-01, 02:00 -> 01:00', '*/30 1 * * *', '2026-11-01 00:45', '11-01 01:00 -04, 11-01 01:30 -04, 11-02 01:00 -05'),
  ('America/New_York', '2026-11-01, 02:00 -> 01:00', '0 2 * * *', '2026-11-01 00:45', '11-01 02:00 -05, 11-02 02:00 -05'),
  ('Europe/Berlin', '2026-03-29, 02:00 -> 03:00', '30 2 * * *', '2026-03-28 12:00', '03-29 03:00, 03-30 02:30'),
  ('Europe/Berlin', '2026-10-25, 03:00 -> 02:00', '30 2 * * *', '2026-10-24 12:00', '10-25 02:30 +02, 10-26 02:30 +01'),
  ('Europe/Berlin', '2026-10-25, 03:00 -> 02:00', '0 * * * *', '2026-10-25 01:30', '10-25 02:00 +02, 10-25 02:00 +01'),
  ('Australia/Lord_Howe', '2026-10-04, 02:00 -> 02:30', '15 2 * * *', '2026-10-03 12:00', '10-04 02:30, 10-05 02:15'),
  ('America/Sao_Paulo', '2018-11-04, 00:00 -> 01:00', '0 0 * * *', '2018-11-03 12:00', '11-04 01:00, 11-05 00:00'),
  ('Pacific/Apia', '2011-12-30, the whole day', '0 12 * * *', '2011-12-29 06:00', '12-29 12:00, 12-31 00:00, 12-31 12:00');
CREATE FUNCTION fires(c change) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('timezone', c.zone, true);
  RETURN (SELECT string_agg(to_char(t, CASE WHEN c.fires LIKE '%\_____-__%' ESCAPE '\' OR c.fires ~ ' [+-]\d\d' THEN 'MM-DD HH24:MI TZH' ELSE 'MM-DD HH24:MI' END), ', ' ORDER BY t)
          FROM orchestrator.schedule_times(c.line, NULL, c.after AT TIME ZONE c.zone, 1 + length(c.fires) - length(replace(c.fires, ',', ''))) t);
END
$$;
SELECT diag(E'\n' || string_agg(format('%s  %s  %s -> %s', rpad(zone, 19), rpad(day, 26), rpad(line, 12), fires(c)), E'\n' ORDER BY c.ctid)) FROM change c;
SELECT is(fires(c), c.fires, concat_ws(', ', zone, day, line)) FROM change c ORDER BY c.ctid;
SET timezone = 'UTC';

-- An oracle that looks at every minute: instants at which the local clock shows
-- a time of the line; with fixed hours the first of them, or the first instant
-- at which the clock has passed it.
CREATE FUNCTION oracle(zone text, minutes int[], hours int[], any_hour boolean, first timestamptz, last timestamptz) RETURNS timestamptz[] LANGUAGE sql AS $$
  WITH clock AS (SELECT t, t AT TIME ZONE $1 AS local FROM generate_series($5 - interval '2 days', $6 + interval '2 days', '1 minute') t),
  wanted AS (SELECT local FROM generate_series(($5 AT TIME ZONE $1) - interval '1 day', ($6 AT TIME ZONE $1) + interval '1 day', '1 minute') local
             WHERE extract(hour FROM local) = ANY ($3) AND extract(minute FROM local) = ANY ($2))
  SELECT array_agg(DISTINCT w.t ORDER BY w.t) FROM (
    SELECT c.t FROM clock c WHERE $4 AND extract(hour FROM c.local) = ANY ($3) AND extract(minute FROM c.local) = ANY ($2)
    UNION ALL
    SELECT (SELECT min(c.t) FROM clock c WHERE c.local >= w.local) FROM wanted w WHERE NOT $4
  ) w WHERE w.t > $5 AND w.t <= $6;
$$;
SELECT is(ARRAY(SELECT t FROM orchestrator._cron_slots(l.line, z.zone, z.day, z.day + interval '3 days', 100000) t),
          oracle(z.zone, l.minutes, l.hours, l.any_hour, z.day, z.day + interval '3 days'), z.zone || ' ' || z.day::date || ': ' || l.line)
FROM (VALUES
  ('* * * * *', ARRAY(SELECT generate_series(0, 59)), ARRAY(SELECT generate_series(0, 23)), true),
  ('7-59/13 */3 * * *', '{7,20,33,46,59}', '{0,3,6,9,12,15,18,21}', true),
  ('*/10 0-3,23 * * *', '{0,10,20,30,40,50}', '{0,1,2,3,23}', false)
) l(line, minutes, hours, any_hour),
(VALUES ('America/New_York', timestamptz '2026-03-07'), ('America/New_York', '2026-10-31'), ('Europe/Berlin', '2026-03-28'), ('Europe/Berlin', '2026-10-24'),
        ('Australia/Lord_Howe', '2026-04-03'), ('Australia/Lord_Howe', '2026-10-02'), ('America/Sao_Paulo', '2018-02-16'), ('America/Sao_Paulo', '2018-11-02'),
        ('America/St_Johns', '1988-04-01'), ('America/St_Johns', '1988-10-29'), ('Pacific/Apia', '2011-12-28'), ('Africa/Casablanca', '2026-02-14'), ('Asia/Kolkata', '2026-06-01')
) z(zone, day);

-- The last one before a time, and how many.
SELECT is(orchestrator._cron_last(line, 'Europe/Berlin', '2016-01-01', '2026-11-21 10:20:30'), (SELECT max(t) FROM orchestrator._cron_slots(line, 'Europe/Berlin', '2016-01-01', '2026-11-21 10:20:30', 10000000) t), 'the last one: ' || line)
FROM unnest(array['0 0 29 2 *', '30 2 * * 0', '0 */6 1 * *', '@yearly']) line;
SELECT is(orchestrator._cron_last('0 0 1 1 *', 'UTC', '2026-01-01', '2026-12-31'), NULL, 'there is none');
SELECT is(orchestrator._cron_last('0 0 1 1 *', 'UTC', '2025-12-31', '2026-01-01'), '2026-01-01', 'at the very end');
SELECT is(orchestrator._cron_count('*/5 * * * *', 'UTC', '2026-01-01', '2026-01-02', 1000), 288, 'how many');
SELECT is(orchestrator._cron_count('*/5 * * * *', 'UTC', '2026-01-01', '2026-01-02', 100), 100, 'at most');

-- ---------------------------------------------------------------- schedule()

SELECT is(error_of($$SELECT orchestrator.schedule('s', '* * * * *', 'job')$$),
  format('55000: schedules need pg_cron, which this server has not loaded [Install it (Debian: postgresql-%s-cron), add pg_cron to shared_preload_libraries, set cron.database_name = ''schedule'' and cron.use_background_workers = on, restart, and run CREATE EXTENSION pg_cron.]',
         current_setting('server_version_num')::int / 10000), 'without pg_cron: what to install and set');
SET cron.database_name = 'elsewhere';
SELECT is(error_of($$SELECT orchestrator.schedule('s', '* * * * *', 'job')$$),
  '55000: nothing ticks the schedules of this database: pg_cron is in database "elsewhere" [Let a superuser run, in database "elsewhere": SELECT cron.schedule_in_database(''orchestrator.tick in schedule'', ''* * * * *'', ''SELECT orchestrator.tick()'', ''schedule'', '''
  || current_user || '''); and try again after the next full minute, or after SELECT orchestrator.tick().]', 'pg_cron in another database: the line to run');
SET cron.database_name = 'schedule';
SELECT is(error_of($$SELECT orchestrator.schedule('s', '* * * * *', 'job')$$),
  '55000: schedules need the extension pg_cron, which is not in this database [Let a superuser run CREATE EXTENSION pg_cron.]', 'and not created here');
CREATE SCHEMA cron;
CREATE FUNCTION cron.schedule(text, text, text) RETURNS bigint LANGUAGE sql AS $$ SELECT 1 / 0::bigint $$;
SELECT matches(error_of($$SELECT orchestrator.schedule('s', '* * * * *', 'job')$$), '^55000: schedules need the extension pg_cron', 'an imitation is not called');
RESET cron.database_name;
SELECT is(orchestrator.tick(), 0, 'whoever ticks');

-- The engine's clock at a time; it goes on from there.
CREATE FUNCTION clock_at(at timestamptz) RETURNS void LANGUAGE sql AS $$
  SELECT set_config('orchestrator.test_clock_offset', floor(extract(epoch FROM $1 - clock_timestamp()))::int::text, true);
$$;
CREATE FUNCTION tick_at(at timestamptz) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
  PERFORM clock_at($1 + interval '1 second');
  RETURN orchestrator.tick();
END
$$;
-- The slots whose tasks were enqueued, and the state of these.
CREATE FUNCTION slots(schedule text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(to_char((t.metadata ->> 'slot')::timestamptz, 'DD HH24:MI') || ' ' || t.state, ', ' ORDER BY t.id)
  FROM orchestrator.task t WHERE t.metadata ->> 'schedule' = $1;
$$;
CREATE FUNCTION counts(schedule text) RETURNS text LANGUAGE sql AS $$
  SELECT format('%s enqueued, %s skipped, %s missed, %s waiting', s.enqueued, s.skipped, s.missed, s.waiting) FROM orchestrator.schedule_status s WHERE s.schedule = $1;
$$;
SELECT clock_at('2026-05-01 09:00:10');

SELECT is(error_of('SELECT orchestrator.schedule(' || call || ')'), message, call)
FROM (VALUES
  ($$NULL, '* * * * *', 'job'$$, '22023: the name of a schedule must not be null'),
  ($$'', '* * * * *', 'job'$$, '22023: the name of a schedule must have 1 to 200 bytes'),
  ($$'s', NULL, 'job'$$, '22023: a schedule needs cron or at, and not both'),
  ($$'s', '* * * * *', 'job', at => '2027-01-01'$$, '22023: a schedule needs cron or at, and not both'),
  ($$'s', '* * * * *'$$, '22023: schedule "s" has no definition [Give the name of one, that define() made.]'),
  ($$'s', '* * * * *', 'none'$$, '42704: definition "none" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]'),
  ($$'s', '* * * * *', 'job', queue => 'none'$$, '42704: queue "none" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]'),
  ($$'s', '* * * * *', 'job', overlap => 'maybe'$$, '22023: unknown value "maybe" of overlap [Say skip, queue, parallel or replace.]'),
  ($$'s', '* * * * *', 'job', catch_up => 'some'$$, '22023: unknown value "some" of catch_up [Say none, one or all.]'),
  ($$'s', '* * * * *', 'job', catch_up_window => '0'$$, '22023: catch_up_window must be positive, and not exceed 1 year'),
  ($$'s', '* * * * *', 'job', catch_up_window => '2 years'$$, '22023: catch_up_window must be positive, and not exceed 1 year'),
  ($$'s', '* * * * *', 'job', timezone => 'x'$$, '22023: time zone "x" not recognized [The view pg_timezone_names lists the names.]'),
  ($$'s', '0 0 31 4 *', 'job'$$, '22023: invalid cron line "0 0 31 4 *": it never comes due [No month that it names has such a day.]'),
  ($$'s', at => '2026-04-30', definition => 'job'$$, '22023: at is in the past [Use orchestrator.enqueue() to run a task now.]'),
  ($$'s', at => 'infinity', definition => 'job'$$, '22023: at must be finite'),
  ($$'s', '* * * * *', 'job', priority => 9999999$$, '22023: priority must be between -1000000 and 1000000'),
  ($$'s', '* * * * *', 'job', metadata => '[]'$$, '22023: metadata is not an object'),
  ($$'s', '* * * * *', 'job', owner => 'nobody_here'$$, '42704: role "nobody_here" does not exist')
) bad(call, message);
SELECT is((SELECT count(*) FROM orchestrator.schedule), 0::bigint, 'what was refused leaves nothing');

-- A slot is decided once.
SELECT is(orchestrator.schedule('s', '*/5 * * * *', 'job', '{"a": 1}', priority => 7, metadata => '{"b": 2}', description => 'a note'), '2026-05-01 09:05', 'it returns the next time');
SELECT is(orchestrator.tick(), 0, 'nothing is due');
SELECT is(tick_at('2026-05-01 09:05'), 1, 'its time has come');
SELECT is(array[orchestrator.tick(), orchestrator.tick()], '{0,0}', 'and is over');
SELECT is(slots('s'), '01 09:05 pending', 'a task');
SELECT is(to_jsonb(x), '{"input": {"a": 1}, "metadata": {"b": 2, "slot": "2026-05-01T09:05:00+00:00", "schedule": "s"}, "name": "s", "priority": 7}', 'with what was given')
FROM (SELECT t.input, t.metadata, t.name, t.priority FROM orchestrator.task t WHERE t.name = 's') x;
SELECT is((s.state, s.next_at, s.last_slot, s.last_state, s.problem, s.description)::text, '(active,"2026-05-01 09:10:00+00","2026-05-01 09:05:00+00",pending,,"a note")', 'the view tells')
FROM orchestrator.schedule_status s;
SELECT is(orchestrator.schedule('s', '*/5 * * * *', 'job', '{"a": 2}'), '2026-05-01 09:10', 'made again, it goes on');
SELECT clock_at('2026-05-01 09:20:30');
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT is(orchestrator.schedule('s', '*/5 * * * *', 'job', '{"a": 3}'), '2026-05-01 09:10', 'even when something is due');
SELECT is(orchestrator.tick(), 1, 'which is not lost');
SELECT is((SELECT t.input FROM orchestrator.task t WHERE t.name = 's' ORDER BY t.id DESC LIMIT 1), '{"a": 3}', 'as it is now');
SELECT is(orchestrator.schedule('s', '*/7 * * * *', 'job'), '2026-05-01 09:21', 'of other times, it begins anew');
SELECT orchestrator.unschedule('s');
SELECT is((SELECT count(*) FROM orchestrator.schedule_status), 0::bigint, 'unschedule()');
SELECT is(error_of($$SELECT orchestrator.unschedule('s')$$), '42704: schedule "s" does not exist [The view orchestrator.schedule_status lists them; say owner => for one of another role.]', 'once');

-- Three hours without a tick.
SELECT clock_at('2026-05-01 09:00:10');
SELECT orchestrator.schedule('none', '*/5 * * * *', 'job', catch_up => 'none', overlap => 'parallel'), orchestrator.schedule('one', '*/5 * * * *', 'job', overlap => 'parallel'),
       orchestrator.schedule('all', '*/5 * * * *', 'job', catch_up => 'all', overlap => 'parallel'),
       orchestrator.schedule('hour', '*/5 * * * *', 'job', catch_up => 'all', overlap => 'parallel', catch_up_window => '1 hour');
SELECT is(tick_at('2026-05-01 12:04'), 1 + 36 + 12, 'three hours later');
SELECT is(counts('none'), '0 enqueued, 0 skipped, 36 missed, 0 waiting', 'none: nothing');
SELECT is(counts('one') || ': ' || slots('one'), '1 enqueued, 0 skipped, 35 missed, 0 waiting: 01 12:00 pending', 'one: the last');
SELECT is((SELECT array_agg(t.metadata ->> 'slot' ORDER BY t.id) FROM orchestrator.task t WHERE t.name = 'all'),
          (SELECT array_agg(to_char(x, 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"') ORDER BY x) FROM generate_series(timestamptz '2026-05-01 09:05', '2026-05-01 12:00', '5 minutes') x), 'all: each, in order');
SELECT is(counts('hour'), '12 enqueued, 0 skipped, 24 missed, 0 waiting', 'all, of a window');
SELECT is(orchestrator.tick(), 0, 'once');
SELECT is(tick_at('2026-05-01 12:06'), 4, 'a minute late is in time');
SELECT is(slots('none'), '01 12:05 pending', 'also for none');
SELECT orchestrator.unschedule(n) FROM unnest('{none,one,hour}'::text[]) n;
SELECT is(array[tick_at('2026-05-02 12:06'), tick_at('2026-05-02 12:07')], '{200,88}', 'a day later: two hundred at once, the rest with the next tick');
SELECT is((SELECT count(*) || ' ' || count(DISTINCT t.metadata ->> 'slot') || ' ' || max(t.metadata ->> 'slot') FROM orchestrator.task t WHERE t.name = 'all'), '325 325 2026-05-02T12:05:00+00:00', 'each once');
SELECT orchestrator.unschedule('all');
SELECT orchestrator.cancel_many(all_tasks => true);

-- The clock is put back and on.
SELECT clock_at('2026-05-01 09:00:10');
SELECT orchestrator.schedule('clock', '0 * * * *', 'job', overlap => 'parallel');
SELECT is(tick_at('2026-05-01 10:00'), 1, 'at ten');
SELECT is(tick_at('2026-05-01 08:30') + tick_at('2026-05-01 09:00') + tick_at('2026-05-01 10:00'), 0, 'two hours back: not again');
SELECT is(tick_at('2026-05-01 11:00'), 1, 'it goes on');
SELECT is(tick_at('2026-05-01 13:30'), 1, 'forward: as if no one had ticked');
SELECT is(tick_at('2040-01-01 00:00'), 1, 'into the future');
SELECT is(tick_at('2026-05-01 13:31'), 0, 'and back, for it was wrong');
SELECT is(tick_at('2026-05-01 14:00'), 1, 'does not stop it');
SELECT is(slots('clock'), '01 10:00 pending, 01 11:00 pending, 01 13:00 pending, 01 00:00 pending, 01 14:00 pending', 'each slot once');
SELECT orchestrator.unschedule('clock');

-- Overlap
SELECT clock_at('2026-05-01 09:00:10');
SELECT orchestrator.schedule('skip', '* * * * *', 'job'), orchestrator.schedule('queue', '* * * * *', 'job', overlap => 'queue'),
       orchestrator.schedule('parallel', '* * * * *', 'job', overlap => 'parallel'), orchestrator.schedule('replace', '* * * * *', 'job', overlap => 'replace');
SELECT is(array[tick_at('2026-05-01 09:01'), tick_at('2026-05-01 09:02'), tick_at('2026-05-01 09:03')], '{4,2,2}', 'the task before is not finished');
SELECT is(counts('skip') || ': ' || slots('skip'), '1 enqueued, 2 skipped, 0 missed, 0 waiting: 01 09:01 pending', 'skip');
SELECT is(counts('queue') || ': ' || slots('queue'), '1 enqueued, 0 skipped, 0 missed, 2 waiting: 01 09:01 pending', 'queue');
SELECT is(slots('parallel'), '01 09:01 pending, 01 09:02 pending, 01 09:03 pending', 'parallel');
SELECT is(slots('replace'), '01 09:01 cancelled, 01 09:02 cancelled, 01 09:03 pending', 'replace');
SELECT is((SELECT t.error ->> 'detail' FROM orchestrator.task t WHERE t.name = 'replace' ORDER BY t.id LIMIT 1), 'replaced by the next task of schedule "replace"', 'which says why');
SELECT claim(100);
SELECT settle_completed(t.id) FROM orchestrator.task t WHERE t.state = 'running' ORDER BY t.id;
SELECT is(counts('queue') || ': ' || slots('queue'), '2 enqueued, 0 skipped, 0 missed, 1 waiting: 01 09:01 completed, 01 09:02 pending', 'queue: the next follows at once');
SELECT orchestrator.cancel(t.id) FROM orchestrator.task t WHERE t.name = 'queue' AND t.live;
SELECT is(slots('queue'), '01 09:01 completed, 01 09:02 cancelled, 01 09:03 pending', 'also after one that was cancelled');
SELECT is(tick_at('2026-05-01 09:04'), 3, 'the others go on');
SELECT orchestrator.unschedule(n) FROM unnest('{skip,parallel,replace}'::text[]) n;
DO $$ BEGIN FOR i IN 5 .. 110 LOOP PERFORM tick_at(timestamptz '2026-05-01 09:00' + i * interval '1 minute'); END LOOP; END $$;
SELECT is(counts('queue'), '3 enqueued, 7 skipped, 0 missed, 100 waiting', 'a hundred wait');
UPDATE orchestrator.task_live t SET callbacks = NULL WHERE t.name = 'queue';
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT is(counts('queue'), '3 enqueued, 7 skipped, 0 missed, 100 waiting', 'the end of the task was not heard of');
SELECT is(tick_at('2026-05-01 10:50'), 1, 'the tick sees it');
SELECT is(orchestrator.schedule('queue', '* * * * *', 'job'), '2026-05-01 10:51', 'another overlap');
SELECT is(counts('queue'), '4 enqueued, 106 skipped, 0 missed, 0 waiting', 'lets go of those that wait');
SELECT orchestrator.unschedule('queue'), orchestrator.cancel_many(all_tasks => true);

-- All of them, one after the other: nothing is left out, however many.
SELECT clock_at('2026-05-01 09:00:10');
SELECT orchestrator.schedule('s', '* * * * *', 'job', catch_up => 'all');
SELECT is((SELECT s.overlap FROM orchestrator.schedule_status s), 'queue', 'catch_up => all waits by itself');
SELECT is(tick_at('2026-05-01 12:00'), 1, 'three hours later, the first');
DO $$ BEGIN
  LOOP
    PERFORM orchestrator.cancel_many(all_tasks => true);
    PERFORM orchestrator.tick();
    EXIT WHEN NOT EXISTS (SELECT FROM orchestrator.task t WHERE t.live);
  END LOOP;
END $$;
SELECT is(counts('s'), '180 enqueued, 0 skipped, 0 missed, 0 waiting', 'and the others after it');
SELECT is((SELECT count(DISTINCT t.metadata ->> 'slot') FROM orchestrator.task t WHERE t.name = 's' AND t.metadata ->> 'slot' < '2026-05-01T12:00:01+00:00'), 180::bigint, 'each once');
SELECT orchestrator.unschedule('s');

-- Once
SELECT clock_at('2026-06-01 09:00:10');
SELECT is(orchestrator.schedule('once', at => '2026-06-01 10:30', definition => 'job'), '2026-06-01 10:30', 'at a time');
SELECT is(tick_at('2026-06-01 10:29'), 0, 'not before');
SELECT is(tick_at('2026-06-01 10:31'), 1, 'then');
SELECT is((SELECT s.state || coalesce(s.next_at::text, '') FROM orchestrator.schedule_status s), 'done', 'and that is it');
SELECT is(orchestrator.schedule('once', at => '2026-06-01 10:30', definition => 'job'), NULL, 'made again, it stays done');
SELECT is(tick_at('2026-06-08 10:29'), 0, 'for a week it can be seen');
SELECT is((SELECT count(*) FROM orchestrator.schedule_status), 1::bigint, 'here');
SELECT is(tick_at('2026-06-08 10:31'), 0, 'then it is forgotten');
SELECT is((SELECT count(*) FROM orchestrator.schedule_status), 0::bigint, 'gone');
SELECT orchestrator.schedule('once', at => '2026-06-09 10:30', definition => 'job', catch_up => 'none');
SELECT is(tick_at('2026-06-09 10:40'), 0, 'too late for catch_up => none');
SELECT is(counts('once'), '0 enqueued, 0 skipped, 1 missed, 0 waiting', 'missed');
SELECT is(orchestrator.schedule('once', at => '2026-06-09 10:50', definition => 'job', catch_up => 'none'), '2026-06-09 10:50', 'another time');
SELECT orchestrator.unschedule('once');

-- Pause, resume, run_now
SELECT clock_at('2026-06-10 09:00:10');
SELECT orchestrator.schedule('s', '*/5 * * * *', 'job', overlap => 'parallel');
SELECT orchestrator.pause_schedule('s');
SELECT is(tick_at('2026-06-10 09:30'), 0, 'paused');
SELECT is((s.state, s.next_at, s.paused, s.paused_at IS NOT NULL)::text, '(paused,,t,t)', 'the view tells') FROM orchestrator.schedule_status s;
SELECT orchestrator.run_now('s') AS now \gset
SELECT is(state_of(:now), 'pending', 'run_now() all the same');
SELECT is((task(:now)).metadata, '{"schedule": "s"}', 'it has no slot');
SELECT is(orchestrator.resume_schedule('s'), '2026-06-10 09:35', 'resumed');
SELECT is(orchestrator.tick(), 0, 'nothing is made up for');
SELECT is(tick_at('2026-06-10 09:35'), 1, 'it goes on');
SELECT orchestrator.unschedule('s'), orchestrator.cancel_many(all_tasks => true);

-- Roles
GRANT schedule_other TO schedule_app;
SELECT value_of($$SELECT orchestrator.define('theirs', 'SELECT 1', 'sql')$$, 'schedule_app'), value_of($$SELECT orchestrator.define('theirs', 'SELECT 2', 'sql')$$, 'schedule_other');
SELECT is(value_of($$SELECT orchestrator.schedule('s', '* * * * *', 'theirs')$$, 'schedule_app'), '2026-06-10 09:36:00+00', 'a role schedules');
SELECT is(value_of($$SELECT orchestrator.schedule('s', '* * * * *', 'theirs', owner => 'schedule_other')$$, 'schedule_app'), '2026-06-10 09:36:00+00', 'also for one that it is a member of');
SELECT is(error_of($$SELECT orchestrator.schedule('s', '* * * * *', 'theirs', owner => 'schedule_app')$$, 'schedule_other'), '42501: must be a member of role "schedule_app"', 'not for others');
SELECT is(error_of($$SELECT orchestrator.schedule('s', '* * * * *', 'theirs', owner => 'schedule_app')$$, 'schedule_admin'), '42501: must be a member of role "schedule_app"', 'not even an administrator: the task runs with its rights');
SELECT is(error_of($$SELECT orchestrator.tick()$$, 'schedule_app'), '42501: permission denied for function tick', 'tick() is for administrators: it locks what everybody has');
SELECT is(value_of($$SELECT orchestrator.tick() IS NOT NULL$$, 'schedule_admin'), 'true', 'who may');
SELECT is(value_of($$SELECT count(*) FROM orchestrator.schedule_status$$, 'schedule_other'), '1', 'a role sees its own');
SELECT is(value_of($$SELECT count(*) FROM orchestrator.schedule$$, 'schedule_app'), '2', 'and those of its groups');
SELECT is(error_of($$SELECT orchestrator.unschedule('s', 'schedule_app')$$, 'schedule_other'), '42501: must be a member of role "schedule_app", or an administrator [An administrator is made by orchestrator.grant_usage(role, ''admin'').]', 'and changes no other''s');
SELECT tick_at('2026-06-10 09:36');
SELECT is((SELECT string_agg(DISTINCT o.name::text, ' ' ORDER BY o.name::text) FROM orchestrator.task t JOIN orchestrator.owner o ON o.id = t.owner WHERE t.name = 's' AND t.live), 'schedule_app schedule_other', 'tasks belong to who scheduled');
SELECT is(error_of($$SELECT orchestrator.pause_schedule('s', 'schedule_other')$$, 'schedule_admin'), 'no error', 'an administrator may stop them');
SELECT orchestrator.unschedule('s', 'schedule_other'), orchestrator.cancel_many(all_tasks => true);

-- What is wrong with one does not stop others.
SELECT orchestrator.schedule('fine', '* * * * *', 'job', overlap => 'parallel');
SELECT orchestrator.define('gone', 'SELECT 1', 'sql');
SELECT orchestrator.schedule('broken', '* * * * *', 'gone', overlap => 'parallel', catch_up => 'all');
SELECT orchestrator.drop_definition('gone');
SELECT is((s.state, s.problem)::text, '(failing,"definition ""gone"" does not exist")', 'a definition was dropped: the view knows') FROM orchestrator.schedule_status s WHERE s.schedule = 'broken';
REVOKE schedule_other FROM schedule_app;
SELECT orchestrator.revoke_usage('schedule_app');
SELECT is(tick_at('2026-06-10 09:37'), 1, 'one of three');
SELECT is(slots('fine'), '10 09:37 pending', 'the good one');
SELECT is((s.state, s.failures, s.error ->> 'sqlstate', s.error ->> 'message')::text, '(failing,1,42704,"definition ""gone"" does not exist")', 'the others say why') FROM orchestrator.schedule_status s WHERE s.schedule = 'broken';
SELECT is((s.problem, s.error ->> 'hint')::text, '("role ""schedule_app"" may no longer enqueue","An administrator gives it back with orchestrator.grant_usage(''schedule_app'').")', 'a role lost its rights') FROM orchestrator.schedule_status s WHERE s.schedule = 's';
SELECT is(array[tick_at('2026-06-10 09:38'), tick_at('2026-06-10 09:39'), tick_at('2026-06-10 09:40')], '{1,1,1}', 'they are tried again');
SELECT is((SELECT s.failures FROM orchestrator.schedule_status s WHERE s.schedule = 'broken'), 3, 'less and less often');
SELECT orchestrator.define('gone', 'SELECT 1', 'sql'), orchestrator.grant_usage('schedule_app');
SELECT is(tick_at('2026-06-10 09:45'), 1 + 9 + 1, 'set right, they go on');
SELECT is((SELECT count(DISTINCT t.metadata ->> 'slot') FROM orchestrator.task t WHERE t.name = 'broken'), 9::bigint, 'and lost nothing');
SELECT is((s.state, s.failures, s.error, s.problem)::text, '(active,0,,)', 'all is well') FROM orchestrator.schedule_status s WHERE s.schedule = 'broken';
SELECT orchestrator.cancel_many(all_tasks => true);
ALTER ROLE schedule_app RENAME TO schedule_renamed;
SELECT is(tick_at('2026-06-10 09:46'), 2, 'a role was renamed');
SELECT is((s.error ->> 'sqlstate', s.problem)::text, '(OR005,"role ""schedule_app"" was dropped or renamed")', 'it is not the same') FROM orchestrator.schedule_status s WHERE s.schedule = 's';
SELECT is(error_of($$SELECT orchestrator.run_now('s')$$, 'schedule_renamed'), '42704: schedule "s" does not exist [The view orchestrator.schedule_status lists them; say owner => for one of another role.]', 'and has no schedules');

SELECT * FROM finish();
ROLLBACK;
