# Adaptive queues with real executors: a handler that slows down when too many
# run at once, and everything that is to shrink a limit.  The rule itself is
# simulated in test/pgtap/adaptive.sql.  At the end a queue of outside calls.

use strict;
use warnings;

use OrchestratorOutside;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# The best limit; its throughput is lost by the square of what is above it.
my $best = 6;
my $node = new_node(
	name => 'adaptive',
	'autovacuum' => 'off',
	'max_worker_processes' => 24,
	'max_wal_senders' => 5,
	'wal_level' => 'replica',
	'hot_standby' => 'on',
	'max_prepared_transactions' => 0, # else there is a look a minute
	'orchestrator.max_executors' => 16,
	'orchestrator.executors_per_role' => 14);
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<"SQL");
CREATE TABLE app.row AS SELECT 1 AS id;
CREATE FUNCTION app.elastic(jsonb) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
  v_n int := (SELECT count(*) + 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND usename = 'app');
BEGIN
  PERFORM pg_sleep(0.1 * CASE WHEN v_n <= $best THEN 1 ELSE (v_n / $best.0) ^ 2 END);
END \$\$;
CREATE FUNCTION app.fails(jsonb) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
  PERFORM pg_sleep(0.05);
  RAISE EXCEPTION 'no';
END \$\$;
SELECT orchestrator.define('elastic', 'app.elastic'), orchestrator.define('fails', 'app.fails', max_attempts => 1);
SELECT orchestrator.define_queue('fixed', max_running => $best), orchestrator.define_queue('elastic', max_running => 14, adaptive => true);
SQL

sub app { return $node->psql_as('app', $_[0]) }
sub limit { return app(q{SELECT effective_max_running FROM orchestrator.queue_status WHERE queue = 'elastic'}) }
sub enqueue { return app("SELECT cardinality(orchestrator.enqueue_many('$_[0]', array_fill('{}'::jsonb, array[$_[1]]), queue => '$_[2]'))") }
sub done { return app(q{SELECT count(*) FROM orchestrator.task WHERE NOT live AND state = 'completed'}) }
sub decisions { return app(q{SELECT coalesce(max(number), 0) FROM orchestrator.queue_decisions}) }

# Steps completed each second, measured for so long.
sub throughput
{
	my ($before, $began) = (done(), time);
	usleep($_[0] * 1e6);
	return (done() - $before) / (time - $began);
}

# A decision after number $from that says $pattern.
sub decides_ok
{
	my ($from, $pattern, $name) = @_;
	return $node->wait_for("SELECT count(*) > 0 FROM orchestrator.queue_decisions WHERE number > $from AND reason ~ '$pattern'", 't', $name);
}

# It grows again, as nothing is short any more.
sub comes_back_ok
{
	return $node->wait_for(q{SELECT effective_max_running >= 4 FROM orchestrator.queue_status WHERE queue = 'elastic'}, 't', 'and comes back');
}

subtest 'converges' => sub {
	enqueue('elastic', 400, 'fixed');
	usleep(1e6);
	my $known = throughput(4);
	app(q{SELECT orchestrator.cancel_many(queue => 'fixed')});
	$node->wait_for(q{SELECT count(*) = 0 FROM orchestrator.task WHERE live}, 't', 'the queue with the best limit is done');
	enqueue('elastic', 6000, 'elastic');
	usleep(14e6);
	my $rate = throughput(16);
	my $mean = $node->safe_psql('postgres', <<'SQL');
SELECT round(sum(running * extract(epoch FROM until - greatest(at, from_)))::numeric / 16, 2)
FROM (SELECT d.running, d.at, coalesce(lead(d.at) OVER (ORDER BY d.number), n.now) AS until, n.now - interval '16 s' AS from_
      FROM orchestrator.queue_decisions d, (SELECT orchestrator._now() AS now) n) x
WHERE until > from_
SQL
	note("limit $mean, " . sprintf('%.1f steps/s, %.1f with a limit of %d', $rate, $known, $best));
	ok(abs($mean - $best) <= 1, "the limit, a quarter of a minute from its start on: $mean");
	ok($rate >= 0.85 * $known, sprintf('the throughput: %.3f of the best', $rate / $known));
	is(app(q{SELECT reason FROM orchestrator.queue_decisions WHERE number = 1}), 'start', 'it had a first decision');
	is(app(q{SELECT running FROM orchestrator.queue_decisions WHERE number = 1}), 4, 'the root of the most');
	is(app(q{SELECT count(*) FROM orchestrator.queue_decisions d JOIN orchestrator.queue_decisions e ON e.number = d.number + 1 WHERE e.before <> d.running OR e.at - d.at < '0.9 s'}),
		0, 'one after the other, at most one each second');
	is(app(q{SELECT s.decision = d.reason AND s.decided_at = d.at AND s.effective_max_running = d.running
	         FROM orchestrator.queue_status s, LATERAL (SELECT * FROM orchestrator.queue_decisions ORDER BY number DESC LIMIT 1) d WHERE s.queue = 'elastic'}), 't', 'queue_status says the last');
	like(app(q{SELECT measured::text FROM orchestrator.queue_decisions WHERE number = 3}), qr/"steps": [1-9]\d*.*"latency_ms": [1-9]|"latency_ms": [1-9].*"steps": [1-9]/, 'and on what it was decided');
};

subtest 'goes on' => sub {
	my $from = decisions();
	my $limit = limit();
	$node->restart;
	$node->wait_for(q{SELECT count(*) >= 4 FROM orchestrator.worker_status WHERE task_id IS NOT NULL}, 't', 'after a restart steps run');
	ok(abs($limit - $best) <= 1, 'the limit is what it was');
	cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.worker_status WHERE task_id IS NOT NULL}), '<=', $limit + 1, 'and not the most');
	decides_ok($from, 'trying', 'its search goes on');
	is(app("SELECT before FROM orchestrator.queue_decisions WHERE number = $from + 1"), $limit, 'from there');

	$from = decisions();
	my $supervisor = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'orchestrator supervisor' AND datname = 'postgres'};
	my $old = $node->safe_psql('postgres', $supervisor);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
	$node->wait_for("SELECT count(*) = 1 FROM ($supervisor) x WHERE pid <> $old", 't', 'another supervisor');
	is(app("SELECT count(*) FROM orchestrator.queue_decisions WHERE number > $from AND (reason = 'start' OR abs(running - before) > 2)"), 0, 'starts nothing over');
};

subtest 'shrinks' => sub {
	my $from = decisions();
	$node->set('orchestrator.adaptive_free_connections' => 1000);
	$node->reload;
	decides_ok($from, '^\d+ connections are free$', 'when connections are few');
	$node->wait_for(q{SELECT effective_max_running = 1 FROM orchestrator.queue_status WHERE queue = 'elastic'}, 't', 'down to one');
	$node->wait_for(q{SELECT count(*) = 1 FROM orchestrator.worker_status WHERE task_id IS NOT NULL}, 't', 'which runs');
	$node->set('orchestrator.adaptive_free_connections' => 0);
	$node->reload;
	comes_back_ok();

	# Others wait for each other: that is no queue's fault, and yet it is load.
	$from = decisions();
	my $holder = $node->background_psql('postgres');
	$holder->query_safe('BEGIN; LOCK TABLE app.row');
	my @waiters = map { $node->background_psql('postgres') } 1 .. 3;
	$_->query_until(qr/wait/, "\\echo wait\nSELECT count(*) FROM app.row;\n") foreach @waiters;
	$node->set('orchestrator.adaptive_lock_waits' => 10);
	$node->reload;
	decides_ok($from, '^3 of \d+ active sessions wait for a lock$', 'when sessions wait for locks');
	$holder->query_safe('COMMIT');
	$_->quit foreach @waiters, $holder;
	comes_back_ok();

	$node->backup('copy');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'copy', has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby);
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
	$node->set('orchestrator.adaptive_replication_lag' => '1MB');
	$node->reload;
	$from = decisions();
	$node->safe_psql('postgres', q{CREATE TABLE public.much AS SELECT repeat('x', 1000) FROM generate_series(1, 4000)});
	decides_ok($from, '^a standby is \d+ MB behind$', 'when a standby falls behind');
	$standby->stop('immediate');
	$node->set('orchestrator.adaptive_replication_lag' => '64MB');
	$node->reload;
	comes_back_ok();

	app(q{SELECT orchestrator.cancel_many(queue => 'elastic')});
	$from = decisions();
	enqueue('fails', 100, 'elastic');
	decides_ok($from, '^\d+ of \d+ steps failed, 0 of them timed out$', 'when steps fail');
	$node->wait_for(q{SELECT count(*) = 0 FROM orchestrator.task WHERE live}, 't', 'and all of these end');
};

subtest 'is adaptive no more' => sub {
	app(q{SELECT orchestrator.define_queue('elastic', max_running => 14)});
	is(limit(), 14, 'all of max_running');
	enqueue('elastic', 300, 'elastic');
	$node->wait_for(q{SELECT count(*) = 14 FROM orchestrator.worker_status WHERE task_id IS NOT NULL}, 't', 'runs');
	app(q{SELECT orchestrator.define_queue('elastic', max_running => 14, adaptive => true, min_running => 9)});
	$node->wait_for(q{SELECT count(*) = 9 FROM orchestrator.worker_status WHERE task_id IS NOT NULL}, 't', 'and nine when it is again');
	app(q{SELECT orchestrator.cancel_many(queue => 'elastic')});
	$node->wait_for(q{SELECT count(*) = 0 FROM orchestrator.task WHERE live}, 't', 'until all is done');
};

subtest 'of outside calls' => sub {
	my $server = outside();
	$node->safe_psql('postgres', <<"SQL");
CREATE SERVER near FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$server->{url}', allow_private 'on');
GRANT USAGE ON FOREIGN SERVER near TO app;
SQL
	app(<<'SQL');
SELECT orchestrator.define_queue('calls', max_running => 64, adaptive => true);
SELECT orchestrator.define('slow', NULL, 'http', endpoint => 'near', request => '{"path": "/sleep/50"}', queue => 'calls'),
       orchestrator.define('busy', NULL, 'http', endpoint => 'near', request => '{"path": "/status/429", "query": {"ms": "50"}}', queue => 'calls', max_attempts => 1);
SQL
	my $calls = q{FROM orchestrator.queue_decisions WHERE queue = 'calls'};
	enqueue('slow', 4000, 'calls');
	$node->wait_for("SELECT count(*) > 0 $calls AND running > 16", 't', 'calls that take no longer when there are more: it grows');
	app(q{SELECT orchestrator.cancel_many(queue => 'calls')});
	enqueue('busy', 2000, 'calls');
	$node->wait_for("SELECT count(*) > 0 $calls AND reason ~ '^\\d+ of \\d+ steps failed, 0 of them timed out'", 't', 'answers of 429 shrink it');
	app(q{SELECT orchestrator.cancel_many(queue => 'calls')});
	$node->wait_for(q{SELECT count(*) = 0 FROM orchestrator.task WHERE live}, 't', 'and all of these end');
};

# Nothing to do, nothing done.
ok($node->at_rest, 'a queue at which nothing waits is not looked at');

$node->stop;
done_testing();
