-- Handlers that take many inputs: what define() refuses, the guard of the
-- handlers, item_error(), what there is outside of a call.
\ir lib/setup.psql
SELECT plan(56);

CREATE ROLE batch_app LOGIN;
SELECT orchestrator.grant_usage('batch_app');
CREATE SCHEMA lib;
GRANT USAGE ON SCHEMA lib TO PUBLIC;
CREATE FUNCTION lib.one(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.many(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.twin(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.twin(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.quiet(jsonb[]) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION lib.narrow(jsonb[]) RETURNS jsonb LANGUAGE sql AS 'SELECT $1[1]';
CREATE FUNCTION lib.a_set(jsonb[]) RETURNS SETOF jsonb[] LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION lib.secret(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1';
REVOKE ALL ON FUNCTION lib.secret FROM PUBLIC;
CREATE FUNCTION lib."Odd name"(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1';
CREATE PROCEDURE lib.work(jsonb[]) LANGUAGE sql AS '';
CREATE FUNCTION pg_temp.many(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1';

-- What is kept
SELECT is(orchestrator.define('a', 'lib.many', batch_size => 10), 1, 'a handler that takes many');
SELECT is(orchestrator.define('a', 'lib.many(jsonb[])', batch_size => 10), 1, 'the signature written out is equal');
SELECT is(orchestrator.define('a', 'lib.many( pg_catalog.jsonb [ ] )', batch_size => 10), 1, 'in any form');
SELECT is(orchestrator.define('a', 'lib.many', batch_size => 11), 2, 'another size is another version');
SELECT is(orchestrator.define('a', 'lib.many', batch_size => 11, batch_wait => '1 s'), 3, 'as is another wait');
SELECT is(orchestrator.define('a', 'lib.many', batch_size => 11, batch_wait => '0'), 2, 'no wait is none');
SELECT is(handler, 'lib.many(jsonb[])', 'the signature is stored') FROM orchestrator.definition WHERE name = 'a' AND is_current;
SELECT orchestrator.define('b', 'lib.twin', batch_size => 1), orchestrator.define('c', 'lib.twin'), orchestrator.define('q', 'lib.quiet', batch_size => 200),
       orchestrator.define('odd', 'lib."Odd name"', batch_size => 2, batch_wait => '1 day');
SELECT is(string_agg(handler, ' ' ORDER BY name), 'lib.twin(jsonb[]) lib.twin(jsonb)', 'batch_size says which of two functions') FROM orchestrator.definition WHERE name IN ('b', 'c');
SELECT is(handler, 'lib."Odd name"(jsonb[])', 'a name that needs quotes') FROM orchestrator.definition WHERE name = 'odd';
SELECT is(orchestrator.definition_json('odd') - 'metadata', '{"name": "odd", "handler": "lib.\"Odd name\"", "batch_size": 2, "batch_wait": "1 day"}', 'as a document');
SELECT is(orchestrator.definition_json('b') ->> 'handler', 'lib.twin', 'without the type of its argument');

-- What is refused
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.one', batch_size => 10)$$),
  '42883: function lib.one(jsonb[]) does not exist [With batch_size a handler is a function with one argument, of type jsonb[].]', 'a handler that takes one');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.one(jsonb)', batch_size => 10)$$),
  '22023: handler "lib.one(jsonb)" is not the name of a function [Write schema.name or schema.name(jsonb[]).]', 'and says so');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.many')$$),
  '42883: function lib.many(jsonb) does not exist [A handler of kind function is a function with one argument, of type jsonb.]', 'one that takes many, without batch_size');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.many(jsonb[])')$$),
  '22023: handler "lib.many(jsonb[])" is not the name of a function [Write schema.name or schema.name(jsonb).]', 'and says so');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.narrow', batch_size => 2)$$),
  '42P13: function lib.narrow(jsonb[]) cannot be a handler [A function must return jsonb[] or void and not a set; a procedure must have no output arguments; neither may be temporary.]', 'one result for many');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'lib.a_set', batch_size => 2)$$), '^42P13: function lib\.a_set\(jsonb\[\]\) cannot be a handler', 'a set');
SELECT matches(error_of(format('SELECT orchestrator.define(''x'', %L, batch_size => 2)', pg_my_temp_schema()::regnamespace || '.many')), '^42P13: ', 'a temporary function');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'lib.secret', batch_size => 2)$$, 'batch_app'), '^42501: permission denied for function lib\.secret\(jsonb\[\]\)', 'one it may not call');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.work', 'procedure', batch_size => 2)$$),
  '22023: batch_size with kind "procedure" [Only a function can take many inputs, one with an argument of type jsonb[]; and a call of kind embedding.]', 'a procedure');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'SELECT 1', 'sql', batch_size => 2)$$), '^22023: batch_size with kind "sql"', 'a command');
SELECT matches(error_of($$SELECT orchestrator.define('x', 'VACUUM', 'utility', batch_size => 2)$$), '^22023: batch_size with kind "utility"', 'a utility');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.many', batch_size => 0)$$), '22023: batch_size must be between 1 and 200', 'none at once');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.many', batch_size => 201)$$), '22023: batch_size must be between 1 and 200', 'more than a claim takes');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.one', batch_wait => '1 s')$$), '22023: batch_wait without batch_size [Give the number of tasks to wait for.]', 'a wait for nothing');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.many', batch_size => 2, batch_wait => '-1 s')$$), '22023: batch_wait must not be negative, nor exceed 1 day', 'a negative wait');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.many', batch_size => 2, batch_wait => '25 hours')$$), '22023: batch_wait must not be negative, nor exceed 1 day', 'a long wait');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.many', batch_size => 2, batch_wait => '1 min', queue_timeout => '1 min')$$),
  '22023: batch_wait must be shorter than queue_timeout [A task that waited for others so long would fail.]', 'a wait that is fatal');
SELECT is(error_of($$SELECT orchestrator.define('x', 'lib.many', batch_size => 2, batch_wait => '1 min', queue_timeout => '2 min')$$), 'no error', 'a shorter one is not');
SELECT matches(error_of($$SELECT orchestrator.step('s', 'lib.many', kind => 'function')$$), 'no error', 'a step may name anything');
SELECT matches(error_of($$SELECT orchestrator.define_workflow('w', ARRAY[orchestrator.step('s', 'lib.many')])$$), '^42883: step "s", key "handler": function lib\.many\(jsonb\) does not exist', 'but a handler of its own takes one input');
SELECT is(error_of($$SELECT orchestrator.define_workflow('w', ARRAY[orchestrator.step('s', definition => 'a'), orchestrator.step('t', definition => 'a', each => '$.input', needs => '{s}')])$$), 'no error', 'and a definition any');

-- The guard
SELECT orchestrator.enqueue('a');
SELECT is(error_of('DROP FUNCTION lib.many(jsonb[])'),
  '2BP01: cannot drop lib.many(jsonb[]): unfinished tasks of definition "a" use it [Replace it with CREATE OR REPLACE, or end the tasks first with orchestrator.cancel_many() or drop_definition().]',
  'a handler that is needed cannot be dropped');
SELECT orchestrator.enqueue('c');
SELECT is(error_of('DROP FUNCTION lib.twin(jsonb[])'), 'no error', 'one of another name or argument can');
SELECT matches(error_of('DROP FUNCTION lib.twin(jsonb)'), '^2BP01: cannot drop lib\.twin\(jsonb\): unfinished tasks of definition "c"', 'that one cannot');
SELECT orchestrator.cancel_many(all_tasks => true);
SELECT is(error_of('DROP FUNCTION lib.many(jsonb[])'), 'no error', 'without tasks it can');

-- item_error()
SELECT is(orchestrator.item_error('no'), '{"orchestrator.error": {"sqlstate": "P0001", "message": "no"}}', 'an error of an item');
SELECT is(orchestrator.item_error('no', '23505'), '{"orchestrator.error": {"sqlstate": "23505", "message": "no"}}', 'with a code');
SELECT is(orchestrator.item_error('no', retry => false), '{"orchestrator.error": {"sqlstate": "P0001", "message": "no", "retry": false}}', 'for good');
SELECT is(orchestrator.item_error(NULL, NULL, NULL), '{"orchestrator.error": {"sqlstate": "P0001", "message": null}}', 'nulls are the defaults');
SELECT is(error_of(format('SELECT orchestrator.item_error(''no'', %L)', code)),
  format('22023: "%s" is not the SQLSTATE of an error [Say five digits or capital letters, like 23505.]', code), format('no code: "%s"', code))
FROM unnest('{00000,2350,235055,abcde,"",A B C}'::text[]) code;
SELECT is(error_of($$SELECT orchestrator.item_error('no')$$, 'batch_app'), 'no error', 'a role may say so');

-- Outside of a call
SELECT is((SELECT count(*) FROM orchestrator.current_batch()), 0::bigint, 'no call: no batch');
SELECT is(error_of('SELECT orchestrator.current_batch()', 'batch_app'), 'no error', 'which a role may ask');
SELECT columns_are('orchestrator', 'worker_status', '{pid,kind,role,task_id,state,since,progress,message,stage,attempt,started_at,claimed,worker,lease_until}', 'workers are shown as before');

-- How an error of an item ends an attempt
CREATE FUNCTION lib.many(jsonb[]) RETURNS jsonb[] LANGUAGE sql AS 'SELECT $1';
SELECT orchestrator.define('r', 'lib.many', batch_size => 10, retry_delay => '0', never_retry => '{22}');
SELECT orchestrator.enqueue('r') AS one \gset
SELECT orchestrator.enqueue('r') AS two \gset
SELECT orchestrator.enqueue('r') AS three \gset
SELECT is(claim(3), ARRAY[:one, :two, :three]::bigint[], 'claimed one by one');
SELECT is(orchestrator._settle_failed(:one, 1, 'error', '{"sqlstate": "P0001", "message": "m"}', NULL, NULL), 'pending', 'it is retried');
SELECT is(orchestrator._settle_failed(:two, 1, 'error', '{"sqlstate": "P0001", "message": "m", "retry": false}', NULL, NULL), 'failed', 'unless it says that it must not be');
SELECT is(orchestrator._settle_failed(:three, 1, 'error', '{"sqlstate": "22012", "message": "m"}', NULL, NULL), 'failed', 'or its code is never retried');
SELECT is(detail ->> 'final', 'item_error', 'the trace says why') FROM orchestrator.trace WHERE task_id = :two AND event = 'failed';
SELECT is((task(:two)).error, '{"sqlstate": "P0001", "message": "m", "retry": false}', 'and the task');

SELECT * FROM finish();
ROLLBACK;
