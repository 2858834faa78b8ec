# Who is next, with real executors: tenants that take turns, queues that share
# by weight, and what of it outlives a restart or needs no shared memory.

use strict;
use warnings;

use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $node = new_node(name => 'fair', 'orchestrator.executors_per_role' => 3, 'orchestrator.max_executors' => 6);
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.work(jsonb) RETURNS void LANGUAGE sql AS $$SELECT pg_sleep(0.005)$$;
SELECT orchestrator.define_queue('turns', tenant => '$.tenant');
SELECT orchestrator.define('work', 'app.work', queue => 'turns');
SQL

sub app { return $node->psql_as('app', $_[0]) }
sub admin { return $node->safe_psql('postgres', $_[0]) }

# Many tasks of a tenant, as many inputs.
sub enqueue_many
{
	my ($tenant, $n, $more) = @_;
	return app(sprintf(q{SELECT count(*) FROM unnest(orchestrator.enqueue_many('work', array_fill('{"tenant": "%s"}'::jsonb, '{%d}') %s))},
		$tenant, $n, $more // ''));
}

sub completed { return admin("SELECT count(*) FROM orchestrator.task WHERE state = 'completed' AND input ->> 'tenant' = '$_[0]'") }

sub cancel_all
{
	app('SELECT orchestrator.cancel_many(all_tasks => true)');
	return $node->wait_for(q{SELECT count(*) FROM orchestrator.task_live}, 0, 'nothing is left');
}

subtest 'a tenant with 100,000 tasks and one with a single one' => sub {
	is(enqueue_many('big', 100000, ', priority => 0'), 100000, 'many');
	$node->wait_for(q{SELECT count(*) > 100 FROM orchestrator.task WHERE state = 'completed'}, 't', 'they run');
	my $session = session($node, 'app');
	foreach my $i (1 .. 60)
	{
		$session->query(sprintf(q{SELECT orchestrator.enqueue('work', '{"tenant": "small %d"}')}, $i % 7));
		sleep(0.03);
	}
	$session->quit;
	$node->wait_for(q{SELECT count(*) FROM orchestrator.task WHERE state = 'completed' AND input ->> 'tenant' LIKE 'small%'}, 60, 'single ones, too');
	my ($wait, $longest, $run, $bar) = split /\|/, admin(<<'SQL');
SELECT round(w.p95, 1), round(w.longest, 1), round(r.p99, 1), round(3 * r.p99, 1)
FROM (SELECT (percentile_disc(0.95) WITHIN GROUP (ORDER BY ms))::numeric AS p95, max(ms)::numeric AS longest
      FROM (SELECT extract(epoch FROM started_at - created_at) * 1000 AS ms FROM orchestrator.task WHERE input ->> 'tenant' LIKE 'small%') t) w,
     (SELECT (percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at) * 1000))::numeric AS p99
      FROM orchestrator.task WHERE state = 'completed') r
SQL
	note("single tasks wait $wait ms at the 95th percentile, $longest ms at most; p99 of the run time is $run ms");
	cmp_ok($wait, '<=', $bar, 'a single task waits no longer than three times the p99 of the run time');
	cmp_ok(admin(q{SELECT count(*) FROM orchestrator.task_live WHERE input ->> 'tenant' = 'big'}), '>', 50000, 'while the many wait');
	cancel_all();
};

subtest 'weights of tenants' => sub {
	app(q{SELECT orchestrator.define_queue('turns', tenant => '$.tenant', tenant_weights => '{"gold": 3}'), orchestrator.pause_queue('turns')});
	enqueue_many($_, 900) foreach qw(plain gold);
	app(q{SELECT orchestrator.resume_queue('turns')});
	$node->wait_for(q{SELECT count(*) >= 400 FROM orchestrator.task WHERE state = 'completed' AND input ->> 'tenant' IN ('gold', 'plain')});
	app(q{SELECT orchestrator.pause_queue('turns')});
	my $ratio = completed('gold') / completed('plain');
	cmp_ok($ratio, '>', 2.7, 'a tenant of weight 3 gets three times as much');
	cmp_ok($ratio, '<', 3.3, 'and no more') or diag($ratio);
	app(q{SELECT orchestrator.define_queue('turns', tenant => '$.tenant'), orchestrator.resume_queue('turns')});
	cancel_all();
};

subtest 'a restart' => sub {
	app(q{SELECT orchestrator.pause_queue('turns')});
	enqueue_many('before', 300);
	$node->restart;
	enqueue_many('after', 1);
	enqueue_many('before', 1);
	is(admin(q{SELECT string_agg(t, ' ') FROM (SELECT input ->> 'tenant' AS t FROM orchestrator.task WHERE live ORDER BY sort_key LIMIT 2) s}),
		'after before', 'a tenant that comes after it is next');
	is(admin(q{SELECT max(id) = (array_agg(id ORDER BY sort_key DESC))[1] FROM orchestrator.task WHERE live AND input ->> 'tenant' = 'before'}),
		't', 'one that was there keeps its order');
	$node->safe_psql('postgres', 'DROP EXTENSION orchestrator CASCADE; CREATE EXTENSION orchestrator');
	$node->safe_psql('postgres', q{SELECT orchestrator.grant_usage('app')});
	app(q{SELECT orchestrator.define_queue('turns', tenant => '$.tenant'), orchestrator.define('work', 'app.work', queue => 'turns'), orchestrator.pause_queue('turns')});
	enqueue_many('before', 1);
	is(admin(q{SELECT (sort_key - orchestrator_epoch) / 1e6 BETWEEN 500 AND 700
		FROM orchestrator.task, (SELECT extract(epoch FROM clock_timestamp() - '2000-01-01 00:00+00') * 1e6 AS orchestrator_epoch) e}),
		't', 'one that was dropped with the extension is forgotten');
	app(q{SELECT orchestrator.resume_queue('turns')});
	cancel_all();
};

subtest 'weights of queues' => sub {
	app(<<'SQL');
SELECT orchestrator.define_queue('three', weight => 3), orchestrator.define_queue('one'), orchestrator.define_queue('idle', weight => 1000);
SELECT orchestrator.pause_queue('three'), orchestrator.pause_queue('one');
CREATE FUNCTION app.longer(jsonb) RETURNS void LANGUAGE sql AS $$SELECT pg_sleep(0.02)$$;
SELECT orchestrator.define('longer', 'app.longer');
SQL
	app(q{SELECT 1 FROM orchestrator.enqueue_many('work', array_fill('{}'::jsonb, '{3000}'), queue => 'three')});
	app(q{SELECT 1 FROM orchestrator.enqueue_many('longer', array_fill('{}'::jsonb, '{1000}'), queue => 'one')});
	app(q{SELECT orchestrator.resume_queue('three'), orchestrator.resume_queue('one')});
	my $done = q{SELECT sum(extract(epoch FROM finished_at - started_at)) FROM orchestrator.task JOIN orchestrator.queue q ON q.id = queue
		WHERE state = 'completed' AND q.name = '%s'};
	$node->wait_for(sprintf("SELECT s > 6 FROM ($done) t(s)", 'three'));
	my ($three, $one) = map { admin(sprintf $done, $_) } qw(three one);
	note("run time: $three s and $one s");
	cmp_ok($three / $one, '>', 2.4, 'a queue of weight 3 gets three times the run time');
	cmp_ok($three / $one, '<', 3.6, 'and no more');
	cancel_all();
};

# Two roles have all executors, but for one that may idle, and work for half a
# minute.
subtest 'roles' => sub {
	# one that ended may be replaced at once, and it again
	$node->wait_for(q{SELECT count(pg_terminate_backend(pid, 10000)) <= 1 FROM orchestrator.worker_status WHERE kind = 'executor'});
	foreach my $role (qw(flood flood2))
	{
		$node->plain_role($role);
		$node->psql_as($role, <<'SQL');
SELECT orchestrator.define('slow', 'SELECT pg_sleep(0.02)', 'sql');
SELECT cardinality(orchestrator.enqueue_many('slow', array_fill('{}'::jsonb, '{5000}')));
SQL
	}
	$node->wait_for(q{SELECT count(*) = 6 AND count(*) FILTER (WHERE role LIKE 'flood%') >= 5 FROM orchestrator.worker_status WHERE kind = 'executor'}, 't', 'they have them');
	foreach my $role (qw(late later))
	{
		$node->plain_role($role);
		measure_ok(8, 'a role without an executor', sub { is(outcome($node, $role, q{orchestrator.run('SELECT 1')})->{state}, 'completed', 'has its turn') });
	}
	is(admin(q{SELECT count(DISTINCT owner) FROM orchestrator.task WHERE live}), 2, 'while the others are at it');
	admin(q{SELECT orchestrator.cancel_many(all_tasks => true)});
};

subtest 'not preloaded' => sub {
	my $bare = new_node(name => 'bare', shared_preload_libraries => '');
	$bare->start;
	$bare->create_extension;
	$bare->plain_role('app');
	$bare->psql_as('app', <<'SQL');
SELECT orchestrator.define_queue('turns', tenant => '$.tenant', tenant_weights => '{"a": 2}'), orchestrator.define('job', 'SELECT 1', 'sql', queue => 'turns');
SELECT orchestrator.enqueue_many('job', array_fill('{"tenant": "a"}'::jsonb, '{3}'), priority => 0);
SELECT orchestrator.enqueue('job', '{"tenant": "b"}');
SELECT orchestrator.enqueue('job', '{"tenant": "a"}', delay => '1 ms');
SELECT orchestrator.define_queue('turns');
SQL
	is($bare->safe_psql('postgres', q{SELECT string_agg(input ->> 'tenant', ' ' ORDER BY sort_key) FROM orchestrator.task WHERE state = 'pending'}),
		'a a a b', 'first come, first served');
	$bare->stop;
};

$node->stop;
done_testing();
