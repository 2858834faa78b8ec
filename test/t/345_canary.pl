# A secret, the canary, is used for calls that go well and that go wrong, with a
# log that keeps everything: it is nowhere but at its endpoint (R13 to R16).

use strict;
use warnings;

use File::Find ();
use OrchestratorModel;
use OrchestratorOutside;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

$PostgreSQL::Test::Utils::timeout_default = 30;
my $canary = 'canary-4711-secret-that-signs';
my $marker = 'marker-4711-input';    # of tasks: each place that is searched has it
my $folder = PostgreSQL::Test::Utils::tempdir();
my $server = outside();
my $model = start_model(key => $canary);
append_to_file("$folder/key", $canary);
chmod 0600, "$folder/key";

my $node = new_node(
	name => 'canary',
	log_min_messages => 'debug5', log_min_error_statement => 'debug5', log_error_verbosity => 'verbose', log_statement => 'all',
	log_min_duration_statement => 0,
	'orchestrator.secrets_directory' => $folder);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
my %options = (
	plain => "url '$server->{url}', timeout '4 s'",
	packed => "url '$server->{url}', compressed 'on'",
	hook => "url '$server->{url}', provider 'webhook'",
	model => "url '$model/v1', provider 'openai'",
	tools => "url '$model/mcp', provider 'mcp'");
$node->safe_psql('postgres', "CREATE SERVER $_ FOREIGN DATA WRAPPER orchestrator_http OPTIONS ($options{$_}, secret 'key', allow_private 'on');
	GRANT USAGE ON FOREIGN SERVER $_ TO app") foreach sort keys %options;

sub app { return $node->psql_as('app', $_[0]) }

my %request = (
	plain => q('{"path": "$.path", "query": "$.query"}'), packed => q('{"path": "$.path", "query": "$.query"}'),
	hook => q('{"path": "$.path"}'), model => q('{"model": "m", "prompt": "$.marker"}'), tools => q('{"tool": "echo", "arguments": {"message": "$.marker"}}'));
my %kind = (plain => 'http', packed => 'http', hook => 'webhook', model => 'llm', tools => 'tool');
app("SELECT orchestrator.define('$_', NULL, '$kind{$_}', endpoint => '$_', request => $request{$_}, notify => 'all', max_attempts => 2, retry_delay => '10 ms')")
  foreach sort keys %kind;

sub enqueue
{
	my ($name, $path, $query) = @_;
	return app(sprintf q{SELECT orchestrator.enqueue('%s', '{"marker": "%s", "path": "%s", "query": %s}')}, $name, $marker, $path // '', $query // '{}');
}

my %listening = map { $_ => session($node, $_) } 'postgres', 'other';
foreach my $session (values %listening)
{
	$session->query('LISTEN orchestrator');
	$session->query("LISTEN orchestrator_task_$_") foreach 1 .. 40;
}

# What goes well, and what goes wrong
my $stars = '*' x length $canary;
foreach my $case (
	[ 'plain', '/tell/200', '{}', 'completed', 'output,body', "Bearer $stars", 'an answer that repeats it' ],
	[ 'plain', '/tell/200', '{}', 'completed', 'output,headers,x-told', "Bearer $stars", 'in a header' ],
	[ 'packed', '/tell/200', '{"gzip": 1}', 'completed', 'output,body', "Bearer $stars", 'compressed' ],
	[ 'plain', '/tell/200', '{"gzip": 1}', 'failed', 'error,sqlstate', 'OR013', 'compressed, though nobody asked' ],
	[ 'plain', '/tell/200', '{"as": "application/json"}', 'failed', 'error,sqlstate', 'OR013', 'as JSON, which it is not' ],
	[ 'plain', '/tell/404', '{}', 'failed', 'error,detail', "Bearer $stars", 'an error that repeats it' ],
	[ 'plain', '/tell/500', '{"times": 9}', 'failed', 'error,detail', "Bearer $stars" x 9, 'another, tried twice' ],
	[ 'plain', '/tell/500', '{"times": 20000}', 'failed', 'error,status', '500', 'a long one' ],
	[ 'plain', '/redirect', qq({"to": "$server->{url}/elsewhere"}), 'failed', 'error,status', '301', 'a redirect' ],
	[ 'plain', '/reset', '{}', 'failed', 'error,sqlstate', 'OR012', 'a connection that is reset' ],
	[ 'plain', '/garbage', '{}', 'failed', 'error,sqlstate', 'OR012', 'garbage' ],
	[ 'hook', '/tell/200', '{}', 'completed', 'output,headers,x-told', 'none', 'a webhook: it signs, and is not sent' ],
	[ 'hook', '/tell/500', '{}', 'failed', 'error,detail', 'none', 'one that fails' ],
	[ 'model', undef, undef, 'completed', 'output,content', $marker, 'a model' ],
	[ 'tools', undef, undef, 'completed', 'output,text', "Echo: $marker", 'a tool' ])
{
	my ($name, $path, $query, $state, $at, $value, $what) = @$case;
	my $task = outcome_of($node, 'app', enqueue($name, $path, $query));
	my ($column, @keys) = split /,/, $at;
	my $found = $task->{$column};
	$found = $found->{$_} foreach @keys;
	is("$task->{state}: $found", "$state: $value", $what);
}
script_model($model, { fault => { status => 401 } }, { fault => { garbage => JSON::PP::true } }, { fault => { truncate => JSON::PP::true } });
is(outcome_of($node, 'app', enqueue('model'))->{state}, 'failed', "a model that fails: $_") foreach 1 .. 2;
is(outcome_of($node, 'app', enqueue('model'))->{state}, 'completed', 'and one that stops in the middle');
cmp_ok($node->safe_psql('postgres', 'SELECT max(pg_column_size(error)) FROM orchestrator.task'), '<', 8192, 'R22: no error is larger than 8 kB');

# While a call is under way, and its program dies
my $task = enqueue('plain', '/sleep/2000');
$node->wait_for(q{SELECT claimed = 1 FROM orchestrator.worker_status WHERE kind = 'courier'}, 't', 'a call is under way');
my $activity = $node->safe_psql('postgres', 'SELECT * FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
my $courier = $node->safe_psql('postgres', q{SELECT pid FROM orchestrator.worker_status WHERE kind = 'courier'});
my ($program) = map { m{/proc/(\d+)/} } grep { (slurp($_) // '') =~ /^\d+ \(orchestrator-co\w*\) \S $courier / } glob '/proc/[0-9]*/stat';
my %process = map { ("$_ of the program" => scalar slurp("/proc/$program/$_"), "$_ of the courier" => scalar slurp("/proc/$courier/$_")) } 'cmdline', 'environ';
is($process{'environ of the program'}, undef, 'nobody else reads the memory of the program');
like(slurp("/proc/$program/limits"), qr/^Max core file size\s+0\s/m, 'R14: it leaves no core file');
like($process{'cmdline of the program'}, qr/^orchestrator-courier\0$/, 'it has no arguments');
kill 'SEGV', $program;
is(outcome_of($node, 'app', $task)->{state}, 'completed', 'the call is made again by another');

# R16: what is told, to anybody
my %told;
foreach my $role (sort keys %listening)
{
	my $name = "what $role is told";
	foreach my $try (1 .. 200)
	{
		$told{$name} .= $listening{$role}->query('SELECT pg_sleep(0.02)') . "\n";
		last if $told{$name} =~ /"task"\s*:\s*$task\b[^\n]*"completed"/;
	}
	$listening{$role}->quit;
	my @payloads = map { json($_) } $told{$name} =~ /payload "(\{.*?\})"/g;
	cmp_ok(scalar @payloads, '>=', 20, "$name: notifications came");
	my %odd = map { $_ => 1 } grep { defined && !/^(?:\d+(?:\.\d+)?|created|started|progress|completed|failed|retrying|scheduled|pending|running)$/ }
	  map { values %$_ } @payloads;
	is(join(' ', sort keys %odd), '', 'R16: ids, states and numbers');
}
is($node->psql_as('other', 'SELECT count(*) FROM orchestrator.task'), 0, 'who is told of tasks of others sees none of them');

# Everywhere; the marker shows that each place was searched
$node->safe_psql('postgres', 'CHECKPOINT');
my ($dump) = run_command([ 'pg_dump', '-h', $node->host, '-p', $node->port, 'postgres' ]);
my $rows = $node->safe_psql('postgres', 'SELECT t::text FROM orchestrator.task t UNION ALL SELECT r::text FROM orchestrator.trace r UNION ALL SELECT s::text FROM orchestrator.task_status s');
my %place = (%process, %told, 'a dump' => $dump, 'tasks and traces' => $rows, 'the log' => slurp_file($node->logfile), 'pg_stat_activity' => $activity);
like($place{$_}, qr/\Q$marker\E/, "$_: it is searched") foreach 'a dump', 'tasks and traces', 'the log';
like($activity, qr/1 outside calls under way/, 'pg_stat_activity: likewise');
unlike($place{$_} // '', qr/canary-4711/, "$_: the secret is not there") foreach sort keys %place;
my %found;
File::Find::find({ no_chdir => 1, wanted => sub { search($File::Find::name) } }, $node->data_dir);
cmp_ok(scalar @{ $found{$marker} || [] }, '>', 0, 'the marker is in files of the server');
is(join(' ', @{ $found{$canary} || [] }), '', 'R13: the secret is in none');
is(scalar $server->log('/elsewhere'), 0, 'R14: no redirect took it along');
$node->stop('fast');
done_testing();

# Undef where it cannot be read.
sub slurp
{
	my ($file) = @_;
	open my $handle, '<:raw', $file or return;
	local $/ = undef;
	return readline $handle;
}

sub search
{
	my ($file) = @_;
	my $bytes = -f $file ? slurp($file) // '' : '';

	foreach my $what ($canary, $marker)
	{
		push @{ $found{$what} }, $file if index($bytes, $what) >= 0;
	}
	return;
}
