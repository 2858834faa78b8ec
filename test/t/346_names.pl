# Names that lead elsewhere at their second look-up, or to several addresses: it
# is the address of each connection that is judged (R18).  The program that makes
# the calls has a name server of its own (names.c).

use strict;
use warnings;
use lib 'test/chaos';

use Fault;
use File::Copy qw(copy);
use OrchestratorOutside;
use OrchestratorStep;
use OrchestratorTest qw(:DEFAULT server_conf);
use PostgreSQL::Test::Utils;
use Test::More;

# The library and its program in a folder of their own, where the program is a
# script that gives it the names.
my ($installed) = server_conf() =~ /^dynamic_library_path = '([^:]*):/m;
my $folder = PostgreSQL::Test::Utils::tempdir();
my $names = "$folder/names";
system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-Wall', '-Werror', "-DNAMES=\"$names\"", '-o', "$folder/names.so", 'test/lib/names.c', '-ldl');
copy("$installed/orchestrator.so", "$folder/orchestrator.so") or die;
append_to_file("$folder/orchestrator-courier", "#!/bin/sh\nLD_PRELOAD=$folder/names.so exec $installed/orchestrator-courier\n");
chmod 0755, "$folder/orchestrator-courier";

my $server = outside();
my $node = new_node(name => 'names', dynamic_library_path => "$folder:\$libdir");
$node->start;
$node->create_extension;
$node->plain_role('app');
foreach my $name ('rebind', 'twofold', 'mapped', 'metadata')
{
	$node->safe_psql('postgres', "CREATE SERVER $name FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'http://$name.example:$server->{port}');
		GRANT USAGE ON FOREIGN SERVER $name TO app");
	$node->psql_as('app', "SELECT orchestrator.define('$name', NULL, 'http', endpoint => '$name', request => '{\"path\": \"/echo/$name\"}', max_attempts => 1)");
}

sub names
{
	my (%address) = @_;
	open my $file, '>', $names or die $!;
	print $file "$_.example $address{$_}\n" foreach sort keys %address;
	close $file;
	return;
}

# How a call ended, and how many requests came of it.
sub call
{
	my ($name) = @_;
	my $before = () = $server->log("/echo/$name");
	my $task = outcome($node, 'app', "orchestrator.enqueue('$name')");
	my $sent = (() = $server->log("/echo/$name")) - $before;
	return join ' ', $task->{state}, $sent, $task->{error}{message} // ();
}

my $private = 'the call was not made: its address is private, and the endpoint does not say allow_private';
names(rebind => '203.0.113.1', twofold => '203.0.113.2 127.0.0.1', mapped => '::ffff:127.0.0.1', metadata => '203.0.113.2 169.254.169.254');
is(call('rebind'), 'completed 1', 'a name with a public address');
is(call('twofold'), "failed 0 $private", 'R18: the second address of a name is judged, too');
is(call('mapped'), "failed 0 $private", 'so is one of the other family');
is(call('metadata'), 'failed 0 the call was not made: its address is link-local, which is never called', 'and one that is never called');

# The next program looks the name up anew.
names(rebind => '127.0.0.1');
kill 'KILL', map { children($_) } workers($node, 'courier');
is(call('rebind'), "failed 0 $private", 'R18: a name whose second look-up leads inside');
names(rebind => '203.0.113.1');
kill 'KILL', map { children($_) } workers($node, 'courier');
is(call('rebind'), 'completed 1', 'and out again');
$node->stop('fast');
done_testing();
