-- define_queue(), pause_queue(), resume_queue().
\ir lib/setup.psql
SELECT plan(49);

CREATE ROLE queues_app LOGIN;
CREATE ROLE queues_other LOGIN;
CREATE ROLE queues_boss LOGIN;
SELECT orchestrator.grant_usage('queues_app'), orchestrator.grant_usage('queues_other'), orchestrator.grant_usage('queues_boss', 'admin');

SELECT is(to_jsonb(q) - 'created_at', '{"id": 1, "owner": 0, "name": "default", "paused": false, "paused_at": null, "metadata": null,
          "max_running": null, "rate_limit": null, "rate_period": null, "weight": 1, "tenant": null, "tenant_weights": null,
          "adaptive": false, "min_running": null, "max_depth": null, "on_full": "reject", "full_wait": null,
          "alert_depth": null, "alert_age": null, "alert_endpoint": null, "alert_owner": null, "retention": null, "retention_failed": null,
          "description": "where tasks wait that name no other queue"}'::jsonb, 'queue "default" is everybody''s')
FROM orchestrator.queue q;

SELECT is(error_of($$SELECT orchestrator.define_queue('mail', description => 'letters', metadata => '{"a": 1}')$$, 'queues_app'), 'no error', 'a producer makes a queue');
SELECT is(jsonb_strip_nulls(to_jsonb(q) - '{id,created_at,weight,adaptive,on_full}'::text[]), jsonb_build_object('owner', owner_id('queues_app'), 'name', 'mail', 'paused', false,
          'description', 'letters', 'metadata', '{"a": 1}'::jsonb), 'which is its own')
FROM orchestrator.queue q WHERE name = 'mail';
SELECT cmp_ok(id, '>', 1, 'ids follow that of "default"') FROM orchestrator.queue WHERE name = 'mail';
SELECT id AS mail FROM orchestrator.queue WHERE name = 'mail' \gset
SELECT is(error_of($$SELECT orchestrator.define_queue('mail', description => 'parcels')$$, 'queues_app'), 'no error', 'defining it again');
SELECT is(array[description, metadata::text], '{parcels,NULL}', 'changes what it says') FROM orchestrator.queue WHERE id = :mail;
SELECT is((SELECT count(*) FROM orchestrator.queue WHERE name = 'mail'), 1::bigint, 'and adds none');
SELECT is(error_of($$SELECT orchestrator.define_queue('mail')$$, 'queues_other'), 'no error', 'another role has names of its own');
SELECT is((SELECT count(*) FROM orchestrator.queue WHERE name = 'mail'), 2::bigint, 'and a queue of its own');

SELECT written() AS before \gset
SELECT is(error_of($$SELECT orchestrator.define_queue('')$$), '22023: the name of a queue must have 1 to 200 bytes', 'an empty name');
SELECT is(error_of($$SELECT orchestrator.define_queue(repeat('x', 201))$$), '22023: the name of a queue must have 1 to 200 bytes', 'a long name');
SELECT is(error_of($$SELECT orchestrator.define_queue(NULL)$$), '22023: the name of a queue must not be null', 'no name');
SELECT is(error_of($$SELECT orchestrator.define_queue('orchestrator.x')$$),
          '22023: queue "orchestrator.x" has a reserved name [Names that begin with "orchestrator." are the engine''s own.]', 'a reserved name');
SELECT is(error_of($$SELECT orchestrator.define_queue('default', description => 'mine')$$, 'queues_app'),
          '42501: queue "default" is everybody''s: only an administrator may change it [Make a queue of your own with orchestrator.define_queue().]',
          '"default" is not a producer''s');
SELECT is(error_of($$SELECT orchestrator.define_queue('x', owner => 'queues_app')$$, 'queues_other'),
          '42501: must be a member of role "queues_app", or an administrator [An administrator is made by orchestrator.grant_usage(role, ''admin'').]',
          'a stranger makes no queue for a role');
SELECT is(written(), :'before', 'a refused queue leaves nothing');
SELECT is(error_of($$SELECT orchestrator.define_queue('default', description => 'ours')$$, 'queues_boss'), 'no error', 'an administrator describes "default"');
SELECT is(description, 'ours', 'as it likes') FROM orchestrator.queue WHERE id = 1;
SELECT is(error_of($$SELECT orchestrator.define_queue('gift', owner => 'queues_app')$$, 'queues_boss'), 'no error', 'and makes queues for others');
SELECT is(owner, owner_id('queues_app'), 'that are theirs') FROM orchestrator.queue WHERE name = 'gift';

-- Pause and resume
SELECT is(error_of($$SELECT orchestrator.pause_queue('mail')$$, 'queues_app'), 'no error', 'its owner pauses a queue');
SELECT is((SELECT array_agg(id) FROM orchestrator.queue WHERE paused), array[:mail], 'that and no other');
SELECT is(orchestrator._now() - paused_at < interval '1 minute', true, 'since now') FROM orchestrator.queue WHERE id = :mail;
SELECT paused_at AS since FROM orchestrator.queue WHERE id = :mail \gset
SELECT is(error_of($$SELECT orchestrator.pause_queue('mail')$$, 'queues_app'), 'no error', 'pausing again is no error');
SELECT is(paused_at, :'since', 'and keeps the time') FROM orchestrator.queue WHERE id = :mail;
SELECT value_of($$SELECT orchestrator.run('SELECT 1', queue => 'mail')$$, 'queues_app') AS task \gset
SELECT is(state_of(:task), 'pending', 'tasks can be enqueued into a paused queue');
SELECT is((SELECT count(*) FROM orchestrator._claim(owner_id('queues_app'), :mail, 1, 10)), 0::bigint, 'and are not claimed');
SELECT is(error_of($$SELECT orchestrator.resume_queue('mail')$$, 'queues_other'), 'no error', 'another role resumes its own queue of the name');
SELECT is(paused, true, 'not this one') FROM orchestrator.queue WHERE id = :mail;
SELECT is(error_of($$SELECT orchestrator.resume_queue('mail')$$, 'queues_app'), 'no error', 'its owner resumes it');
SELECT is(paused::text || coalesce(paused_at::text, '-'), 'false-', 'and it is as it was') FROM orchestrator.queue WHERE id = :mail;
SELECT is((SELECT array_agg(id) FROM orchestrator._claim(owner_id('queues_app'), :mail, 1, 10)), array[:task::bigint], 'its tasks are claimed again');
SELECT is(error_of($$SELECT orchestrator.resume_queue('mail')$$, 'queues_app'), 'no error', 'resuming what is not paused is no error');

SELECT is(error_of(format('SELECT orchestrator.%s_queue(%L)', verb, 'gift'), 'queues_other'),
          '42704: queue "gift" does not exist [Make it with orchestrator.define_queue(), or have its owner share it with orchestrator.share_queue().]',
          format('a stranger''s queue does not exist for %s_queue()', verb))
FROM unnest('{pause,resume}'::text[]) verb;
SELECT matches(error_of(format('SELECT orchestrator.%s_queue(%L)', verb, 'default'), 'queues_app'), '^42501: queue "default" is everybody''s',
          format('%s_queue(''default'') is an administrator''s', verb))
FROM unnest('{pause,resume}'::text[]) verb;
SELECT matches(error_of(format('SELECT orchestrator.%s_queue(%L, %L)', verb, 'gift', 'queues_app'), 'queues_other'), '^42501: must be a member',
          format('a stranger cannot name the owner to %s_queue()', verb))
FROM unnest('{pause,resume}'::text[]) verb;
SELECT matches(error_of(format('SELECT orchestrator.%s_queue(NULL)', verb), 'queues_app'), '^42704: queue "<NULL>" does not exist', format('%s_queue(NULL)', verb))
FROM unnest('{pause,resume}'::text[]) verb;

SELECT is(error_of($$SELECT orchestrator.pause_queue('default')$$, 'queues_boss'), 'no error', 'an administrator pauses "default"');
SELECT is(paused, true, 'for everybody') FROM orchestrator.queue WHERE id = 1;
SELECT is(error_of($$SELECT orchestrator.pause_queue('gift')$$, 'queues_boss'), 'no error', 'an administrator finds a queue by its name alone');
SELECT is(paused, true, 'and pauses it') FROM orchestrator.queue WHERE name = 'gift';
SELECT matches(error_of($$SELECT orchestrator.pause_queue('mail')$$, 'queues_boss'), '^42704: queue "mail" does not exist', 'unless there are two');
SELECT is(error_of($$SELECT orchestrator.pause_queue('mail', 'queues_app')$$, 'queues_boss'), 'no error', 'then with its owner');

-- With every queue paused, a mistake is still one.
UPDATE orchestrator.queue SET paused = true;
SELECT matches(error_of($$SELECT orchestrator.pause_queue('nope')$$, 'queues_app'), '^42704: queue "nope" does not exist',
               'an unknown queue is an error though all are paused');
SELECT matches(error_of($$SELECT orchestrator.pause_queue('default')$$, 'queues_app'), '^42501', 'as is one that is not the caller''s');

SELECT * FROM finish();
ROLLBACK;
