-- share_definition(), share_queue() and what takes them back; how names are resolved.
\ir lib/setup.psql
SELECT plan(49);

CREATE ROLE sharing_lib LOGIN;
CREATE ROLE sharing_lib2 LOGIN;
CREATE ROLE sharing_group;
CREATE ROLE sharing_app LOGIN IN ROLE sharing_group;
CREATE ROLE sharing_boss LOGIN;
SELECT orchestrator.grant_usage('sharing_lib'), orchestrator.grant_usage('sharing_lib2'), orchestrator.grant_usage('sharing_app'),
       orchestrator.grant_usage('sharing_boss', 'admin');
SELECT value_of($$SELECT orchestrator.define('job', 'SELECT 1', 'sql')$$, 'sharing_lib'),
       value_of($$SELECT orchestrator.define('job', 'SELECT 2', 'sql')$$, 'sharing_lib2'),
       value_of($$SELECT orchestrator.define_queue('line')$$, 'sharing_lib'),
       value_of($$SELECT orchestrator.define_queue('line')$$, 'sharing_lib2');

-- The handler and the queue of what a role gets for a name; or why it gets none.
CREATE FUNCTION job() RETURNS text LANGUAGE plpgsql AS $$
DECLARE v_task text;
BEGIN
  IF error_of($q$SELECT orchestrator.enqueue('job')$q$, 'sharing_app') <> 'no error' THEN
    RETURN error_of($q$SELECT orchestrator.enqueue('job')$q$, 'sharing_app');
  END IF;
  v_task := value_of($q$SELECT orchestrator.enqueue('job')$q$, 'sharing_app');
  RETURN (SELECT o.name || ' runs ' || d.handler FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition
          JOIN orchestrator.owner o ON o.id = t.owner WHERE t.id = v_task::bigint);
END
$$;
CREATE FUNCTION line() RETURNS text LANGUAGE plpgsql AS $$
DECLARE v_task text;
BEGIN
  IF error_of($q$SELECT orchestrator.run('x', queue => 'line')$q$, 'sharing_app') <> 'no error' THEN
    RETURN error_of($q$SELECT orchestrator.run('x', queue => 'line')$q$, 'sharing_app');
  END IF;
  v_task := value_of($q$SELECT orchestrator.run('x', queue => 'line')$q$, 'sharing_app');
  RETURN (SELECT o.name FROM orchestrator.task t JOIN orchestrator.queue q ON q.id = t.queue
          JOIN orchestrator.owner o ON o.id = q.owner WHERE t.id = v_task::bigint);
END
$$;
CREATE FUNCTION share(what text, role text, sharer text, verb text DEFAULT 'share') RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT orchestrator.%s_%s(%L, %L)', $4, $1, CASE $1 WHEN 'queue' THEN 'line' ELSE 'job' END, $2), $3);
$$;

SELECT is(job(), '42704: definition "job" does not exist [Make it with orchestrator.define(), or have its owner share it with orchestrator.share_definition().]',
          'a stranger''s definition does not exist');
SELECT is(line(), '42704: queue "line" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]',
          'nor a stranger''s queue');

SELECT is(share('definition', 'sharing_app', 'sharing_lib'), 'no error', 'its owner shares a definition');
SELECT is(job(), 'sharing_app runs SELECT 1', 'it can be enqueued then, and runs as who enqueues');
SELECT is(share('definition', 'sharing_app', 'sharing_lib'), 'no error', 'sharing twice is no error');
SELECT is(share('definition', 'sharing_app', 'sharing_lib', 'unshare'), 'no error', 'taken back');
SELECT matches(job(), '^42704: definition "job" does not exist', 'it cannot be enqueued any more');
SELECT is(share('definition', 'sharing_app', 'sharing_lib', 'unshare'), 'no error', 'taking back twice is no error');
SELECT is(share('definition', 'sharing_group', 'sharing_lib'), 'no error', 'shared with a group');
SELECT is(job(), 'sharing_app runs SELECT 1', 'its members have it');
SELECT is(share('definition', 'sharing_group', 'sharing_lib', 'unshare'), 'no error', 'not any more');
CREATE ROLE "Public";
SELECT is(share('definition', 'Public', 'sharing_lib') || error_of($$SELECT orchestrator.grant_usage('Public')$$), 'no errorno error', 'shared with a role that is called Public');
SELECT matches(job(), '^42704: definition "job" does not exist', 'which is not everybody');
SELECT is(share('definition', 'Public', 'sharing_lib', 'unshare') || share('definition', 'PUBLIC', 'sharing_lib'), 'no errorno error', 'shared with public');
SELECT is(job(), 'sharing_app runs SELECT 1', 'everybody has it');
SELECT is(share('definition', 'sharing_app', 'sharing_lib2'), 'no error', 'two roles share a name');
SELECT is(job(), '42P09: definition "job" was shared by more than one role [Make a definition of your own with orchestrator.define().]',
          'then neither slips in before the other');
SELECT value_of($$SELECT orchestrator.define('job', 'SELECT 3', 'sql')$$, 'sharing_app');
SELECT is(job(), 'sharing_app runs SELECT 3', 'one''s own comes first');
SELECT value_of($$SELECT orchestrator.define('job', 'SELECT 4', 'sql')$$, 'sharing_lib');
SELECT is(job(), 'sharing_app runs SELECT 3', 'whatever others define');
SELECT value_of($$SELECT orchestrator.drop_definition('job', true)$$, 'sharing_app');
SELECT share('definition', 'sharing_app', 'sharing_lib2', 'unshare');
SELECT is(job(), 'sharing_app runs SELECT 4', 'a share is of the name: it follows the current version');
SELECT is(value_of($$SELECT orchestrator.drop_definition('job', true)$$, 'sharing_lib'), '', 'its owner drops it');
SELECT value_of($$SELECT orchestrator.define('job', 'SELECT 5', 'sql')$$, 'sharing_lib');
SELECT matches(job(), '^42704', 'what is defined after a drop is not shared');

SELECT is(share('queue', 'sharing_app', 'sharing_lib'), 'no error', 'its owner shares a queue');
SELECT is(line(), 'sharing_lib', 'it can be used then');
SELECT is(value_of('SELECT count(*) FROM orchestrator.queue_share', role), n, format('shares of queues that %s sees: %s', role, n))
FROM (VALUES ('sharing_lib', '1'), ('sharing_app', '1'), ('sharing_lib2', '0')) v(role, n);
SELECT is(share('queue', 'sharing_app', 'sharing_lib2'), 'no error', 'two roles share a name');
SELECT is(line(), '42P09: queue "line" was shared by more than one role [Make a queue of your own with orchestrator.define_queue().]', 'then neither is taken');
SELECT value_of($$SELECT orchestrator.define_queue('line')$$, 'sharing_app');
SELECT is(line(), 'sharing_app', 'one''s own comes first');
DELETE FROM orchestrator.task_live;
DELETE FROM orchestrator.queue WHERE owner = owner_id('sharing_app');
SELECT orchestrator._invalidate();
SELECT is(share('queue', 'sharing_app', 'sharing_lib', 'unshare'), 'no error', 'taken back');
SELECT is(line(), 'sharing_lib2', 'only the other is left');
SELECT is(share('queue', 'sharing_app', 'sharing_lib2', 'unshare') || share('queue', 'public', 'sharing_lib2'), 'no errorno error', 'shared with public');
SELECT is(line(), 'sharing_lib2', 'everybody has it');
SELECT is(share('queue', 'sharing_group', 'sharing_lib2'), 'no error', 'shared twice with the same role');
SELECT is(line(), 'sharing_lib2', 'it is one queue all the same');
SELECT is(value_of($$SELECT orchestrator.define('lined', 'SELECT 1', 'sql', 'line')$$, 'sharing_app'), '1', 'a definition can name a queue that was shared');

SELECT written() AS before \gset
SELECT matches(share('definition', 'sharing_app', 'sharing_boss'), '^42704: definition "job" does not exist \[A definition is shared by its owner', 'an administrator names the owner');
SELECT is(error_of($$SELECT orchestrator.share_definition('job', 'sharing_app', 'sharing_lib')$$, 'sharing_boss'), 'no error', 'then it may share');
SELECT is(error_of($$SELECT orchestrator.unshare_definition('job', 'sharing_app', 'sharing_lib')$$, 'sharing_boss'), 'no error', 'and take back');
SELECT matches(error_of($$SELECT orchestrator.share_definition('job', 'sharing_app', 'sharing_lib')$$, 'sharing_app'), '^42501: must be a member', 'a stranger may not');
SELECT matches(error_of($$SELECT orchestrator.share_definition('no', 'sharing_app')$$, 'sharing_lib'), '^42704: definition "no" does not exist', 'what is missing is not shared');
SELECT is(share('definition', 'sharing_nobody', 'sharing_lib'), '42704: role "sharing_nobody" does not exist', 'nor with a role that is missing');
SELECT is(share('queue', 'sharing_nobody', 'sharing_lib'), '42704: role "sharing_nobody" does not exist', 'the same for queues');
SELECT matches(share('queue', 'sharing_app', 'sharing_app'), '^42704: queue "line" does not exist', 'a stranger does not share a queue');
SELECT matches(share('queue', 'sharing_group', 'sharing_app', 'unshare'), '^42704: queue "line" does not exist', 'nor take it back');
SELECT matches(error_of($$SELECT orchestrator.share_queue('default', 'sharing_app')$$, 'sharing_app'), '^42501', '"default" is not shared by a producer');
SELECT is(written(), :'before', 'what was refused or taken back leaves nothing');
DELETE FROM orchestrator.queue_share;
SELECT matches(error_of($$SELECT orchestrator.unshare_queue('nope', 'public')$$, 'sharing_lib'), '^42704: queue "nope" does not exist', 'unsharing an unknown queue, though nothing is shared');

SELECT * FROM finish();
ROLLBACK;
