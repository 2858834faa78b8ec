# A package upgrade while tasks run (RULES F24): the files of the new version are
# installed, the server is restarted, the extension is updated.  In between the
# library and the objects in the database are of different versions.

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use File::Basename;
use File::Copy qw(copy);
use OrchestratorClient;
use OrchestratorStep;
use OrchestratorTest qw(:DEFAULT server_conf);
use PostgreSQL::Test::Utils;
use Test::More;

my $pg_config = $ENV{PG_CONFIG} || 'pg_config';

# An installation of its own, and the sources it was made of.
my $tree = PostgreSQL::Test::Utils::tempdir();
my $installed = dirname($ENV{ORCHESTRATOR_CONF} || 'tmp_install/server.conf');
my %setting = server_conf() =~ /^(\w+) = '(.*\Q$installed\E.*)'$/mg;
s/\Q$installed\E/$tree\/installed/ foreach values %setting;
system_or_bail('cp', '-a', $installed, "$tree/installed");
my ($library, $scripts) = map { "$tree/installed" . (run_command([ $pg_config, $_ ]))[0] } '--pkglibdir', '--sharedir';
copy("$library/orchestrator.so", "$library/orchestrator.0.1.0") or die;

my $node = new_node(name => 'upgrade', %setting);
$node->start;
$node->create_extension;
$node->plain_role('app');
handlers($node);
$node->safe_psql('postgres', q{INSERT INTO chaos.gate VALUES ('upgrade', false)});
$node->psql_as('app', q{SELECT orchestrator.define('pass', 'chaos.pass', max_attempts => 1)});
my $enqueue = q{SELECT orchestrator.enqueue('pass', '{"gate": "upgrade"}')};
my $update = 'ALTER EXTENSION orchestrator UPDATE';
my $accepted = 0;

sub add
{
	my ($n) = @_;
	$node->psql_as('app', "SELECT count(x) FROM ($enqueue AS x FROM generate_series(1, $n)) y");
	$accepted += $n;
	return;
}

# While it is closed, steps run and do not end.
sub gate
{
	my ($closed) = @_;
	$node->safe_psql('postgres', "UPDATE chaos.gate SET closed = $closed");
	return;
}

# The files of another version: a library that serves objects from a release on,
# and a script that makes them of those before.
sub install
{
	my ($version, $oldest, $before) = @_;
	system_or_bail('cp', '-a', 'Makefile', 'orchestrator.control', 'src', 'sql', $tree);
	edit("$tree/src/catalog.c", qr/^#define OLDEST_SERVED "\K[^"]+/m, $oldest);
	my @flags = -e '.flags' && slurp_file('.flags') =~ /(COPT=.*)/ ? ($1) : ();
	system_or_bail('make', '--no-print-directory', '-C', $tree, "PG_CONFIG=$pg_config", @flags, "EXTVERSION=$version", 'orchestrator.so');
	rename "$tree/orchestrator.so", "$library/orchestrator.so" or die;
	edit("$scripts/extension/orchestrator.control", qr/^default_version = '\K[^']+/m, $version);
	put_file("$scripts/extension/orchestrator--$before--$version.sql", 'ALTER TABLE orchestrator.definition ADD COLUMN "since ' . $version . '" int;');
	return;
}

sub edit
{
	my ($file, $pattern, $text) = @_;
	put_file($file, slurp_file($file) =~ s/$pattern/$text/r);
	return;
}

# Every task that was accepted has run, once, in its only attempt.
sub exact
{
	$node->wait_for('SELECT count(*) = 0 FROM orchestrator.task WHERE live', 't', 'all tasks are finished');
	is($node->safe_psql('postgres', q{SELECT count(*) || ' ' || count(DISTINCT task_id) FROM chaos.ledger}), "$accepted $accepted", 'each has run, once');
	is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT state || ' ' || attempt, ',') FROM orchestrator.task}), 'completed 1', 'in its first attempt');
	return;
}

subtest 'files are installed' => sub {
	my $client = session($node, 'app');
	$client->query($enqueue);
	add(1000);
	install('0.2.0', '0.2', '0.1.0');
	foreach my $kind ('executor', 'supervisor')
	{
		my @before = workers($node, $kind);
		$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE backend_type = 'orchestrator $kind'");
		ok(gone(@before), "each $kind left");
	}
	add(1000);
	$client->query($enqueue);
	is($client->errors, '', 'a session goes on');
	$accepted += 2;
	like(refused($node, 'postgres', $update),
		qr/the library of orchestrator 0\.1\.0 does not serve version 0\.2\.0 .*\n.*HINT:  Restart the server/s, 'an update before the restart is refused');
	is($node->safe_psql('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'orchestrator'}), '0.1.0', 'and changes nothing');
	add(1000);
	exact();
	$client->quit;
};

my $offset;
my $misfit = qr/LOG:  the library of orchestrator 0\.2\.0 does not serve version 0\.1\.0 of the extension in database "postgres"/;

subtest 'the server is restarted' => sub {
	gate('true');
	add(1000);
	$node->wait_for(q{SELECT count(*) > 0 FROM orchestrator.worker_status WHERE task_id IS NOT NULL});
	$offset = log_end($node);
	$node->restart;
	$node->wait_for_log($misfit, $offset);
	ok(defined within(5, sub { !workers($node, 'supervisor|executor') }), 'no supervisor stays, no executor comes');
	like(refused($node, 'app', $enqueue), qr/does not serve version 0\.1\.0 .*\n.*HINT:  Run ALTER EXTENSION orchestrator UPDATE/s, 'calls say what to do');
	like(refused($node, 'app', q{SELECT * FROM orchestrator.task_status}), qr/does not serve version 0\.1\.0 /, 'views, too');
	my ($out) = client($node, 'postgres')->exits(6, 'doctor');
	like($out, qr/^problem  release    the library of orchestrator 0\.2\.0 does not serve version 0\.1\.0 .*\n +Run ALTER EXTENSION orchestrator UPDATE/m, 'so does doctor');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task WHERE live}), 1000, 'tasks wait');
	gate('false');
};

subtest 'the extension is updated' => sub {
	my ($first) = split /\n/, $node->safe_psql('postgres', 'SELECT min(id) FROM orchestrator.task WHERE live');
	measure_ok(5, 'ALTER EXTENSION UPDATE, and a task that waited runs', sub {
			$node->safe_psql('postgres', $update);
			is(outcome_of($node, 'app', $first)->{state}, 'completed', 'completed');
		});
	is(scalar(() = log_since($node, $offset) =~ /$misfit/g), 1, 'the log has said it once');
	exact();
};

subtest 'a library that serves the release before it' => sub {
	gate('true');
	add(1000);
	install('0.3.0', '0.2', '0.2.0');
	$node->restart;
	gate('false');
	add(1000);
	exact();
	gate('true');
	add(1000);
	$node->safe_psql('postgres', $update);
	gate('false');
	add(1000);
	exact();
};

subtest 'an older library' => sub {
	rename "$library/orchestrator.0.1.0", "$library/orchestrator.so" or die;
	$node->restart;
	like(refused($node, 'app', $enqueue), qr/the library of orchestrator 0\.1\.0 does not serve version 0\.3\.0 .*\n.*HINT:  Restart the server/s, 'is refused');
	$node->stop;
};

done_testing();
