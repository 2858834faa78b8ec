# top and doctor.

use strict;
use warnings;
use utf8;

use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_node(name => 'cli_top', timezone => 'UTC');
$node->start;
my $admin = 'postgres';
my $bare = client($node, $admin);
my ($out, $err) = $bare->exits(6, 'doctor');
like($out, qr/^problem  extension  the extension is not in database postgres\n {20}Run CREATE EXTENSION/m, 'no extension');
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', q{CREATE ROLE nobody LOGIN; SELECT orchestrator.grant_usage('app', 'worker')});
$node->safe_psql('postgres', 'CREATE SCHEMA app AUTHORIZATION app');
$node->psql_as('app', <<'SQL');
CREATE FUNCTION app.echo(input jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT input $$;
CREATE FUNCTION app.sleeps(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM orchestrator.progress(0.4, E'page 4\x1b[31m');
  PERFORM pg_sleep(600);
  RETURN input;
END $$;
CREATE FUNCTION app.fails(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'planned'; END $$;
SELECT orchestrator.define_queue('side', max_running => 3), orchestrator.define_queue('still'), orchestrator.pause_queue('still'), orchestrator.define_queue('far');
SELECT orchestrator.define('echo', 'app.echo'), orchestrator.define('sleeps', 'app.sleeps'),
       orchestrator.define('fails', 'app.fails', max_attempts => 1), orchestrator.define('far', 'far', kind => 'remote');
SQL
my $cli = client($node, 'app');

subtest 'doctor' => sub {
	is(outcome($node, 'app', q{orchestrator.enqueue('echo')})->{state}, 'completed', 'all is well');
	($out) = $cli->exits(0, 'doctor');
	unlike($out, qr/^(?:problem|warning)/m, 'nothing is found');
	$bare->exits(0, 'doctor');
	is(scalar(grep { $_->{level} !~ /^(?:ok|unknown)$/ } @{ $cli->json('doctor') }), 0, 'as JSON');

	$node->psql_as('app', q{SELECT orchestrator.enqueue('echo', queue => 'still')});
	($out) = $cli->exits(7, 'doctor');
	like($out, qr/^warning  queues     queue "still" is paused with 1 tasks in it\n {20}SELECT orchestrator\.resume_queue\('still'\)/m, 'a paused queue');
	($out) = $cli->exits(7, '--json', 'doctor');
	my ($found) = grep { $_->{level} eq 'warning' } @{ OrchestratorClient::decode_json_text($out) };
	like($found->{advice}, qr/resume_queue/, 'as JSON, with advice');
	($out) = client($node, 'other')->exits(0, 'doctor');
	($out) = client($node, 'nobody')->exits(6, 'doctor');
	like($out, qr/role "nobody" has no rights.*\n.*grant_usage\('nobody'\)/, 'a role without rights');

	# what would take its time, written down
	$node->psql_as('app', q{SELECT orchestrator.enqueue('far', queue => 'far')});
	my $id = $node->psql_as('app', q{SELECT task_id FROM orchestrator.claim('{far}', 'lazy', 1, '1 day')});
	$node->safe_psql('postgres', "UPDATE orchestrator.lease SET ends_at = now() - interval '1 hour' WHERE task_id = $id");
	($out) = $cli->exits(6, 'doctor');
	like($out, qr/^problem  leases     task $id was claimed by remote worker "lazy"/m, 'a lease that is overdue');
	like(($cli->exits(0, 'workers'))[0], qr/^lazy +remote +app +busy .* $id +far /m, 'and who has it');
	like(($cli->exits(0, 'show', $id))[0], qr/^worker +lazy\nlease until +\d/m, 'as the task says, too');
	$node->safe_psql('postgres', "UPDATE orchestrator.lease SET ends_at = now() + interval '1 hour' WHERE task_id = $id");

	$node->safe_psql('postgres', q{UPDATE orchestrator.database_identity SET system_identifier = 1});
	($out) = $bare->exits(6, 'doctor');
	like($out, qr/^problem  copy .*\n.*activate\(\)/m, 'a copy');
	($out) = $cli->exits(6, 'doctor');
	like($out, qr/^problem  copy .*\n.*activate\(\)/m, 'as a plain role sees it, too');
	(undef, $err) = $cli->exits(0, 'enqueue', 'echo');
	like($err, qr/tasks do not run in database "postgres": it is a copy \(.*activate\(\)/, 'and enqueue says so');
	$node->safe_psql('postgres', 'SELECT orchestrator.activate()');
	$node->psql_as('app', q{SELECT orchestrator.cancel_many(all_tasks => true)});
};

subtest 'top' => sub {
	is(outcome($node, 'app', q{orchestrator.enqueue('fails')})->{state}, 'failed', 'one fails');
	my $id = $node->psql_as('app', q{SELECT orchestrator.enqueue('sleeps', queue => 'side', name => 'dozing')});
	$node->wait_for("SELECT progress > 0.3 FROM orchestrator.task_status WHERE task_id = $id");
	($out) = $cli->exits(0, 'top');
	like($out, qr/^ *DONE\/S .*^Queues\nQUEUE .*^side +0 +1 +3\b.*^Workers\nWORKER .*^\d+ +executor +app +busy .* $id +dozing +40 % +page 4\\x1b\[31m\n.*^Slowest.*^Failing\n.*^fails +0 +1 /ms, 'once, on a pipe')
	  or diag($out);
	my $all = $cli->json('top');
	is($all->{total}{running}, 1, 'as JSON');
	is_deeply([ map { $_->{definition} } @{ $all->{failing} } ], ['fails'], 'what fails');
	ok(scalar(grep { $_->{queue} eq 'side' && $_->{max_running} == 3 } @{ $all->{queues} }), 'queues with their limits');
	is(client($node, 'other')->json('top')->{total}{running}, 0, 'nothing of others');
	$cli->exits(2, 'top', '--delay', 'never');

	my $t = $cli->terminal(90, 30, 'top', '--delay', '0.2');
	$t->until(qr/dozing/);
	like($t->text, qr/\e\[\?1049h/, 'on a screen of its own');
	$t->type('p');
	$t->until(qr/held: p goes on/);
	$node->psql_as('app', "SELECT orchestrator.cancel($id)");
	$t->forget;
	$t->type('p');
	$t->until(qr/q quit(?:(?!q quit).)*side +0 +0 /s, 'it goes on');
	$t->forget;
	$t->resize(40, 8);
	$t->until(qr/app\@postgres.*app\@postgres.*app\@postgres/s);
	my ($last) = $t->text =~ /.*\e\[H(.*?\e\[J)/s;
	$last =~ s/\e\[[?\d;]*[A-Za-z]//g;
	cmp_ok(scalar(split /\r?\n/, $last), '<=', 8, 'no more lines than rows');
	is(scalar(grep { length > 40 } split /\r?\n/, $last), 0, 'none longer than its columns') or diag($last);
	$t->type('q');
	is($t->exit_code, 0, 'q ends it');
	like($t->text, qr/\e\[\?1049l\e\[\?25h\z/, 'and gives the terminal back');

	$t = $cli->terminal(90, 30, 'top', '--delay', '0.2');
	$t->until(qr/Workers/);
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'app'});
	$t->until(qr/trying again in .*q quit/s, 'a lost connection is made again');
	$t->type("\cC");
	is($t->exit_code, 130, 'Ctrl-C');
	like($t->text, qr/\e\[\?1049l\e\[\?25h\z/, 'gives the terminal back, too');
};

subtest 'without the engine' => sub {
	$node->set('orchestrator.enabled' => 'off');
	$node->reload;
	$node->wait_for(q{SELECT setting = 'off' FROM pg_settings WHERE name = 'orchestrator.enabled'});
	($out) = $cli->exits(6, 'doctor');
	like($out, qr/^problem  enabled    tasks do not run: orchestrator\.enabled is off$/m, 'turned off');
	$node->set(shared_preload_libraries => '', 'orchestrator.enabled' => 'on');
	$node->restart;
	($out) = $cli->exits(6, 'doctor');
	like($out, qr/^problem  library    the library is not preloaded/m, 'not preloaded');
};

done_testing();
