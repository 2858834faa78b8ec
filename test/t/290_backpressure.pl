# Backpressure with real executors and several clients at once: a queue is never
# deeper than its max_depth, nothing that was accepted is lost, alerts are heard,
# and after a crash the places are right again.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $clients = 4;
my $node = new_node(name => 'backpressure', 'orchestrator.executors_per_role' => 2);
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
CREATE TABLE app.accepted (round text, id bigint);
CREATE TABLE app.ran (id bigint);
CREATE TABLE app.pushed (round text);
CREATE FUNCTION app.job(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(0.001);
  INSERT INTO app.ran SELECT task_id FROM orchestrator.current_task();
END $$;
-- Enqueue n tasks, each in a transaction of its own, now and then some that are
-- rolled back or bulk; how often it was refused.
CREATE PROCEDURE app.push(round text, n int, INOUT refused int) LANGUAGE plpgsql AS $$
DECLARE
  v_done int := 0;
BEGIN
  refused := 0;
  WHILE v_done < n LOOP
    BEGIN
      IF random() < 0.1 THEN
        INSERT INTO app.accepted SELECT round, unnest(orchestrator.enqueue_many('job', ARRAY['1', '2', '3']::jsonb[], queue => 'q'));
        v_done := v_done + 3;
      ELSE
        INSERT INTO app.accepted SELECT round, orchestrator.enqueue('job', queue => 'q');
        v_done := v_done + 1;
      END IF;
      IF random() < 0.1 THEN
        RAISE division_by_zero;
      END IF;
    EXCEPTION
      WHEN SQLSTATE 'OR008' THEN refused := refused + 1;
      WHEN division_by_zero THEN NULL;
    END;
    COMMIT;
  END LOOP;
END $$;
-- The deepest that was seen until a round is over.
CREATE FUNCTION app.watch(round text, states text[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_deepest bigint := 0;
BEGIN
  WHILE NOT EXISTS (SELECT FROM app.pushed p WHERE p.round = watch.round) LOOP
    v_deepest := greatest(v_deepest, (SELECT count(*) FROM orchestrator.task t WHERE t.live AND t.state::text = ANY (states)));
    PERFORM pg_sleep(0.002);
  END LOOP;
  RETURN v_deepest;
END $$;
SELECT orchestrator.define('job', 'app.job');
SQL

sub app { return $node->psql_as('app', $_[0]) }

# All clients push at once while one watches; what they answer, and the deepest.
sub push_all
{
	my ($round, $n) = @_;
	my $watcher = session($node, 'app');
	$watcher->query('SELECT 1');
	$watcher->send("SELECT app.watch('$round', '{pending,scheduled}')");
	my @clients = map { session($node, 'app') } 1 .. $clients;
	$_->send("CALL app.push('$round', $n, NULL)") foreach @clients;
	my @refused = map { $_->answer } @clients;
	my @errors = grep { $_ ne '' } map { $_->errors } @clients;
	app("INSERT INTO app.pushed VALUES ('$round')");
	my $deepest = $watcher->answer;
	$_->quit foreach @clients, $watcher;
	is("@errors", '', "$round: no error");
	return ($deepest, eval { my $sum = 0; $sum += $_ foreach @refused; $sum });
}

# Tasks that executors gave back unstarted wait again, and are not refused.
sub not_deeper
{
	my ($deepest) = @_;
	my $back = app(q{SELECT count(*) FROM orchestrator.task WHERE epoch > attempt});
	return cmp_ok($deepest, '<=', 10 + $back, "no deeper than max_depth ($deepest; $back were given back)");
}

# What was accepted, and nothing else, ran, once.
sub nothing_lost
{
	my ($round) = @_;
	$node->wait_for('SELECT count(*) = 0 FROM orchestrator.task WHERE live', 't', "$round: all are finished");
	is(app(q{SELECT count(*) FROM (SELECT id FROM app.accepted EXCEPT SELECT id FROM app.ran) x}), 0, "$round: none is lost");
	is(app(q{SELECT count(*) FROM (SELECT id FROM app.ran EXCEPT SELECT id FROM app.accepted) x}), 0, "$round: none ran that was not accepted");
	is(app(q{SELECT count(*) - count(DISTINCT id) FROM app.ran}), 0, "$round: none ran twice");
	return;
}

subtest 'reject' => sub {
	app(q{SELECT orchestrator.define_queue('q', max_depth => 10)});
	my ($deepest, $refused) = push_all('reject', 200);
	not_deeper($deepest);
	cmp_ok($deepest, '>=', 8, 'which was reached');
	cmp_ok($refused, '>', 0, "some were refused ($refused)");
	nothing_lost('reject');
};

subtest 'wait' => sub {
	app(q{SELECT orchestrator.define_queue('q', max_depth => 10, on_full => 'wait', full_wait => '30 s')});
	my ($deepest, $refused) = push_all('wait', 200);
	not_deeper($deepest);
	cmp_ok($deepest, '>=', 8, 'which was reached');
	is($refused, 0, 'none was refused');
	nothing_lost('wait');
};

subtest 'defer' => sub {
	app(q{SELECT orchestrator.define_queue('q', max_depth => 10, on_full => 'defer', full_wait => '500 ms')});
	my ($deepest, $refused) = push_all('defer', 200);
	is($refused, 0, 'none was refused');
	cmp_ok(app(q{SELECT count(*) FROM orchestrator.task t JOIN app.accepted a USING (id) WHERE a.round = 'defer' AND t.run_at IS NOT NULL}),
		'>', 0, 'some were deferred');
	nothing_lost('defer');
};

subtest 'quota of a role' => sub {
	app(q{SELECT orchestrator.define_queue('q')});
	$node->safe_psql('postgres', q{SELECT orchestrator.set_quota('app', max_queued => 10)});
	app(q{CREATE OR REPLACE PROCEDURE app.push(round text, n int, INOUT refused int) LANGUAGE plpgsql AS $$
BEGIN
  refused := 0;
  FOR i IN 1 .. n LOOP
    BEGIN
      INSERT INTO app.accepted SELECT round, orchestrator.enqueue('job', queue => CASE WHEN i % 2 = 0 THEN 'q' END);
    EXCEPTION WHEN SQLSTATE 'OR009' THEN refused := refused + 1;
    END;
    COMMIT;
  END LOOP;
END $$});
	my ($deepest, $refused) = push_all('quota', 300);
	cmp_ok($deepest, '<=', 10, "no more than max_queued wait ($deepest)");
	cmp_ok($refused, '>', 0, "some were refused ($refused)");
	nothing_lost('quota');
	$node->safe_psql('postgres', q{SELECT orchestrator.set_quota('app')});
};

subtest 'alerts' => sub {
	app(q{SELECT orchestrator.define_queue('q', alert_depth => 20, alert_age => '2 s'), orchestrator.pause_queue('q')});
	my $queue = app(q{SELECT id FROM orchestrator.queue WHERE name = 'q'});
	my $listener = session($node, 'app');
	$listener->query('LISTEN orchestrator_alert');
	my $heard = '';
	my $hears = sub {
		my ($pattern, $name) = @_;
		ok(defined within(15, sub { $heard .= $listener->query('SELECT 1'); $heard =~ $pattern }), $name) or diag($heard);
	};

	app(q{INSERT INTO app.accepted SELECT 'alerts', orchestrator.enqueue('job', queue => 'q') FROM generate_series(1, 25)});
	$hears->(qr/\{"queue":$queue,"kind":"depth","event":"raised","value":25\.000,"limit":20\.000\}/, 'too deep: raised');
	$hears->(qr/\{"queue":$queue,"kind":"age","event":"raised","value":[2-9]\.\d+,"limit":2\.000\}/, 'too old: raised, though nothing happens');
	is(app(q{SELECT string_agg(kind, ',' ORDER BY kind) FROM orchestrator.alert_status WHERE queue = 'q' AND raised}), 'age,depth', 'the view tells');
	app(q{SELECT orchestrator.resume_queue('q')});
	$hears->(qr/"kind":"depth","event":"cleared"/, 'drained: cleared');
	$hears->(qr/"kind":"age","event":"cleared"/, 'both');
	is(app(q{SELECT count(*) FROM orchestrator.alert_status WHERE queue = 'q' AND raised}), 0, 'the view tells');
	my @told = $heard =~ /("kind":"\w+","event":"\w+")/g;
	my %times;
	$times{$_}++ foreach @told;
	is(scalar(grep { $_ > 1 } values %times), 0, 'each was told once') or diag($heard);
	$listener->quit;
	nothing_lost('alerts');
};

subtest 'after a crash' => sub {
	app(q{SELECT orchestrator.define_queue('q', max_depth => 10), orchestrator.pause_queue('q')});
	app(q{INSERT INTO app.accepted SELECT 'crash', orchestrator.enqueue('job', queue => 'q') FROM generate_series(1, 7)});
	my $open = session($node, 'app');
	$open->query(q{BEGIN});
	$open->query(q{SELECT orchestrator.enqueue('job', queue => 'q') FROM generate_series(1, 3)});
	like(refused($node, 'app', q{SELECT orchestrator.enqueue('job', queue => 'q')}), qr/queue "q" is full/, 'places of an open transaction are taken');
	my $offset = log_end($node);
	kill_hard(workers($node, 'supervisor'));
	await_ready($node, $offset);
	$open->kill;
	like(refused($node, 'app', q{SELECT orchestrator.enqueue_many('job', '{1,2,3,4}', queue => 'q')}), qr/queue "q" is full/, 'four have no room');
	app(q{INSERT INTO app.accepted SELECT 'crash', unnest(orchestrator.enqueue_many('job', '{1,2,3}', queue => 'q'))});
	like(refused($node, 'app', q{SELECT orchestrator.enqueue('job', queue => 'q')}), qr/queue "q" is full/, 'three have: the queue is full again');
	my ($killed) = app(q{SELECT orchestrator.cancel_many(queue => 'q', max_rows => 2)});
	app(q{DELETE FROM app.accepted a USING orchestrator.task t WHERE t.id = a.id AND t.state = 'cancelled'});
	app(q{INSERT INTO app.accepted SELECT 'crash', unnest(orchestrator.enqueue_many('job', '{1,2}', queue => 'q'))});
	like(refused($node, 'app', q{SELECT orchestrator.enqueue('job', queue => 'q')}), qr/queue "q" is full/, 'after a cancel of two as many more');
	app(q{SELECT orchestrator.resume_queue('q')});
	nothing_lost('crash');

	$node->stop('immediate');
	$node->start;
	app(q{INSERT INTO app.accepted SELECT 'restart', orchestrator.enqueue('job', queue => 'q')});
	nothing_lost('restart');
};

subtest 'an idle system with limits and alerts' => sub {
	app(q{SELECT orchestrator.define_queue('q', max_depth => 10, alert_depth => 5, alert_age => '1 min')});
	ok($node->at_rest, 'nothing happens');
};

$node->stop('fast');

# Nothing runs there, but nothing is deeper either.
subtest 'without preload' => sub {
	$node->set('shared_preload_libraries' => '');
	$node->start;
	app(q{SELECT orchestrator.define_queue('q', max_depth => 3)});
	my $open = session($node, 'app');
	$open->query('BEGIN');
	$open->query(q{SELECT orchestrator.enqueue_many('job', '{1,2}', queue => 'q')});
	my $second = session($node, 'app');
	$second->send(q{SELECT cardinality(orchestrator.enqueue_many('job', '{1,2}', queue => 'q'))});
	$node->wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'}, 't', 'one waits for the other');
	$open->query('ROLLBACK');
	is($second->answer, 2, 'which was undone');
	like(refused($node, 'app', q{SELECT orchestrator.enqueue_many('job', '{1,2}', queue => 'q')}), qr/queue "q" is full/, 'two more have no room');
	app(q{SELECT orchestrator.enqueue('job', queue => 'q')});
	like(refused($node, 'app', q{SELECT orchestrator.enqueue('job', queue => 'q')}), qr/queue "q" is full/, 'one has: it is full');
	$node->safe_psql('postgres', q{SELECT orchestrator.set_quota('app', 4)});
	app(q{SELECT orchestrator.enqueue('job')});
	like(refused($node, 'app', q{SELECT orchestrator.enqueue('job')}), qr/role "app" may not have so many/, 'a quota holds, too');
	$_->quit foreach $open, $second;
	$node->stop('fast');
};

# A count reads the index, then the rows: one that is given back in between goes
# to another place, and none of the two would be seen.  The disk holds the count
# up at a row before it.
subtest 'a task is given back while it is counted' => sub {
	my ($control, $disk) = disk();
	local $ENV{LD_PRELOAD} = $disk;
	my $counted = new_node(name => 'counted', autovacuum => 'off', 'orchestrator.executors_per_role' => 1);
	$counted->start;
	$counted->create_extension;
	$counted->plain_role('app');
	$counted->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
	my $ask = sub { return $counted->psql_as('app', $_[0]) };
	# a step that leaves no other to run in its transaction, nor after it
	$ask->(<<'SQL');
CREATE FUNCTION app.last(input jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF input ? 'last' THEN
    PERFORM orchestrator.pause_queue('open');
    SET CONSTRAINTS ALL IMMEDIATE;
  END IF;
END $$;
SELECT orchestrator.define('last', 'app.last'), orchestrator.define('busy', 'SELECT pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1)', 'sql');
SELECT orchestrator.define_queue('held'), orchestrator.define_queue('open'), orchestrator.pause_queue('held');
SELECT orchestrator.enqueue('last', to_jsonb(repeat('x', 1800)), queue => 'held') FROM generate_series(1, 20);
SQL
	$counted->restart;
	is(outcome($counted, 'app', q{orchestrator.enqueue('last')})->{state}, 'completed', 'an executor knows that they are short') foreach 1 .. 3;
	my $gate = session($counted, 'app');
	$gate->query('SELECT pg_advisory_lock(1)');
	$ask->(q{SELECT orchestrator.enqueue('busy')});
	$counted->wait_for(q{SELECT count(*) = 1 FROM orchestrator.worker_status WHERE task_id IS NOT NULL}, 't', 'it is busy');
	my ($first, $second) = split /\n/, $ask->(q{SELECT orchestrator.enqueue('last', '{"last": true}', queue => 'open') FROM generate_series(1, 2)});
	$counted->safe_psql('postgres', q{SELECT orchestrator.set_quota('app', max_queued => 21)});

	append_to_file("$control/still", $counted->data_dir . '/' . $counted->safe_psql('postgres', q{SELECT pg_relation_filepath('orchestrator.task_live')}));
	my $client = session($counted, 'app');
	$client->send(q{SELECT orchestrator.enqueue('last', queue => 'held')});
	$counted->wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'IO' AND usename = 'app'}, 't', 'a count is held up');
	$gate->query('SELECT pg_advisory_unlock(1)');
	is(outcome_of($counted, 'app', $first)->{state}, 'completed', 'meanwhile one of two tasks runs');
	unlink "$control/still";
	$client->answer;
	like($client->errors, qr/role "app" may not have so many/, 'the other one is counted');
	is($ask->("SELECT state || ' ' || epoch FROM orchestrator.task WHERE id = $second"), 'pending 1', 'it was given back');
	is($ask->('SELECT count(*) FROM orchestrator.task WHERE live'), 21, 'no more wait than may');
	$_->quit foreach $client, $gate;
	$counted->stop;
};
done_testing();
