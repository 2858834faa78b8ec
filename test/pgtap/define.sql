-- define() and drop_definition(): versions, defaults, what is refused, the guard of the handlers.
\ir lib/setup.psql
SELECT plan(150);

CREATE ROLE define_app LOGIN;
CREATE ROLE define_other LOGIN;
CREATE ROLE define_boss LOGIN;
CREATE ROLE define_member LOGIN IN ROLE define_app;
SELECT orchestrator.grant_usage('define_app'), orchestrator.grant_usage('define_other'), orchestrator.grant_usage('define_boss', 'admin');
CREATE SCHEMA lib;
CREATE SCHEMA closed;
GRANT USAGE ON SCHEMA lib TO PUBLIC;
CREATE FUNCTION lib.echo(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.many(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.nothing(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION lib.a_set(jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.a_text(jsonb) RETURNS text LANGUAGE sql AS $$SELECT ''$$;
CREATE FUNCTION lib.two(jsonb, int DEFAULT 1) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.secret(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
REVOKE ALL ON FUNCTION lib.secret FROM PUBLIC;
CREATE FUNCTION closed.echo(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib."Odd name"(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE PROCEDURE lib.work(jsonb) LANGUAGE sql AS '';
CREATE PROCEDURE lib.gives(INOUT jsonb) LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION pg_temp.echo(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';

-- Versions
SELECT is(orchestrator.define('a', 'lib.echo'), 1, 'the first definition is version 1');
SELECT is(orchestrator.define('a', 'lib.echo'), 1, 'an equal one returns the version it has');
SELECT is((SELECT count(*) FROM orchestrator.definition WHERE name = 'a'), 1::bigint, 'and adds no row');
SELECT is(orchestrator.define('a', 'lib.echo(jsonb)'), 1, 'the signature written out is equal');
SELECT is(orchestrator.define('a', 'lib.echo( pg_catalog.jsonb )'), 1, 'with its type qualified, too');
SELECT is(orchestrator.define('a', 'lib.echo', max_attempts => 3), 1, 'a default written out is equal');
SELECT is(orchestrator.define('a', 'lib.echo', retry_delay => '1000 milliseconds'), 1, 'an interval written differently is equal');
SELECT is(value_of(format('SELECT orchestrator.define(''a'', ''lib.echo'', %s)', what)), '1', 'so is ' || what)
  FROM unnest(ARRAY[$$kind => 'function'$$, $$kind => NULL$$, $$priority => 0$$, $$backoff => 'exponential'$$, $$backoff => NULL$$, $$retry_delay => '1 s'$$, $$max_retry_delay => '60 min'$$,
    $$retry_jitter => 0.10$$, $$never_retry => '{}'$$, $$retry_priority_step => 1$$, $$timeout_policy => 'retry'$$, $$notify => 'lifecycle'$$, $$notify => NULL$$,
    $$batch_wait => '0'$$, $$preset => 'light', priority => 0, retry_priority_step => 1$$]) what;
SELECT is(orchestrator.define('coded', 'lib.echo', never_retry => '{23505,40}'), 1, 'codes');
SELECT is(orchestrator.define('coded', 'lib.echo', never_retry => codes), 1, 'are equal as ' || codes::text) FROM (VALUES ('{40,23505}'::text[]), ('{40,40,23505}')) c(codes);
SELECT is(orchestrator.define('coded', 'lib.echo', never_retry => codes), version, 'but not as ' || codes::text) FROM (VALUES ('{23505}'::text[], 2), ('{23505,40,41}', 3), ('{}', 4)) c(codes, version);
SELECT is(orchestrator.define('a', 'lib.echo', max_attempts => 5), 2, 'a changed one is the next version');
SELECT is((SELECT array_agg(version) FROM orchestrator.definition WHERE name = 'a' AND is_current), '{2}', 'only that is current');
SELECT is(orchestrator.define('a', 'lib.echo'), 1, 'an older one is found again');
SELECT is((SELECT array_agg(version) FROM orchestrator.definition WHERE name = 'a' AND is_current), '{1}', 'and is current again');
SELECT is(orchestrator.define('a', 'lib.echo', description => 'x'), 3, 'versions are never given twice');
SELECT is(orchestrator.define('a', 'lib.nothing'), 4, 'another handler is another version');
SELECT is(orchestrator.define('a', 'lib.nothing', metadata => '{"b": 1, "a": 2}'), 5, 'metadata is part of it');
SELECT is(orchestrator.define('a', 'lib.nothing', metadata => '{"a": 2, "b": 1}'), 5, 'in any order of its keys');
SET LOCAL quote_all_identifiers = on;
SELECT is(orchestrator.define('a', 'lib.nothing', metadata => '{"a": 2, "b": 1}'), 5, 'nor does it matter how the session has names quoted');
SET LOCAL quote_all_identifiers = off;
SET LOCAL extra_float_digits = -15;
SELECT isnt(orchestrator.define('jitter', 'lib.echo', retry_jitter => 0.12), orchestrator.define('jitter', 'lib.echo', retry_jitter => 0.14), 'or how many digits it shows');
SET LOCAL extra_float_digits = 1;
SELECT orchestrator.enqueue('a');
SELECT is((SELECT d.version FROM orchestrator.definition d JOIN orchestrator.task t ON t.definition = d.id), 5,
          'enqueue takes the current version');
SELECT is(orchestrator.define('a', 'lib.echo'), 1, 'while a task is under way');
SELECT is((SELECT d.version FROM orchestrator.definition d JOIN orchestrator.task t ON t.definition = d.id), 5,
          'a task keeps the version it was enqueued with');
SELECT orchestrator.cancel_many(all_tasks => true);

-- What is kept
SELECT orchestrator.define('plain', 'lib.echo');
SELECT is(to_jsonb(d) - '{id,owner,created_at,handler_owner,success_callback,failure_callback,checkpoint_interval,max_steps,max_depth,document,steps,step_names,plan,endpoint,request}'::text[],
          '{"concurrency_key": null, "key_max_running": null, "key_rate_limit": null, "key_rate_period": null, "batch_size": null,
            "batch_wait": null, "name": "plain", "version": 1, "is_current": true, "kind": "function", "handler": "lib.echo(jsonb)",
            "queue": null, "priority": 0, "max_attempts": 3, "backoff": "exponential", "retry_delay": "00:00:01",
            "max_retry_delay": "01:00:00", "retry_jitter": 0.1, "retry_budget": null, "never_retry": [],
            "retry_priority_step": 1, "timeout": null, "queue_timeout": null, "response_timeout": null,
            "timeout_policy": "retry", "max_running": null, "rate_limit": null, "rate_period": null,
            "notify": "lifecycle", "description": null, "estimated_duration": null, "metadata": null}'::jsonb,
          'the defaults of a definition')
FROM orchestrator.definition d WHERE name = 'plain';
SELECT orchestrator.define_queue('q');
SELECT orchestrator.define('full', 'lib.many', 'function', 'q', 7, 9, 'linear', '2 s', '3 min', 0.5, '1 day',
    '{23505,40}', 4, '5 s', '6 s', '7 s', 'fail', 8, 9, '10 s', 'all', 'words', '11 s', '{"m": 1}',
    concurrency_key => '$.a', key_max_running => 3, key_rate_limit => 4, key_rate_period => '12 s', batch_size => 5, batch_wait => '3 s');
SELECT is(to_jsonb(d) - '{id,owner,created_at,handler_owner,queue,success_callback,failure_callback,checkpoint_interval,max_steps,max_depth,document,steps,step_names,plan,endpoint,request}'::text[],
          '{"name": "full", "version": 1, "is_current": true, "kind": "function", "handler": "lib.many(jsonb[])",
            "concurrency_key": "$.a", "key_max_running": 3, "key_rate_limit": 4, "key_rate_period": "00:00:12",
            "batch_size": 5, "batch_wait": "00:00:03", "priority": 7, "max_attempts": 9, "backoff": "linear", "retry_delay": "00:00:02",
            "max_retry_delay": "00:03:00", "retry_jitter": 0.5, "retry_budget": "1 day", "never_retry": ["23505", "40"],
            "retry_priority_step": 4, "timeout": "00:00:05", "queue_timeout": "00:00:06", "response_timeout": "00:00:07",
            "timeout_policy": "fail", "max_running": 8, "rate_limit": 9, "rate_period": "00:00:10",
            "notify": "all", "description": "words", "estimated_duration": "00:00:11", "metadata": {"m": 1}}'::jsonb,
          'every parameter is kept, in the order of the contract')
FROM orchestrator.definition d WHERE name = 'full';
SELECT is(q.name, 'q', 'and the queue') FROM orchestrator.definition d JOIN orchestrator.queue q ON q.id = d.queue WHERE d.name = 'full';
SELECT is(orchestrator.define('plain', 'lib.echo', queue => 'default'), 2, 'to name queue "default" is not to name none');
SELECT orchestrator.enqueue_workflow(ARRAY[orchestrator.step('default', definition => 'plain'), orchestrator.step('q', definition => 'roams')], queue => 'q') AS run
  FROM orchestrator.define('roams', 'lib.echo') \gset
SELECT is((SELECT string_agg(t.name || ' in ' || q.name, ', ' ORDER BY t.step) FROM orchestrator.task t JOIN orchestrator.queue q ON q.id = t.queue WHERE t.parent_id = :run),
          'default in default, q in q', 'since without one a step waits in the queue of its run');
SELECT orchestrator.cancel(:run);
SELECT is(orchestrator.define('plain', 'lib.echo'), 1, 'each is found again');
SELECT is(d.handler_owner, current_user, 'the owner of the handler is kept by name') FROM orchestrator.definition d WHERE name = 'plain';
SELECT is(d.owner, owner_id(), 'the definition belongs to who made it') FROM orchestrator.definition d WHERE name = 'plain';
SELECT orchestrator.define('slow', 'lib.echo', retry_delay => '2 days');
SELECT is(max_retry_delay, '2 days'::interval, 'max_retry_delay is not below retry_delay unless it is given')
FROM orchestrator.definition WHERE name = 'slow';

-- Handlers
SELECT is(orchestrator.define('void', 'lib.nothing'), 1, 'a function may return void');
SELECT is(orchestrator.define('odd', 'lib."Odd name"'), 1, 'a handler may have a quoted name');
SELECT is(handler, 'lib."Odd name"(jsonb)', 'which stays quoted') FROM orchestrator.definition WHERE name = 'odd';
SELECT is(orchestrator.define('fold', 'LIB.Echo'), 1, 'an unquoted name is folded');
SELECT is(handler, 'lib.echo(jsonb)', 'and kept so') FROM orchestrator.definition WHERE name = 'fold';
SELECT is(orchestrator.define('proc', 'lib.work', 'procedure'), 1, 'a procedure');
SELECT is(orchestrator.define('cmd', 'SELECT $1', 'sql'), 1, 'a command');
SELECT is(handler || coalesce(handler_owner, '-'), 'SELECT $1-', 'is kept as it is') FROM orchestrator.definition WHERE name = 'cmd';
SELECT is(orchestrator.define('util', 'VACUUM', 'utility'), 1, 'a utility');

SELECT written() AS before \gset
SELECT is(error_of($$SELECT orchestrator.define('x', 'echo')$$),
          '22023: handler "echo" is not the name of a function [Write schema.name or schema.name(jsonb).]', 'a handler names its schema');
SELECT is(error_of($$SELECT orchestrator.define('x', 'a.b.c')$$),
          '22023: handler "a.b.c" is not the name of a function [Write schema.name or schema.name(jsonb).]', 'and no database');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.echo; DROP')$$),
          '22023: handler "lib.echo; DROP" is not the name of a function [Write schema.name or schema.name(jsonb).]', 'and is nothing but a name');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.echo(text)')$$),
          '22023: handler "lib.echo(text)" is not the name of a function [Write schema.name or schema.name(jsonb).]', 'with no other argument');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.no')$$),
          '42883: function lib.no(jsonb) does not exist [A handler of kind function is a function with one argument, of type jsonb.]',
          'a function that is missing');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.two')$$),
          '42883: function lib.two(jsonb) does not exist [A handler of kind function is a function with one argument, of type jsonb.]',
          'a function of two arguments');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.work')$$),
          '42883: function lib.work(jsonb) does not exist [A handler of kind function is a function with one argument, of type jsonb.]',
          'a procedure is no function');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.echo', 'procedure')$$),
          '42883: procedure lib.echo(jsonb) does not exist [A handler of kind procedure is a procedure with one argument, of type jsonb.]',
          'a function is no procedure');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'lib.a_set')$$), '^42P13: function lib.a_set\(jsonb\) cannot be a handler \[A function must', 'a set');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'lib.a_text')$$), '^42P13: function lib.a_text\(jsonb\) cannot', 'another type');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'lib.gives', 'procedure')$$), '^42P13: procedure lib.gives\(jsonb\) cannot', 'a procedure with a result');
SELECT matches(error_of(format($$SELECT orchestrator.define('x', '%s.echo')$$, (SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()))),
               '^42P13: function pg_temp_\d+.echo\(jsonb\) cannot', 'a temporary function');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.secret')$$, 'define_app'),
          '42501: permission denied for function lib.secret(jsonb) [GRANT EXECUTE ON FUNCTION lib.secret(jsonb), and USAGE on its schema.]',
          'EXECUTE on the handler is needed');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'closed.echo')$$, 'define_app'), '^42501: permission denied for function closed.echo',
               'and USAGE on its schema');
SELECT is(error_of($$SELECT orchestrator.define('x', E' ;\n', 'sql')$$),
          '22023: definition "x" has no handler [Give the name of a function or procedure, or a command.]', 'an empty command');
SELECT matches(error_of($$SELECT orchestrator.define('x', NULL)$$), '^22023: definition "x" has no handler', 'no handler');

-- What else is refused
SELECT is(error_of($$SELECT orchestrator.define(NULL, 'lib.echo')$$), '22023: the name of a definition must not be null', 'no name');
SELECT is(error_of($$SELECT orchestrator.define('', 'lib.echo')$$), '22023: the name of a definition must have 1 to 200 bytes', 'an empty name');
SELECT is(error_of($$SELECT orchestrator.define(repeat('ä', 101), 'lib.echo')$$), '22023: the name of a definition must have 1 to 200 bytes', 'a long name');
SELECT is(error_of($$SELECT orchestrator.define('orchestrator.run.sql', 'lib.echo')$$),
          '22023: definition "orchestrator.run.sql" has a reserved name [Names that begin with "orchestrator." are the engine''s own.]', 'a reserved name');
SELECT is(error_of(format($$SELECT orchestrator.define('x', 'lib.echo', %s)$$, parameter)), message, parameter)
FROM (VALUES
  ($$kind => 'smtp'$$,                 '22023: unknown kind "smtp" [Kinds are function, sql, procedure, utility, remote, http, llm, embedding, tool, webhook and summarize.]'),
  ($$backoff => 'random'$$,            '22023: unknown backoff "random" [Say exponential, fixed or linear.]'),
  ($$timeout_policy => 'ignore'$$,     '22023: unknown timeout_policy "ignore" [Say retry, fail, fail_workflow or alert.]'),
  ($$notify => 'yes'$$,                '22023: unknown value "yes" of notify [Say off, lifecycle or all.]'),
  ($$max_attempts => 0$$,              '22023: max_attempts must be between 1 and 10000'),
  ($$max_attempts => 10001$$,          '22023: max_attempts must be between 1 and 10000'),
  ($$priority => 1000001$$,            '22023: priority must be between -1000000 and 1000000'),
  ($$retry_priority_step => -1$$,      '22023: retry_priority_step must be between 0 and 1000000'),
  ($$retry_jitter => 1.1$$,            '22023: retry_jitter must be between 0 and 1'),
  ($$retry_jitter => 'NaN'$$,          '22023: retry_jitter must be between 0 and 1'),
  ($$retry_delay => '-1 s'$$,          '22023: retry_delay must not be negative, nor exceed 100 years'),
  ($$max_retry_delay => '-1 s'$$,      '22023: max_retry_delay must not be negative, nor exceed 100 years'),
  ($$retry_delay => '101 years'$$,     '22023: retry_delay must not be negative, nor exceed 100 years'),
  ($$retry_budget => '0'$$,            '22023: retry_budget must be positive, and not exceed 100 years'),
  ($$timeout => '0'$$,                 '22023: timeout must be positive, and not exceed 100 years'),
  ($$queue_timeout => '-1 s'$$,        '22023: queue_timeout must be positive, and not exceed 100 years'),
  ($$response_timeout => '0'$$,        '22023: response_timeout must be positive, and not exceed 100 years'),
  ($$max_running => 0$$,               '22023: max_running must be positive'),
  ($$rate_limit => 0, rate_period => '1 s'$$, '22023: rate_limit must be positive'),
  ($$rate_limit => 1$$,                '22023: rate_limit and rate_period belong together'),
  ($$rate_period => '1 s'$$,           '22023: rate_limit and rate_period belong together'),
  ($$never_retry => '{2350}'$$,        '22023: "2350" is neither an SQLSTATE nor a class of them [never_retry takes codes like 23505 and classes like 23.]'),
  ($$never_retry => '{23505,p0001}'$$, '22023: "p0001" is neither an SQLSTATE nor a class of them [never_retry takes codes like 23505 and classes like 23.]'),
  ($$never_retry => '{23505,NULL}'$$,  '22023: "" is neither an SQLSTATE nor a class of them [never_retry takes codes like 23505 and classes like 23.]'),
  ($$queue => 'nowhere'$$,             '42704: queue "nowhere" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]'),
  ($$owner => 'define_nobody'$$,       '42704: role "define_nobody" does not exist')
) bad(parameter, message);
SELECT is(written(), :'before', 'a refused definition leaves nothing');

-- Names belong to roles
SELECT is(value_of($$SELECT orchestrator.define('a', 'SELECT 1', 'sql')$$, 'define_app'), '1', 'each role has its own names');
SELECT is(value_of($$SELECT orchestrator.define('c', 'SELECT 3', 'sql')$$, 'define_app'), '1', 'as many as it likes');
SELECT is((SELECT count(DISTINCT owner) FROM orchestrator.definition WHERE name = 'a'), 2::bigint, 'a redefinition does not touch another role''s');
SELECT is(error_of($$SELECT orchestrator.define('a', 'SELECT 1', 'sql', owner => 'define_app')$$, 'define_other'),
          '42501: must be a member of role "define_app", or an administrator [An administrator is made by orchestrator.grant_usage(role, ''admin'').]',
          'a stranger cannot define for a role');
CREATE SERVER here FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://here.example');
CREATE SERVER there FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://there.example');
GRANT USAGE ON FOREIGN SERVER here, there TO define_app;
SELECT value_of($$SELECT orchestrator.define('call', NULL, 'http', endpoint => 'here', request => '{"path": "a"}')$$, 'define_app');
-- a function that another owns since
CREATE FUNCTION lib.sold(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
SELECT value_of($$SELECT orchestrator.define('sold', 'lib.sold')$$, 'define_app');
ALTER FUNCTION lib.sold OWNER TO define_other;
SELECT is(error_of(format('SELECT orchestrator.define(%s, owner => ''define_app'')', what), 'define_boss'),
          '42501: must be a member of role "define_app" to say what its definition "' || name || '" runs [An administrator can change the rest of a definition: give its kind, handler, endpoint, request and callbacks as they are.]',
          'an administrator cannot have it run ' || what || ': that has the rights of who enqueues')
  FROM (VALUES ('a', $$'a', 'SELECT 2', 'sql'$$), ('a', $$'a', 'SELECT 1', 'utility'$$), ('b', $$'b', 'SELECT 1', 'sql'$$),
               ('a', $$'a', 'SELECT 1', 'sql', failure_callback => 'c'$$), ('a', $$'a', 'SELECT 1', 'sql', success_callback => 'c'$$),
               ('call', $$'call', NULL, 'http', endpoint => 'there', request => '{"path": "a"}'$$), ('call', $$'call', NULL, 'http', endpoint => 'here', request => '{"path": "b"}'$$),
               ('sold', $$'sold', 'lib.sold'$$)) x(name, what);
SELECT is(value_of($$SELECT orchestrator.define('call', NULL, 'http', endpoint => 'here', request => '{"path": "a"}', timeout => '9 s', owner => 'define_app')$$, 'define_boss'), '2', 'one that calls the same may wait otherwise');
SELECT is(value_of($$SELECT orchestrator.define('sold', 'lib.sold')$$, 'define_app'), '2', 'who owns it may take a function of another');
SELECT is(value_of($$SELECT orchestrator.define('a', 'SELECT 1', 'sql', max_attempts => 7, owner => 'define_app')$$, 'define_boss'), '2', 'but can change the rest');
SELECT is((max_attempts, handler)::text, '(7,"SELECT 1")', 'which is then what counts') FROM orchestrator.definition
  WHERE owner = owner_id('define_app') AND name = 'a' AND is_current;
SELECT is(orchestrator.define('a', 'SELECT 2', 'sql', owner => 'define_app'), 3, 'a superuser can');
SELECT orchestrator.grant_usage('define_member');
SELECT is(value_of($$SELECT orchestrator.define('m', 'SELECT 1', 'sql', owner => 'define_app')$$, 'define_member'), '1', 'a member can');
SELECT is(owner, owner_id('define_app'), 'and the role owns it') FROM orchestrator.definition WHERE name = 'm';

-- drop_definition
SELECT is(error_of($$SELECT orchestrator.drop_definition('nope')$$), '42704: definition "nope" does not exist', 'dropping what is missing');
SELECT is(error_of($$SELECT orchestrator.drop_definition('plain')$$, 'define_app'), '42704: definition "plain" does not exist', 'or a stranger''s');
SELECT is(error_of($$SELECT orchestrator.drop_definition('m', owner => 'define_app')$$, 'define_other'),
          '42501: must be a member of role "define_app", or an administrator [An administrator is made by orchestrator.grant_usage(role, ''admin'').]', 'or naming one');
SELECT is(error_of($$SELECT orchestrator.drop_definition('m', owner => 'define_app')$$, 'define_boss'), 'no error', 'an administrator may');
SELECT orchestrator.define('gone', 'lib.echo');
SELECT orchestrator.enqueue('gone') AS task \gset
SELECT is(error_of($$SELECT orchestrator.drop_definition('gone')$$),
          '2BP01: definition "gone" has tasks that are not finished [Wait for them, cancel them with orchestrator.cancel_many(), or drop with force => true.]',
          'unfinished tasks keep a definition');
SELECT is(is_current, true, 'which stays current') FROM orchestrator.definition WHERE name = 'gone';
SELECT orchestrator.drop_definition('gone', force => true);
SELECT is(state_of(:task), 'cancelled', 'force cancels them');
SELECT is((task(:task)).error ->> 'detail', 'definition "gone" was dropped', 'and says why');
SELECT is(error_of($$SELECT orchestrator.enqueue('gone')$$),
          '42704: definition "gone" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]',
          'a dropped definition cannot be enqueued');
SELECT is((SELECT count(*) FROM orchestrator.definition WHERE name = 'gone'), 1::bigint, 'its versions stay for the finished tasks');
SELECT is(error_of($$SELECT orchestrator.drop_definition('gone')$$), '42704: definition "gone" does not exist', 'it is dropped once');
SELECT is(orchestrator.define('gone', 'lib.echo'), 1, 'defined again it is the version it was');
SELECT is(error_of($$SELECT orchestrator.enqueue('gone')$$), 'no error', 'and can be enqueued');

-- The guard of the handlers
SELECT is(error_of('DROP FUNCTION lib.echo(jsonb)'),
          '2BP01: cannot drop lib.echo(jsonb): unfinished tasks of definition "gone" use it [Replace it with CREATE OR REPLACE, or end the tasks first with orchestrator.cancel_many() or drop_definition().]',
          'a handler that unfinished tasks need is not dropped');
SELECT matches(error_of('DROP SCHEMA lib CASCADE'), '^2BP01: cannot drop lib\.echo\(jsonb\)', 'nor its schema');
SELECT is(error_of('DROP FUNCTION closed.echo(jsonb)'), 'no error', 'one that is no handler is');
SET LOCAL quote_all_identifiers = on;
SELECT matches(error_of('DROP FUNCTION lib.echo(jsonb)'), '^2BP01: cannot drop lib\.echo\(jsonb\)', 'however the session has names quoted');
SET LOCAL quote_all_identifiers = off;
CREATE TABLE lib.source (a int, b int);
CREATE FUNCTION lib.atomic(jsonb) RETURNS jsonb LANGUAGE sql BEGIN ATOMIC SELECT to_jsonb(count(b)) FROM lib.source; END;
SELECT orchestrator.define('atomic', 'lib.atomic');
SELECT orchestrator.enqueue('atomic');
SELECT matches(error_of(command), '^2BP01: cannot drop lib\.atomic\(jsonb\)', 'nor is one dropped with what its body reads: ' || command)
FROM unnest(array['DROP TABLE lib.source CASCADE', 'ALTER TABLE lib.source DROP COLUMN b CASCADE']) command;
SELECT is(error_of('CREATE TEMP TABLE passing (i int); DROP TABLE passing'), 'no error', 'anything else is dropped as ever');
SELECT orchestrator.define('proc2', 'lib.work', 'procedure');
SELECT orchestrator.enqueue('proc2');
SELECT matches(error_of('DROP PROCEDURE lib.work(jsonb)'), '^2BP01: cannot drop lib\.work\(jsonb\)', 'a procedure is guarded, too');
SELECT is(error_of('CREATE OR REPLACE FUNCTION lib.echo(jsonb) RETURNS jsonb LANGUAGE sql AS ''SELECT $1'''), 'no error', 'replacing is fine');
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT is(error_of('DROP FUNCTION lib.echo(jsonb)'), 'no error', 'with its tasks ended a handler can be dropped');

SELECT * FROM finish();
ROLLBACK;
