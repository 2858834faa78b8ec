package OrchestratorTest;

# Servers for the TAP tests, on top of PostgreSQL::Test::Cluster.
#
#   use OrchestratorTest;
#
#   my $node = new_node('orchestrator.enabled' => 'on');   # not started yet
#   $node->start;
#   $node->create_extension;                               # in database postgres
#   $node->plain_role('app');                              # LOGIN, may enqueue
#   $node->wait_for('SELECT count(*) FROM t', '5');        # polls, with a limit
#
#   report("1000 tasks/s\n");                              # for programs that
#                                                          # are no tests
#
# A node is a PostgreSQL::Test::Cluster, with all its methods.  It listens on a
# Unix socket only, keeps its data where the run keeps it and is stopped at the
# end of the test, however that comes.

use strict;
use warnings;

use Cwd qw(getcwd);
use Exporter 'import';
use Fcntl qw(LOCK_EX);
use IO::Handle;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT    = qw(new_node new_cron_node has_pg_cron start_with_clock npm_packages tree wait_for plain_role report);
our @EXPORT_OK = qw(server_conf);

my $number = 0;
my $nodes  = 0;
my $tree   = getcwd();

# Whoever runs the tests: the superuser of their servers has the same name.
$ENV{PGUSER} = 'postgres';

# The settings every test server has: test/server.conf, and where the extension
# was installed.  The Makefile and run.sh say in which file.
sub server_conf
{
	my $file = $ENV{ORCHESTRATOR_CONF} || 'tmp_install/server.conf';
	return slurp_file($file);
}

# The folder of everything that is tested, where tests are started.  TESTDIR is
# where this one may write.
sub tree { return $tree }

# Print for the reader.  PostgreSQL::Test::Utils sends standard output to the log
# of the test and keeps the real one for Test::More: benchmarks want that.
sub report
{
	my $out = Test::More->builder->output;
	print $out @_;
	$out->flush;
	return;
}

# Make a node with the given settings; "name" names it (its log file, too).
# Executors are on unless a test turns them off; fsync is off unless turned on.
sub new_node
{
	my %settings = @_;
	my $name = delete $settings{name} || 'node' . (++$number > 1 ? $number : '');
	my $node = PostgreSQL::Test::Cluster->new($name);

	init_node($node);
	bless $node, 'OrchestratorTest::Node';

	$node->append_conf('postgresql.conf', server_conf());
	$node->append_conf('postgresql.conf', "orchestrator.enabled = on\n");
	# Fast shutdown after a crash test must not be mistaken for a restart.
	$node->append_conf('postgresql.conf', "restart_after_crash = on\n");
	$node->set(%settings);
	return $node;
}

# The first server of a test gets a copy of what one initdb made for the whole run.
# The others have an initdb of their own, and with it the system identifier that
# tells servers from each other.
sub init_node
{
	my ($node) = @_;
	my $run = \&PostgreSQL::Test::Utils::system_or_bail;
	my $copy = !$nodes++;

	no warnings 'redefine';
	local *PostgreSQL::Test::Utils::system_or_bail = sub {
		return $run->(@_) unless $copy && $_[0] eq 'initdb';
		return $run->('cp', '-RPp', template($run, $node->data_dir, @_), $node->data_dir);
	};
	return $node->init(extra => [ '--no-locale', '--encoding=UTF8', "--username=$ENV{PGUSER}" ]);
}

# The folder of the run that has what this initdb makes in the folder of a node.
sub template
{
	my ($run, $folder, @initdb) = @_;
	my $template = "$tree/tmp_check/template";

	open my $lock, '>', "$template.lock" or die "$template.lock: $!";
	flock $lock, LOCK_EX or die "$template.lock: $!";
	if (!-e $template)
	{
		$run->(map { $_ eq $folder ? "$template.new" : $_ } @initdb);
		rename "$template.new", $template or die "$template: $!";
	}
	return $template;
}

# Whether the server under test has pg_cron: Debian's has, by setup.sh.
sub has_pg_cron
{
	my ($stdout) = run_command([ $ENV{PG_CONFIG} || 'pg_config', '--sharedir' ]);
	return -e "$stdout/extension/pg_cron.control";
}

# The folder, in the run's, where npm put the packages that the lock file beside
# package.json names, with these programs beside them; undef where npm is missing
# or can fetch nothing.  Tests that run beside each other share it.
sub npm_packages
{
	my ($sources, $name, @programs) = @_;
	my $folder = "$tree/tmp_$name";
	return if grep { system("command -v $_ >/dev/null 2>&1") != 0 } qw(node npm);
	system_or_bail('mkdir', '-p', $folder);
	open my $lock, '>', "$folder/lock" or die "$folder/lock: $!";
	flock $lock, LOCK_EX or die "$folder/lock: $!";
	if (!-e "$folder/node_modules/.package-lock.json")
	{
		system_or_bail('cp', "$sources/package.json", "$sources/package-lock.json", $folder);
		return if system_log('npm', 'ci', '--silent', '--no-audit', '--no-fund', '--fetch-retries=1', '--fetch-retry-mintimeout=1000',
			'--prefix', $folder) != 0;
	}
	system_or_bail('cp', '-pu', map({ "$sources/$_" } @programs), $folder) if @programs;
	return $folder;
}

# A node that has pg_cron as the README says, with its jobs in database postgres.
sub new_cron_node
{
	return new_node(
		shared_preload_libraries => 'orchestrator,pg_cron',
		'cron.database_name' => 'postgres',
		'cron.use_background_workers' => 'on',
		@_);
}

# Start a node whose clocks are what clock.c makes of these variables.
sub start_with_clock
{
	my ($node, %clock) = @_;
	my $library = PostgreSQL::Test::Utils::tempdir() . '/clock.so';

	system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-Wall', '-Werror', '-o', $library, "$tree/test/lib/clock.c", '-ldl');
	local @ENV{ 'LD_PRELOAD', keys %clock } = ($library, values %clock);
	return $node->start;
}

# wait_for($node, ...) reads as well as $node->wait_for(...).
*wait_for   = \&OrchestratorTest::Node::wait_for;
*plain_role = \&OrchestratorTest::Node::plain_role;

package OrchestratorTest::Node;

use strict;
use warnings;

use IPC::Run ();
use List::Util qw(min);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @ISA = ('PostgreSQL::Test::Cluster');

# Write settings to the configuration file; the last one of a name wins.
sub set
{
	my ($self, %settings) = @_;
	foreach my $setting (sort keys %settings)
	{
		(my $value = $settings{$setting}) =~ s/'/''/g;
		$self->append_conf('postgresql.conf', "$setting = '$value'\n");
	}
	return;
}

sub create_extension
{
	my ($self, $database) = @_;
	$self->safe_psql($database || 'postgres', 'CREATE EXTENSION orchestrator');
	return;
}

# As PostgreSQL's own, which rests 0.1 s after every look: here the first rests
# are short, so that what comes soon is seen soon.
sub poll_query_until
{
	my ($self, $database, $query, $expected) = @_;
	my ($out, $err);

	$expected = 't' unless defined $expected;
	for (my ($rested, $rest) = (0, 0.01); $rested < $PostgreSQL::Test::Utils::timeout_default; $rested += $rest)
	{
		IPC::Run::run([ 'psql', '-XAt', '-d', $self->connstr($database) ], '<', \$query, '>', \$out, '2>', \$err);
		chomp($out, $err);
		return 1 if $out eq $expected && $err eq '';
		$rest = min(0.1, 1.3 * $rest);
		usleep(1e6 * $rest);
	}
	diag("waited in vain for: $query\nexpected: $expected\ngot: $out\nerrors: $err");
	return 0;
}

# Wait until the query answers $expected (default: t); a failed test if never.
sub wait_for
{
	my ($self, $sql, $expected, $name) = @_;
	return ok($self->poll_query_until('postgres', $sql, defined $expected ? $expected : 't'),
		$name || "wait for: $sql");
}

# Whether nothing is committed in database postgres for 3 s, as one sees who is
# not there.  Who is slow to tell of its last transaction is waited for.
sub at_rest
{
	my ($self) = @_;
	my $before = '';
	foreach my $look (0 .. 5)
	{
		my $now = $self->safe_psql('template1', q{SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'});
		return 1 if $now eq $before && $look > 1;
		$before = $now;
		sleep($look == 0 ? 1 : 3);
	}
	return 0;
}

# An ordinary application's role, as a database owner would make it.
sub plain_role
{
	my ($self, $role, $database) = @_;
	$self->safe_psql($database || 'postgres', <<"SQL");
CREATE ROLE "$role" LOGIN;
SELECT orchestrator.grant_usage('$role', 'producer');
SQL
	return;
}

# Run SQL as that role; dies when it fails, like safe_psql.
sub psql_as
{
	my ($self, $role, $sql, %params) = @_;
	my $database = delete $params{database} || 'postgres';
	return $self->safe_psql($database, $sql, extra_params => [ '-U', $role ], %params);
}

1;
