# Run the pgTAP tests: each file of test/pgtap in a database of its own, and a
# subtest of its own here.  No executor runs, so the tests see exactly the
# transitions they make themselves.

use strict;
use warnings;

use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @names = map { s{.*/}{}r =~ s{\.sql$}{}r } sort glob('test/pgtap/*.sql');
@names = split ' ', $ENV{ORCHESTRATOR_PGTAP} if $ENV{ORCHESTRATOR_PGTAP};
plan skip_all => 'no tests in test/pgtap' unless @names;

my $node = new_node(name => 'pgtap', 'orchestrator.enabled' => 'off');
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE pgtap_template');
$node->safe_psql('pgtap_template', 'CREATE EXTENSION pgtap; CREATE EXTENSION orchestrator');

foreach my $name (@names)
{
	subtest $name => sub { run_file($name) };
}

$node->stop;
done_testing();

# Feed one file to psql, and turn the TAP it prints into assertions of ours.
sub run_file
{
	my ($name) = @_;
	my ($planned, $count, $out, $err) = (undef, 0);

	$node->safe_psql('postgres', qq{CREATE DATABASE "$name" TEMPLATE pgtap_template});
	IPC::Run::run(
		[
			'psql', '-X', '-q', '-A', '-t', '-P', 'pager=off',
			'-v', 'ON_ERROR_STOP=1', '-v', 'ON_ERROR_ROLLBACK=1',
			'-d', $node->connstr($name), '-f', "test/pgtap/$name.sql"
		],
		'>', \$out, '2>', \$err);
	my $status = $? >> 8;

	foreach my $line (split /\n/, $out)
	{
		if ($line =~ /^1\.\.(\d+)/) { $planned = $1 }
		elsif ($line =~ /^(not )?ok \d+(?: - )?(.*?)(?: # (TODO|SKIP)\b *(.*))?$/i)
		{
			my ($bad, $what, $directive, $why) = ($1, $2, uc($3 // ''), $4);
			$count++;
			local our $TODO = $why if $directive eq 'TODO';
			ok(!$bad, $what);
		}
		elsif ($line =~ /^# (Looks like you planned .*)/) { fail($1) }    # one was not printed
		elsif ($line =~ /^# (.*)/) { diag($1) }
	}
	is($status, 0, "$name ran to its end") or diag($err);
	is($count, $planned, "$name ran as many tests as planned");
	$node->safe_psql('postgres', qq{DROP DATABASE "$name"});
	return;
}
