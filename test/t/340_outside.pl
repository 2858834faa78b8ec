# Outside calls: endpoints, requests and answers, and what a receiver may do wrong;
# where calls may not go, and who may make them; secrets; and what becomes of
# calls when the program that makes them dies.  Rules R13 to R22 of security.

use strict;
use warnings;

use File::Copy qw(copy);
use OrchestratorOutside;
use OrchestratorStep;
use OrchestratorTest qw(:DEFAULT server_conf);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

$PostgreSQL::Test::Utils::timeout_default = 30;
my $canary = 'canary-4711-secret';

# R19: what the environment says of proxies reaches no call.
$ENV{http_proxy} = $ENV{https_proxy} = $ENV{ALL_PROXY} = 'http://127.0.0.1:1';
$ENV{no_proxy} = '';

my $server = outside();
my $folder = PostgreSQL::Test::Utils::tempdir();
my $node = new_node(
	name => 'outside',
	log_statement => 'none',
	max_worker_processes => 24,
	'orchestrator.courier_hang_timeout' => '2 s',
	'orchestrator.secrets_directory' => $folder);
delete @ENV{qw(no_proxy)};
$node->start;
delete @ENV{qw(http_proxy https_proxy ALL_PROXY)};
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
admin(endpoint('local', "url '$server->{url}', allow_private 'on', timeout '2 s'"));

sub admin { return $node->safe_psql('postgres', $_[0]) }
sub app { return $node->psql_as('app', $_[0]) }

# The error of a statement: SQLSTATE, message and hint.
sub error_of
{
	my ($sql, $role) = @_;
	my (undef, undef, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql", extra_params => [ '-U', $role // 'postgres' ]);
	return $stderr =~ /ERROR:  (\w{5}: .*?)\n(?:.*?HINT:  (.*?)\n)?/s ? $1 . (defined $2 ? " [$2]" : '') : '';
}

sub endpoint
{
	my ($name, $options) = @_;
	return "CREATE SERVER $name FOREIGN DATA WRAPPER orchestrator_http OPTIONS ($options); GRANT USAGE ON FOREIGN SERVER $name TO app;";
}

# Define a call; the rest are parameters of define().
sub define
{
	my ($name, $endpoint, $request, $more) = @_;
	return app("SELECT orchestrator.define('$name', NULL, 'http', endpoint => '$endpoint', request => '$request'" . ($more ? ", $more" : '') . ')');
}

sub enqueue
{
	my ($name, $input) = @_;
	return app("SELECT orchestrator.enqueue('$name', " . ($input ? "'$input'" : "'{}'") . ')');
}

# What became of a task, with the paths given of its output or error.
sub result
{
	my ($task, @paths) = @_;
	my $columns = join ', ', map { "coalesce(output, error) #>> '{$_}'" } @paths;
	app("CALL orchestrator.await($task, '20 s')");
	return app('SELECT state' . (@paths ? ", $columns" : '') . " FROM orchestrator.task WHERE id = $task");
}

sub run { my ($name, $input, @paths) = @_; return result(enqueue($name, $input), @paths) }

sub courier { return admin(q{SELECT pid FROM orchestrator.worker_status WHERE kind = 'courier'}) }

sub child
{
	my $parent = courier();
	foreach my $file (glob '/proc/[0-9]*/stat')
	{
		open my $stat, '<', $file or next;
		my $line = <$stat> // '';
		return $1 if $line =~ /^(\d+) \(orchestrator-co\w*\) \S $parent /;
	}
	return 0;
}

sub under_way { return $node->wait_for("SELECT claimed >= $_[0] FROM orchestrator.worker_status WHERE kind = 'courier'", 't', "$_[0] calls are under way") }

subtest 'endpoints' => \&endpoints;
subtest 'requests' => \&requests;
subtest 'statuses' => \&statuses;
subtest 'answers that cannot be kept' => \&unusable;
subtest 'requests that cannot be sent' => \&unsendable;
subtest 'receivers that misbehave' => \&faults;
subtest 'where calls may not go' => \&addresses;
subtest 'spellings' => \&spellings;
subtest 'certificates' => \&certificates;
subtest 'secrets' => \&secrets;
subtest 'steps of workflows' => \&steps;
subtest 'limits' => \&limits;
subtest 'cancel, pause, time-outs' => \&interruption;
subtest 'a program that dies' => \&deaths;
subtest 'a program that wants too much memory' => \&memory;
subtest 'the courier comes and goes' => \&lifecycle;
subtest 'nothing is left waiting for a worker that hangs' => \&others;
subtest 'a call that cannot be settled' => \&unsettled;
subtest 'a path that takes for ever' => \&stuck;
subtest 'a program that says things twice' => \&twice;
subtest 'a program that is not there' => \&absent;
$node->stop('fast');
done_testing();

sub endpoints
{
	is(error_of(q{CREATE SERVER x FOREIGN DATA WRAPPER orchestrator_http OPTIONS (urk '1')}),
		'HV00D: invalid option "urk" [Valid options are allow_private, ca_file, compressed, connect_timeout, max_in_flight, max_response_size, provider, rate_limit, rate_period, secret, secret_header, timeout and url.]', 'an unknown option');
	like(error_of('CREATE SERVER x FOREIGN DATA WRAPPER orchestrator_http'), qr/an endpoint needs the option "url"/, 'no URL');
	foreach my $url ('ftp://a', 'http://', 'https://user:pw@a', 'https://a/b?c', 'https://a/#b', 'https://a b', 'https://A', 'https://a:0', 'https://a:99999', 'https://a/../b', 'https://a/%2e%2e/b', "https://a\nb", 'file:///etc/passwd')
	{
		like(error_of("CREATE SERVER x FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url')"), qr/^HV024: invalid value for option "url"/, "not an URL: $url");
	}
	foreach my $option ("provider 'other'", "timeout '0'", "timeout '2 h'", "max_in_flight '0'", "max_response_size '17MB'", "allow_private 'maybe'", "secret '../x'", "secret_header 'a b'", "ca_file 'x'")
	{
		like(error_of("CREATE SERVER x FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://a', $option)"), qr/^HV024: invalid value/, "refused: $option");
	}
	like(error_of(q{CREATE SERVER x FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://a', rate_limit '1')}), qr/belong together/, 'a rate needs a period');
	like(error_of(q{CREATE SERVER x FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'http://a', secret 'key')}), qr/a secret is not sent over http/, 'a secret needs https');
	like(error_of(q{CREATE USER MAPPING FOR app SERVER local OPTIONS (password 'x')}), qr/only a server of orchestrator_http has options/, 'secrets are not for user mappings');
	admin('GRANT USAGE ON FOREIGN DATA WRAPPER orchestrator_http TO other');
	foreach my $option ("secret 'key'", "allow_private 'on'", "ca_file '/etc/hostname'")
	{
		like(error_of("CREATE SERVER x FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://a', $option)", 'other'), qr/^42501: only a superuser may set the option/, "a superuser's: $option");
	}
	$node->psql_as('other', q{CREATE SERVER theirs FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'https://a')});

	my $define = q{SELECT orchestrator.define('x', NULL, 'http', endpoint => '%s', request => '{}', retry_delay => '10 ms')};
	is(error_of(sprintf($define, 'local'), 'other'), '42501: permission denied for endpoint "local" [GRANT USAGE ON FOREIGN SERVER local TO other.]', 'USAGE is needed to define');
	like(error_of(sprintf($define, 'nowhere'), 'app'), qr/^42704: endpoint "nowhere" does not exist \[CREATE SERVER/, 'one that is not there');
	admin('GRANT USAGE ON FOREIGN SERVER local TO other');
	$node->psql_as('other', sprintf($define, 'local'));
	admin('REVOKE USAGE ON FOREIGN SERVER local FROM other');
	my $task = $node->psql_as('other', q{SELECT orchestrator.enqueue('x')});
	$node->wait_for("SELECT state FROM orchestrator.task WHERE id = $task", 'failed', 'and at every call');
	is(admin("SELECT error ->> 'sqlstate' FROM orchestrator.task WHERE id = $task"), '42501', 'as the role of the task');
	return;
}

sub requests
{
	define('echo', 'local', '{"path": ["echo", "$.a"], "query": {"q": "$.q", "none": "$.none", "n": 1}, "headers": {"X-A": "$.h"}, "body": {"given": "$.a", "cost": "$$5"}}');
	is(run('echo', '{"a": "x/y ä?", "q": ["1", "zwei&"], "h": "v"}', 'body,method', 'body,path', 'body,query', 'body,headers,x-a', 'body,body', 'body,headers,content-type', 'status', 'headers,content-type'),
		'completed|POST|/echo/x%2Fy%20%C3%A4%3F|{"n": ["1"], "q": ["1", "zwei&"]}|v|{"cost": "$5", "given": "x/y Ã¤?"}|application/json|200|application/json', 'all that a request has');
	define('plain', 'local', '{"method": "PUT", "path": "/echo", "headers": {"Content-Type": "text/plain"}, "body": "$.text"}');
	is(run('plain', '{"text": "as it is"}', 'body,method', 'body,body', 'body,headers,content-type'), 'completed|PUT|as it is|text/plain', 'a body that is text');
	define('get', 'local', '{"path": "$.path"}');
	is(run('get', '{"path": "/echo/a"}', 'body,method', 'body,body', 'body,headers,content-type'), 'completed|GET||', 'no body: GET');
	is(run('get', '{"path": "/text"}', 'body'), 'completed|plain', 'an answer that is text');
	is(run('get', '{"path": "/status/204"}', 'status', 'body'), 'completed|204|', 'one that is nothing');

	foreach my $path ('/echo/../x', '/echo/%2e%2e/x', '@evil.example/', '/a b', '/a?b', '//..', 'x')
	{
		like(run('get', qq({"path": "$path"}), 'message'), qr/^failed\|the path of the request cannot be sent/, "not a path: $path");
	}
	like(run('echo', '{"a": "..", "h": "v"}', 'message'), qr/^failed\|a part of the path/, 'nor a part of one: ..');
	define('header', 'local', '{"path": "/header", "headers": {"X-A": "$.h"}}');
	foreach my $value ('a\r\nX-B: c', 'a\nb', 'a\rb', 'a\u0001b')
	{
		like(run('header', qq({"h": "$value"}), 'message'), qr/^failed\|a header of the request cannot be sent/, "R21: not a header: $value");
	}
	define('names', 'local', '{"path": "/header", "headers": "$.headers"}');
	foreach my $name ('X-A\r\nX-B', 'X-A\nX-B', 'X-A: b\r\n\r\nGET /', 'X A', 'X-A\u0001', 'X-ä', '')
	{
		like(run('names', qq({"headers": {"$name": "x"}})), qr/^failed/, "R21: not the name of one: $name");
	}
	like(error_of(q{SELECT orchestrator.enqueue('names', '{"headers": {"X-A": "a\u0000b"}}')}, 'app'), qr/^22P05/, 'R21: a NUL comes nowhere');
	foreach my $name ('Host', 'Content-Length', 'Transfer-Encoding', 'Proxy-Authorization', 'Idempotency-Key')
	{
		define('reserved', 'local', qq({"path": "/header", "headers": {"$name": "x"}}));
		like(run('reserved', undef, 'message'), qr/^failed\|header "$name" cannot be set/, "nor one of its own: $name");
	}
	is(scalar $server->log('/header'), 0, 'nothing of these was sent');

	define('expect', 'local', '{"path": "/json", "expect": "$.body.n == $.body.n && $.body.ok == true"}');
	is(run('expect', undef, 'body,n'), 'completed|1', 'an answer that is as expected');
	define('unexpected', 'local', '{"path": "/json", "expect": "$.body.ok == false"}', 'max_attempts => 2, retry_delay => \'0\'');
	is(run('unexpected', undef, 'sqlstate'), 'failed|OR013', 'one that is not');
	is(app(q{SELECT attempt FROM orchestrator.task ORDER BY id DESC LIMIT 1}), '2', 'is tried again');
	like(error_of(q{SELECT orchestrator.define('x', NULL, 'http', endpoint => 'local', request => '{"url": "http://x"}')}, 'app'), qr/unknown key "url"/, 'the request cannot say where to');
	like(error_of(q{SELECT orchestrator.define('x', NULL, 'http', endpoint => 'local', request => '{"body": {"a": "$x"}}')}, 'app'), qr/names a variable/, 'its paths are checked');
	like(error_of(q{SELECT orchestrator.define('x', 'a.b', 'http', endpoint => 'local')}, 'app'), qr/handler with kind "http"/, 'a call has no handler');
	like(error_of(q{SELECT orchestrator.define('x', NULL, 'http')}, 'app'), qr/kind "http" without endpoint/, 'but an endpoint');
	like(error_of(q{SELECT orchestrator.define('x', 'SELECT 1', 'sql', endpoint => 'local')}, 'app'), qr/endpoint or request with kind "sql"/, 'others have none');
	return;
}

sub statuses
{
	my $fast = q{retry_delay => '10 ms', retry_jitter => 0, backoff => 'fixed'};

	define('status', 'local', '{"path": ["status", "$.s"], "query": {"after": "$.after"}}', $fast);
	foreach my $status (400, 401, 404, 410, 301)
	{
		is(run('status', qq({"s": "$status"}), 'sqlstate', 'status'), "failed|OR012|$status", "$status fails");
		is(scalar $server->log("/status/$status"), 1, 'at once');
	}
	foreach my $status (408, 425, 429, 500, 503)
	{
		is(run('status', qq({"s": "$status"}), 'status'), "failed|$status", "$status fails");
		is(scalar $server->log("/status/$status"), 3, 'after all attempts');
	}
	my $task = enqueue('status', '{"s": "429", "after": "1"}');
	result($task);
	is(app("SELECT bool_and((t.detail ->> 'run_at')::timestamptz >= t.at + interval '0.9 s') FROM orchestrator.trace t WHERE task_id = $task AND event = 'retrying'"), 't', 'Retry-After is obeyed');

	define('flaky', 'local', '{"path": "/flaky/2"}', $fast);
	$task = enqueue('flaky');
	is(result($task, 'body,tries'), 'completed|3', 'the third attempt succeeds');
	my @keys = map { $_->[0] } $server->log('/flaky/2');
	is(scalar @keys, 3, 'three requests');
	like($keys[0], qr/-$task$/, 'with a key of the task');
	is("@keys", "$keys[0] $keys[0] $keys[0]", 'that stays the same');
	return;
}

sub unusable
{
	admin(endpoint('compressed', "url '$server->{url}', allow_private 'on', compressed 'on'"));
	define('type', 'local', '{"path": "/type", "query": {"as": "application/json", "body": "$.body"}}');
	my %bad = (
		'a NUL in JSON' => '\\"\\\\u0000\\"',
		'half a surrogate' => '\\"\\\\ud800\\"',
		'a number without end' => '1e200000',
		'no JSON' => '{');
	foreach my $what (sort keys %bad)
	{
		my $before = () = $server->log('/type');
		is(run('type', qq({"body": "$bad{$what}"}), 'sqlstate', 'retry'), 'failed|OR013|false', "F37: $what");
		is(scalar(my @now = $server->log('/type')) - $before, 1, 'one call');
	}
	define('at', 'local', '{"path": "$.path", "query": {"each": "$.each"}}');
	define('inflate', 'compressed', '{"path": "$.path"}');
	foreach my $path ('/deep', '/bytes/ff', '/bytes/6100', '/big/1100000', '/headers/150', '/headers/90', '/bomb/100000')
	{
		is(run('at', qq({"path": "$path", "each": 900}), 'sqlstate', 'retry'), 'failed|OR013|false', "F37, R21: $path");
		is(scalar $server->log($path), 1, 'one call');
	}
	is(run('inflate', '{"path": "/bomb/2000000"}', 'sqlstate', 'message'), 'failed|OR013|the answer is too large', 'R21: sizes are of what was compressed');
	is(run('inflate', '{"path": "/bomb/1000"}', 'status'), 'completed|200', 'which is read if the endpoint says so');
	return;
}

# What one task asks for must not touch the calls of others.
sub unsendable
{
	my $many = '{' . join(', ', map { qq("$_": "\$.x") } 1 .. 80) . '}';

	define('beside', 'local', '{"path": "/sleep/1500"}');
	define('many', 'local', qq({"path": "/echo", "body": $many}));
	my $beside = enqueue('beside');
	under_way(1);
	# Made in time or not: its paths may take a second of the processor.
	like(run('many', '{"x": "' . ('x' x 1_000_000) . '"}', 'sqlstate', 'retry'), qr/^failed\|(?:54000\|false|OR004\|)$/, 'one that would be larger than any frame');
	is(result($beside), 'completed', 'another goes on');
	is(app("SELECT attempt FROM orchestrator.task WHERE id = $beside"), '1', 'with the same program');
	define('long', 'local', '{"path": "/echo", "body": "$.x"}');
	is(run('long', '{"x": "' . ('\u0001' x 900_000) . '"}', 'message'), 'failed|the body of the request is larger than 2048 kB', 'one that grows as it is written');

	# A byte that this encoding has no character for
	admin(q{CREATE DATABASE west TEMPLATE template0 ENCODING 'WIN1252' LC_COLLATE 'C' LC_CTYPE 'C'});
	my $west = sub { return $node->safe_psql('west', $_[0]) };
	$west->("CREATE EXTENSION orchestrator; CREATE SERVER local FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$server->{url}', allow_private 'on')");
	$west->(q{SELECT orchestrator.define(n, NULL, 'http', endpoint => 'local', request => '{"path": "/echo", "body": "$.x"}') FROM unnest('{a,b}'::text[]) n});
	my $bad = $west->(q{SELECT orchestrator.enqueue('a', jsonb_build_object('x', chr(129)))});
	my $good = $west->(q{SELECT orchestrator.enqueue('b', '{"x": 1}')});
	$west->("CALL orchestrator.await($_, '20 s')") foreach $bad, $good;
	is($west->("SELECT state, error ->> 'sqlstate' FROM orchestrator.task ORDER BY id"), "failed|22P05\ncompleted|", 'one that is no UTF-8');
	admin('DROP DATABASE west');
	return;
}

sub faults
{
	define('fault', 'local', '{"path": "$.path"}', 'max_attempts => 1');
	my %expected = (
		hang => 'OR004', silent => 'OR004', drip => 'OR004', reset => 'OR012', garbage => 'OR012', cut => 'OR012',
		endless => 'OR013');
	my $began = time;
	my %task = map { $_ => enqueue('fault', qq({"path": "/$_"})) } keys %expected;
	is(result($task{$_}, 'sqlstate'), "failed|$expected{$_}", "F53: $_") foreach sort keys %expected;
	cmp_ok(time - $began, '<', 2 + 1 + 1, 'all end within the time-out and a second');

	admin(endpoint('closed', q{url 'http://127.0.0.1:1', allow_private 'on'}));
	define('closed', 'closed', '{}', q{max_attempts => 2, retry_delay => '10 ms'});
	my $task = enqueue('closed');
	is(result($task, 'sqlstate'), 'failed|OR012', 'nobody listens');
	is(app("SELECT attempt FROM orchestrator.task WHERE id = $task"), '2', 'is tried again');
	admin(endpoint('unknown', q{url 'https://nowhere.invalid'}));
	define('unknown', 'unknown', '{}', 'max_attempts => 1');
	is(run('unknown', undef, 'sqlstate'), 'failed|OR012', 'F54: a name that nobody knows');
	return;
}

sub addresses
{
	my $port = $server->{port};
	my %url = (
		strict => "http://127.0.0.1:$port", name => "http://localhost:$port", six => 'http://[::1]', mapped => 'http://[::ffff:127.0.0.1]',
		zero => 'http://0.0.0.0', ten => 'http://10.1.2.3', carrier => 'http://100.64.0.1', translated => 'http://[64:ff9b::7f00:1]',
		unique => 'http://[fd00:ec2::254]', decimal => 'http://2130706433', short => "http://127.1:$port", octal => "http://0177.0.0.1:$port");
	my $before = () = $server->log;
	foreach my $name (sort keys %url)
	{
		admin(endpoint("a_$name", "url '$url{$name}'"));
		define("a_$name", "a_$name", '{"path": "/echo"}');
		my $got = run("a_$name", undef, 'sqlstate', 'retry', 'message');
		like($got, qr/^failed\|OR012\|false\|the call was not made: (its address is (private|this machine's)|the URL)/, "R18: $url{$name}");
	}
	foreach my $url ('http://169.254.169.254', 'http://[fe80::1]', 'http://[::ffff:169.254.0.1]')
	{
		(my $name = "l_$url") =~ s/\W+/_/g;
		admin(endpoint($name, "url '$url', allow_private 'on'"));
		define($name, $name, '{}');
		like(run($name, undef, 'message'), qr/link-local, which is never called/, "R18: $url, whatever the endpoint says");
	}
	is(scalar(my @now = $server->log) - $before, 0, 'nothing was sent');

	# A connection that another endpoint had opened is not used without that look.
	define('open', 'local', '{"path": "/echo"}');
	is(run('open', undef, 'status'), 'completed|200', 'a connection is open');
	like(run('a_strict', undef, 'message'), qr/is private/, 'but not for an endpoint that may not call there');

	define('redirect', 'local', '{"path": "/redirect", "query": {"to": "$.to"}}');
	foreach my $to ("$server->{url}/echo/followed", 'file:///etc/passwd', 'gopher://127.0.0.1/')
	{
		is(run('redirect', qq({"to": "$to"}), 'status'), 'failed|301', "R19: not followed to $to");
	}
	is(scalar $server->log('/echo/followed'), 0, 'nobody came there');

	$node->set('orchestrator.http_allow' => 'https://*.example.com, http://127.0.0.1:1');
	$node->reload;
	$node->wait_for(q{SHOW orchestrator.http_allow}, 'https://*.example.com, http://127.0.0.1:1', 'reloaded');
	like(run('open', undef, 'sqlstate', 'message'), qr/^failed\|42501\|orchestrator.http_allow does not let endpoint "local" be called/, 'R17: a setting of the server narrows it');
	$node->set('orchestrator.http_allow' => "http://127.0.0.1:$port");
	$node->reload;
	$node->wait_for(q{SHOW orchestrator.http_allow}, "http://127.0.0.1:$port", 'reloaded');
	is(run('open', undef, 'status'), 'completed|200', 'or lets it');
	$node->set('orchestrator.http_allow' => '');
	$node->reload;
	return;
}

# Every spelling of an address that we know of, many calls at once.
sub spellings
{
	my $port = $server->{port};
	my @hosts = qw(127.0.0.1 127.0.0.1. 127.1 127.0.1 127.000.000.001 0177.0.0.1 0177.0.0.01 0x7f.0.0.1 0x7f.1 0x7f000001 017700000001 2130706433 127.255.255.254
	  localhost localhost. sub.localhost 0 0.0.0.0 00.0.0.0 10.0.0.1 10.255.255.255 0xa.1 167772161 100.64.0.1 100.127.255.255 172.16.0.1 172.31.255.255 192.0.0.1
	  192.168.0.1 192.168.257 3232235521 198.18.0.1 198.19.255.255 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
	  [::] [::1] [0:0:0:0:0:0:0:1] [0000::0001] [::127.0.0.1] [::7f00:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:ffff:7f00:1] [::ffff:10.0.0.1] [::ffff:0:127.0.0.1]
	  [64:ff9b::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b::a00:1] [64:ff9b:1::7f00:1] [2002:7f00:1::] [2002:a00:1::1] [2001::1] [fc00::1] [fd12:3456::1] [fec0::1] [ff02::1] [ff0e::1]);
	my @local = qw(169.254.169.254 169.254.0.1 0xa9fea9fe 2852039166 0251.0376.0251.0376 [fe80::1] [febf::1] [::ffff:169.254.169.254] [::ffff:a9fe:a9fe] [64:ff9b::169.254.169.254] [2002:a9fe:a9fe::]);
	my %url = ((map { ("s$_" => "http://$hosts[$_]:$port") } 0 .. $#hosts), (map { ("l$_" => "http://$local[$_]:$port") } 0 .. $#local));
	my $before = () = $server->log;
	my %got = calls_to(\%url, sub { $_[0] =~ /^l/ ? "allow_private 'on'" : "timeout '5 s'" });

	like($got{$_}, qr/^failed OR012 (?:false the call was not made: (?:its address is|the URL cannot be called)|no answer: Could not resolve host: \S+\.$)/, "R18: $url{$_}") foreach sort keys %url;
	is(scalar(my @now = $server->log) - $before, 0, 'nothing of these was sent');
	cmp_ok(scalar keys %url, '>=', 60, 'G15: ' . keys(%url) . ' spellings');

	# What looks like an address that is allowed, and is not
	$node->set('orchestrator.http_allow' => 'https://*.example.com, https://api.example.org:8443');
	$node->reload;
	$node->wait_for(q{SHOW orchestrator.http_allow}, 'https://*.example.com, https://api.example.org:8443', 'reloaded');
	my @other = qw(https://example.com https://evilexample.com https://a.example.com.evil.org https://a.example.com. http://a.example.com https://a.example.com:444
	  https://api.example.org https://api.example.org:84430 https://b.api.example.org:8443 https://xapi.example.org:8443);
	%url = map { ("o$_" => $other[$_]) } 0 .. $#other;
	%got = calls_to(\%url, sub { "timeout '5 s'" });
	like($got{$_}, qr/^failed 42501 false orchestrator.http_allow does not let|^HV024/, "R17: $url{$_}") foreach sort keys %url;
	$node->set('orchestrator.http_allow' => '');
	$node->reload;
	return;
}

# Make an endpoint of each URL and call it; what became of that, or why there is none.
sub calls_to
{
	my ($url, $options) = @_;
	my %got;

	foreach my $name (sort keys %$url)
	{
		$got{$name} = error_of(endpoint($name, "url '$url->{$name}', " . $options->($name)));
	}
	my @made = grep { $got{$_} eq '' } sort keys %$url;
	app(join ';', map { "SELECT orchestrator.define('$_', NULL, 'http', endpoint => '$_', max_attempts => 1), orchestrator.enqueue('$_')" } @made);
	my $names = join ',', map { "'$_'" } @made;
	my $of = "orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name IN ($names)";
	$node->wait_for("SELECT count(*) FROM $of AND t.live", '0', 'all of these end');
	my $rows = admin("SELECT d.name, concat_ws(' ', t.state, t.error ->> 'sqlstate', t.error ->> 'retry', t.error ->> 'message') FROM $of");
	return (%got, map { split /\|/, $_, 2 } split /\n/, $rows);
}

# An authority of our own, for one host.
sub make_certificate
{
	my ($name, $subject) = @_;
	system_or_bail('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', "/CN=$name", '-addext', "subjectAltName=$subject",
		'-keyout', "$folder/$name.key", '-out', "$folder/$name.crt");
	return ("$folder/$name.crt", "$folder/$name.key");
}

# Another, which was good for a day of the year 2020.
sub make_expired
{
	my ($name, $subject) = @_;
	append_to_file("$folder/$name.conf", <<"EOF");
[ca]
default_ca = own
[own]
database = $folder/$name.index
serial = $folder/$name.serial
new_certs_dir = $folder
default_md = sha256
policy = any
x509_extensions = host
[any]
commonName = supplied
[host]
subjectAltName = $subject
basicConstraints = CA:TRUE
EOF
	append_to_file("$folder/$name.index", '');
	append_to_file("$folder/$name.serial", "01\n");
	system_or_bail('openssl', 'req', '-newkey', 'rsa:2048', '-nodes', '-subj', "/CN=$name", '-keyout', "$folder/$name.key", '-out', "$folder/$name.csr");
	system_or_bail('openssl', 'ca', '-batch', '-selfsign', '-config', "$folder/$name.conf", '-startdate', '20200101000000Z', '-enddate', '20200102000000Z',
		'-keyfile', "$folder/$name.key", '-in', "$folder/$name.csr", '-out', "$folder/$name.crt", '-notext');
	return ("$folder/$name.crt", "$folder/$name.key");
}

sub certificates
{
	my ($good, $good_key) = make_certificate('good', 'IP:127.0.0.1');
	my ($wrong, $wrong_key) = make_certificate('wrong', 'DNS:elsewhere.example');
	my ($expired, $expired_key) = make_expired('expired', 'IP:127.0.0.1');
	my $secure = outside('--tls', $good, $good_key);
	my $other = outside('--tls', $wrong, $wrong_key);
	my $past = outside('--tls', $expired, $expired_key);
	my $old = outside('--old-tls', $good, $good_key);

	admin(endpoint('untrusted', "url '$secure->{url}', allow_private 'on'")
		. endpoint('trusted', "url '$secure->{url}', allow_private 'on', ca_file '$good'")
		. endpoint('mistaken', "url '$other->{url}', allow_private 'on', ca_file '$wrong'")
		. endpoint('expired', "url '$past->{url}', allow_private 'on', ca_file '$expired'")
		. endpoint('old', "url '$old->{url}', allow_private 'on', ca_file '$good'")
		. endpoint('unencrypted', "url 'https://127.0.0.1:$server->{port}', allow_private 'on'"));
	define($_, $_, '{"path": "/echo"}', q{max_attempts => 1, timeout => '2 s'}) foreach 'untrusted', 'trusted', 'mistaken', 'expired', 'old', 'unencrypted';
	is(run('trusted', undef, 'status'), 'completed|200', 'R20: one that the file knows');
	is(run('untrusted', undef, 'sqlstate', 'retry'), 'failed|OR012|false', 'one that signed itself');
	is(run('mistaken', undef, 'sqlstate', 'retry'), 'failed|OR012|false', 'one of another host');
	like(run('expired', undef, 'sqlstate', 'retry', 'message'), qr/^failed\|OR012\|false\|.*expired/, 'one whose time has passed');
	like(run('old', undef, 'sqlstate', 'message'), qr/^failed\|OR012\|.*(?:protocol|ssl)/i, 'a server that knows TLS 1.1 only');
	is(run('unencrypted', undef, 'sqlstate'), 'failed|OR004', 'and one that answers nothing to TLS');
	# The message quotes the name of this one, and is cut off within a character
	my $long = "$folder/long";
	system_or_bail('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-utf8', '-subj', '/CN=a' . ("\xf0\x9f\x98\x80" x 63), '-keyout', "$long.key", '-out', "$long.crt");
	my $named = outside('--tls', "$long.crt", "$long.key");
	admin(endpoint('long', "url '$named->{url}', allow_private 'on', ca_file '$long.crt'"));
	define('long_name', 'long', '{"path": "/echo"}', 'max_attempts => 1');
	like(run('long_name', undef, 'sqlstate', 'message'), qr/^failed\|OR012\|.*certificate subject name 'a[?]+$/, 'one that has no name of a host, but a long one');

	is(run('trusted', undef, 'status'), 'completed|200', 'a connection that is trusted stays so');
	is(run('untrusted', undef, 'sqlstate'), 'failed|OR012', 'for its own endpoint');
	return;
}

sub write_secret
{
	my ($name, $value, $mode) = @_;
	open my $file, '>', "$folder/$name" or die;
	print $file "$value\n";
	close $file;
	chmod $mode, "$folder/$name" or die;
	return;
}

sub secrets
{
	write_secret('key', $canary, 0600);
	write_secret('open', $canary, 0644);
	write_secret('short', 'abc', 0600);
	symlink "$folder/key", "$folder/link";
	admin(endpoint("s_$_", "url '$server->{url}', allow_private 'on', secret '$_'")) foreach 'key', 'open', 'short', 'link', 'absent';
	admin(endpoint('s_own', "url '$server->{url}', allow_private 'on', secret 'key', secret_header 'X-Key'")
		. endpoint('s_anthropic', "url '$server->{url}', allow_private 'on', secret 'key', provider 'anthropic'"));
	define("s_$_", "s_$_", '{"path": "/echo/secret"}', 'max_attempts => 1') foreach 'key', 'own', 'anthropic', 'open', 'short', 'link', 'absent';
	(my $stars = $canary) =~ s/./*/g;
	is(run('s_key', undef, 'body,headers,authorization'), "completed|Bearer $stars", 'R14: sent, and blotted out of the answer');
	is(run('s_own', undef, 'body,headers,x-key'), "completed|$stars", 'in a header of its own');
	is(run('s_anthropic', undef, 'body,headers,x-api-key'), "completed|$stars", 'or the provider\'s');
	foreach my $name ('open', 'short', 'link', 'absent')
	{
		like(run("s_$name", undef, 'retry', 'message'), qr/^failed\|false\|the call was not made: secret "$name" cannot be used/, "R13: refused: $name");
	}
	define('s_other', 's_key', '{"path": "/echo/secret", "headers": {"authorization": "mine"}}');
	like(run('s_other', undef, 'message'), qr/header "authorization" cannot be set/, 'no task takes its place');
	define('s_far', 's_key', '{"path": "/redirect", "query": {"to": "http://example.com/"}}');
	is(run('s_far', undef, 'status'), 'failed|301', 'nor takes it elsewhere');

	like(error_of('SHOW orchestrator.secrets_directory', 'app'), qr{^42501: .* to examine "orchestrator\.secrets_directory"}, 'where they are is not told');
	my ($dump) = run_command([ 'pg_dump', '-p', $node->port, '-h', $node->host, 'postgres' ]);
	unlike($dump, qr/canary/, 'R13: no secret in a dump');
	unlike($dump =~ s/^.*?CREATE SERVER//sr, qr/\Q$canary\E/, 'of endpoints and tasks');
	unlike(slurp_file($node->logfile), qr/\Q$canary\E/, 'R15: nor in the log');
	is(admin(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%canary%' AND pid <> pg_backend_pid()}), '0', 'nor in pg_stat_activity');
	return;
}

sub steps
{
	app(q{SELECT orchestrator.define_workflow('flow', ARRAY[
		orchestrator.step('first', kind => 'http', endpoint => 'local', request => '{"path": "/json"}'),
		orchestrator.step('second', kind => 'http', endpoint => 'local', needs => '{first}', input => '{"n": "$.steps.first.body.n"}', request => '{"path": ["echo", "$.n"]}'),
		orchestrator.step('third', handler => 'SELECT $1 #>> ''{steps,second,body,path}'' AS path', kind => 'sql', needs => '{second}')])});
	is(run('flow', undef, '0,path'), 'completed|/echo/1', 'an answer is the output of its step');
	app(q{SELECT orchestrator.define_workflow('failing', ARRAY[
		orchestrator.step('first', kind => 'http', endpoint => 'local', request => '{"path": "/status/404"}', on_failure => 'continue'),
		orchestrator.step('all', kind => 'http', endpoint => 'local', needs => '{first}', each => '$.input.items', input => '{"i": "$.item"}', request => '{"path": ["echo", "$.i"]}')])});
	like(run('failing', '{"items": [1, 2, 3]}'), qr/^completed/, 'a failure is a step\'s, an item a call');
	is(app(q{SELECT orchestrator.definition_json('flow') -> 'steps' -> 0 ->> 'endpoint'}), 'local', 'they are in the document');
	app(q{SELECT orchestrator.define_workflow('rounds', ARRAY[
		orchestrator.step('again', kind => 'http', endpoint => 'local', request => '{"path": "/echo/round"}', repeat_while => '$.iteration < 3')])});
	like(run('rounds'), qr/^completed/, 'a step repeats its call');
	my @keys = map { $_->[0] } $server->log('/echo/round');
	is_deeply(\@keys, [ $keys[0], "$keys[0].2", "$keys[0].3" ], 'each round with a key of its own');
	like(error_of(q{SELECT orchestrator.define_workflow('x', ARRAY[orchestrator.step('a', endpoint => 'local')])}, 'app'), qr/step "a"/, 'a kind is needed');
	return;
}

sub limits
{
	admin(endpoint('two', "url '$server->{url}', allow_private 'on', max_in_flight '2'")
		. endpoint('rated', "url '$server->{url}', allow_private 'on', rate_limit '4', rate_period '1 s'"));
	app(q{SELECT orchestrator.define_queue('narrow', max_running => 3), orchestrator.define_queue('stopped')});
	define('two', 'two', '{"path": "/sleep/150"}');
	define('rated', 'rated', '{"path": "/echo/rated"}');
	define('narrow', 'local', '{"path": "/sleep/150"}', q{queue => 'narrow'});
	define('stopped', 'local', '{"path": "/echo"}', q{queue => 'stopped'});
	foreach my $case ([ 'two', 8, 0.6, 'at once at an endpoint' ], [ 'narrow', 9, 0.45, 'of a queue' ], [ 'rated', 8, 0.7, 'started within a period' ])
	{
		my ($name, $n, $least, $what) = @$case;
		my $began = time;
		app("SELECT orchestrator.enqueue_many('$name', array_fill('{}'::jsonb, ARRAY[$n]))");
		$node->wait_for("SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = '$name' AND t.state = 'completed'", $n, "all of $name end");
		cmp_ok(time - $began, '>=', $least, "not more than allowed $what");
	}
	is(admin(q{SELECT coalesce(sum(running), 0) FROM orchestrator._permits()}), '0', 'every permit is given back');

	app(q{SELECT orchestrator.pause_queue('stopped')});
	my $task = enqueue('stopped');
	is(run('narrow', undef, 'status'), 'completed|200', 'another queue goes on');
	is(app("SELECT state FROM orchestrator.task WHERE id = $task"), 'pending', 'one that is paused does not');
	is(app("SELECT jobs_ahead FROM orchestrator.task_status WHERE task_id = $task"), '0', 'its place is told');
	app(q{SELECT orchestrator.resume_queue('stopped')});
	is(result($task, 'status'), 'completed|200', 'until it is resumed');
	return;
}

sub interruption
{
	admin(endpoint('patient', "url '$server->{url}', allow_private 'on', timeout '1 h'"));
	define('hang', 'patient', '{"path": "/hang"}', q{max_attempts => 1});
	my @tasks = map { enqueue('hang') } 1 .. 3;
	under_way(3);
	is(app("SELECT string_agg(state::text, ',') FROM orchestrator.task WHERE id IN (" . join(',', @tasks) . ')'), 'running,running,running', 'they run');
	my $began = time;
	app("SELECT orchestrator.cancel($tasks[0])");
	$node->wait_for(q{SELECT claimed FROM orchestrator.worker_status WHERE kind = 'courier'}, '2', 'a cancel ends the transfer');
	cmp_ok(time - $began, '<', 1, 'at once');
	app("SELECT orchestrator.pause($tasks[1], force => true)");
	$node->wait_for(q{SELECT claimed FROM orchestrator.worker_status WHERE kind = 'courier'}, '1', 'so does a pause');
	app("SELECT orchestrator.cancel($_)") foreach @tasks[ 1, 2 ];
	$node->wait_for(q{SELECT claimed FROM orchestrator.worker_status WHERE kind = 'courier'}, '0', 'all are gone');

	define('timeout', 'patient', '{"path": "/hang"}', q{timeout => '300 ms', timeout_policy => 'fail'});
	is(run('timeout', undef, 'sqlstate'), 'failed|OR004', 'the time-out of the definition');
	is(app(q{SELECT attempt FROM orchestrator.task ORDER BY id DESC LIMIT 1}), '1', 'and its policy');
	define('quiet', 'patient', '{"path": "/silent"}', q{response_timeout => '1 s', max_attempts => 1});
	my $asked = time;
	is(run('quiet', undef, 'sqlstate', 'message'), 'failed|OR004|no answer in time: nothing came for 1000 ms', 'its response_timeout');
	cmp_ok(time - $asked, '<', 4, 'from the last byte on');

	# Somebody keeps the row of one that has ended: the others are settled.
	define('slow', 'local', '{"path": "/sleep/300"}');
	my $held = enqueue('slow');
	under_way(1);
	my $session = session($node, 'app');
	$session->query('BEGIN');
	$session->query("SELECT orchestrator.cancel($held)");
	is(run('slow', undef, 'status'), 'completed|200', 'a row that is locked keeps nobody from being settled');
	$session->query('ROLLBACK');
	$session->quit;
	is(result($held, 'status'), 'completed|200', 'and is settled when it is free');

	define('many_held', 'local', '{"path": "/sleep/1500"}');
	app(q{SELECT count(orchestrator.enqueue('many_held')) FROM generate_series(1, 100)});
	under_way(100);
	$session = session($node, 'app');
	$session->query('BEGIN');
	$session->query(q{SELECT count(orchestrator.cancel(t.id)) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'many_held'});
	define('after', 'patient', '{"path": "/sleep/2000"}');
	my $since = time;
	is(run('after', undef, 'status'), 'completed|200', 'nor do many');
	cmp_ok(time - $since, '<', 4, 'at once');
	$session->query('COMMIT');
	$session->quit;
	return;
}

sub deaths
{
	my $session = session($node, 'app');
	my $postmaster = admin('SELECT pg_postmaster_start_time()');
	my $backend = $session->query('SELECT pg_backend_pid()');

	define('survivor', 'patient', '{"path": "/once/1500"}', q{max_attempts => 2, retry_delay => '10 ms'});
	foreach my $signal ('SEGV', 'STOP', 'KILL')
	{
		my @tasks = map { enqueue('survivor') } 1 .. 3;
		under_way(3);
		my $pid = child();
		ok($pid, "the program is there, to be sent SIG$signal");
		kill $signal, $pid;
		is(result($_, 'status'), 'completed|200', "SIG$signal: the call is made again") foreach @tasks;
		is(app("SELECT string_agg(DISTINCT attempt::text, ',') FROM orchestrator.task WHERE id IN (" . join(',', @tasks) . ')'), '2', 'which is another attempt');
		is(app("SELECT DISTINCT detail ->> 'sqlstate', detail ->> 'message' FROM orchestrator.trace WHERE event = 'retrying' AND task_id IN (" . join(',', @tasks) . ')'),
			'OR003|the program that makes outside calls ended while this one was under way', 'and traced');
		isnt(child(), $pid, 'by another program');
	}
	is(admin('SELECT pg_postmaster_start_time()'), $postmaster, 'the server went on');
	is($session->query('SELECT pg_backend_pid()'), $backend, 'and so did its sessions');
	$session->quit;
	return;
}

sub memory
{
	my $postmaster = admin('SELECT pg_postmaster_start_time()');

	admin(endpoint('large', "url '$server->{url}', allow_private 'on', max_response_size '16MB', timeout '10 s'"));
	define('large', 'large', '{"path": "/big/15000000"}', q{max_attempts => 1});
	$node->set('orchestrator.courier_memory' => '128MB');
	$node->reload;
	$node->wait_for('SHOW orchestrator.courier_memory', '128MB', 'reloaded');
	kill 'KILL', child();    # the next one has it
	app(q{SELECT orchestrator.enqueue_many('large', array_fill('{}'::jsonb, ARRAY[20]))});
	$node->wait_for(q{SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'large' AND t.state = 'failed'}, '20', 'calls with 300 MB of answers end');
	is(admin(q{SELECT count(*) FILTER (WHERE error ->> 'sqlstate' NOT IN ('OR003', 'OR012', 'OR013')) || ' ' || (count(*) FILTER (WHERE error ->> 'sqlstate' <> 'OR013') > 0) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'large'}),
		'0 true', 'not all answers had room');
	$node->set('orchestrator.courier_memory' => '1GB');
	$node->reload;
	is(run('plain', '{"text": "again"}', 'status'), 'completed|200', 'others are made');
	is(admin('SELECT pg_postmaster_start_time()'), $postmaster, 'the server went on');
	return;
}

sub lifecycle
{
	define('last', 'patient', '{"path": "/once/800"}', q{max_attempts => 3, retry_delay => '10 ms'});
	my $task = enqueue('last');
	under_way(1);
	my $pid = courier();
	my $program = child();
	admin("SELECT pg_terminate_backend($pid)");
	is(result($task, 'status'), 'completed|200', 'a courier that was terminated has a successor');
	is(app("SELECT attempt FROM orchestrator.task WHERE id = $task"), '2', 'the attempt is spent');
	ok(!kill(0, $program), 'its program went with it');
	is(admin(q{SELECT backend_type FROM pg_stat_activity WHERE backend_type LIKE '%courier'}), 'orchestrator courier', 'it is seen in pg_stat_activity');

	my $supervisor = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'orchestrator supervisor' AND datname = 'postgres'};
	my $before = admin($supervisor);
	admin("SELECT pg_terminate_backend($before)");
	$node->wait_for("SELECT count(*) FROM ($supervisor AND pid <> $before) s", '1', 'a supervisor that did not start the courier');
	$task = enqueue('last');
	under_way(1);
	admin('SELECT pg_terminate_backend(' . courier() . ')');
	is(result($task, 'status'), 'completed|200', 'sees to what that leaves');
	is(app("SELECT attempt FROM orchestrator.task WHERE id = $task"), '2', 'as the other would have');

	$task = enqueue('last');
	under_way(1);
	my $began = time;
	$node->restart;
	cmp_ok(time - $began, '<', 5, 'a fast shutdown does not wait for a call');
	is(result($task, 'status'), 'completed|200', 'it is made again after the restart');
	is(app("SELECT attempt FROM orchestrator.task WHERE id = $task"), '2', 'as another attempt');

	$node->set('orchestrator.courier_idle_timeout' => '1 s');
	$node->reload;
	$node->wait_for(q{SELECT count(*) FROM orchestrator.worker_status WHERE kind = 'courier'}, '0', 'an idle courier leaves');
	$node->set('orchestrator.courier_idle_timeout' => '600 s');
	$node->reload;
	is(run('last', undef, 'status'), 'completed|200', 'and comes when it is needed');
	return;
}

sub others
{
	admin('CREATE DATABASE elsewhere');
	my @tasks = map { enqueue('hang') } 1 .. 8;
	under_way(8);
	is(admin(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'orchestrator courier' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR xact_start IS NOT NULL)}), '0', 'no transaction meanwhile');
	my $began = time;
	admin('DROP DATABASE elsewhere');
	cmp_ok(time - $began, '<', 2, 'F19: another database can be dropped');
	app("SELECT orchestrator.cancel($_)") foreach @tasks;
	$node->wait_for(q{SELECT claimed FROM orchestrator.worker_status WHERE kind = 'courier'}, '0', 'all are cancelled');
	return;
}

# Its row is among the finished ones already, as if those were damaged.
sub unsettled
{
	define('brief', 'local', '{"path": "/sleep/700"}');
	my @tasks = split /\n/, app(q{SELECT orchestrator.enqueue('brief') FROM generate_series(1, 20)});
	under_way(20);
	my $damaged = "SELECT (jsonb_populate_record(l, '{\"live\": false, \"state\": \"completed\"}')).* FROM orchestrator.task_live l WHERE l.id = $tasks[10]";
	admin("INSERT INTO orchestrator.task $damaged");
	my $others = join ',', grep { $_ != $tasks[10] } @tasks;
	$node->wait_for("SELECT count(*) FROM orchestrator.task WHERE id IN ($others) AND state = 'completed'", '19', 'all others are settled');
	is(admin("SELECT state FROM orchestrator.task_live WHERE id = $tasks[10]"), 'running', 'but not that one');
	admin("DELETE FROM orchestrator.task_finished WHERE id = $tasks[10]");
	is(result($tasks[10]), 'completed', 'which is when that can be');
	return;
}

# A claim is of all roles, and waits for no path of one of them.
sub stuck
{
	define('keyed', 'local', '{"path": "/echo"}', q{concurrency_key => '$.** ? (@ == $.**)', key_max_running => 1});
	my $task = enqueue('keyed', '{"a": [' . join(',', 1 .. 40_000) . ']}');
	my $other = enqueue('brief');
	is(result($other), 'completed', 'another call is made');
	is(result($task, 'sqlstate', 'message'), 'failed|OR004|the concurrency_key of its definition took too long', 'that one is not');
	return;
}

# The library in a folder of its own: that.
sub library_alone
{
	my ($path) = server_conf() =~ /^dynamic_library_path = '([^:]*):/m;
	my $alone = PostgreSQL::Test::Utils::tempdir();
	copy("$path/orchestrator.so", "$alone/orchestrator.so") or die;
	$node->set(dynamic_library_path => "$alone:\$libdir");
	return $alone;
}

# Whatever may become of its program, the server goes on.
sub twice
{
	my ($version) = slurp_file('src/frame.h') =~ /FRAME_VERSION (\d+)/;
	my $program = slurp_file('test/lib/twice.py') =~ s/\@VERSION\@/$version/r;
	my $path = library_alone() . '/orchestrator-courier';
	append_to_file($path, $program);
	chmod 0755, $path;
	$node->restart;
	admin(endpoint('vectors', "url '$server->{url}', allow_private 'on', provider 'openai'"));
	app(q{SELECT orchestrator.define('vectors', NULL, 'embedding', endpoint => 'vectors', request => '{"model": "m", "input": "$.x"}', batch_size => 10, batch_wait => '300 ms', max_attempts => 1)});
	define('single', 'local', '{}', 'max_attempts => 1');
	my @tasks = ((map { enqueue('vectors', '{"x": "a"}') } 1 .. 5), enqueue('single'));
	is(result($_, 'sqlstate'), 'failed|OR012', 'what it says first counts') foreach @tasks;
	my $pid = courier();
	is(result(enqueue('single'), 'sqlstate'), 'failed|OR012', 'and it is heard on');
	is(courier(), $pid, 'by the same courier');
	return;
}

sub absent
{
	library_alone();
	$node->restart;
	define('absent', 'local', '{}');
	is(run('absent', undef, 'sqlstate', 'message', 'hint'),
		'failed|OR012|the program that makes outside calls is not installed|Install libcurl4-openssl-dev and libssl-dev, then build and install the extension again.', 'a call says what is missing');
	return;
}
