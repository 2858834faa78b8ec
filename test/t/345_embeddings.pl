# Embeddings that go together in one request (batch_size, batch_wait), against the
# tests' model: what one request is for, who pays for it, whose fault it is, what
# becomes of it when calls or processes end under way; and pgvector.

use strict;
use warnings;

use JSON::PP;
use OrchestratorModel;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $missing = missing_model();
plan skip_all => "$missing is not installed" if $missing;
$PostgreSQL::Test::Utils::timeout_default = 60;

my $url = start_model();
# A courier that leaves sooner than the calls of batch_wait are made, if it may.
my $node = new_node(name => 'embeddings', max_worker_processes => 24, 'orchestrator.courier_idle_timeout' => '1 s');
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', <<"SQL");
CREATE SERVER openai FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url/v1', provider 'openai', allow_private 'on', timeout '10 s');
CREATE SERVER ollama FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url', provider 'ollama', allow_private 'on');
CREATE SERVER two FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url/v1', provider 'openai', allow_private 'on', max_in_flight '2');
GRANT USAGE ON FOREIGN SERVER openai, ollama, two TO app;
SELECT orchestrator.set_price('m', 0.0213, 0);
SQL
app(<<'SQL');
SELECT orchestrator.define('embed ' || e, NULL, 'embedding', endpoint => e, batch_size => 100, max_attempts => 2, retry_delay => '10 ms',
         request => '{"model": "m", "dimensions": 16, "input": "$.text"}')
FROM unnest('{openai,ollama,two}'::text[]) e;
SELECT orchestrator.define('patient', NULL, 'embedding', endpoint => 'openai', batch_size => 20, batch_wait => '1500 ms', request => '{"model": "m", "input": "$.text"}');
SQL

sub app { return $node->psql_as('app', $_[0]) }

# Enqueue at once, so that all are there when the first is looked at; their ids.
sub enqueue
{
	my ($definition, @texts) = @_;
	my $list = join ', ', map { "'" . encode_json({ text => $_ }) . "'" } @texts;
	return split /,/, app("SELECT array_to_string(orchestrator.enqueue_many('$definition', ARRAY[$list]::jsonb[]), ',')");
}

sub texts { my ($n) = @_; return map { "text number $_" } 1 .. $n }

sub all_final
{
	my $ids = join ',', @_;
	return $node->poll_query_until('postgres', "SELECT count(*) = " . @_ . " FROM orchestrator.task WHERE NOT live AND id IN ($ids)")
	  || BAIL_OUT('tasks do not end');
}

sub settle_all { my @ids = enqueue(@_); all_final(@ids); return @ids }

sub ends { return ends_of($node, @_) }

# How many texts were in each request, since received() was forgotten.
sub requests
{
	return map { my $input = decode_json($_->{body})->{input}; ref $input ? scalar @$input : 1 } received_by($url);
}

sub sizes { return join ' ', sort { $b <=> $a } requests() }

# As the model makes them.
sub vector
{
	my ($text, $size) = @_;
	my $place = 0;
	my $seed = 0;
	$seed += ++$place * ord foreach split //, $text;
	return join ',', map { sprintf '%.3f', ($seed * ($_ + 7) % 1000) / 1000 } 0 .. $size - 1;
}

# Tasks whose vector is not that of their text.
sub wrong
{
	my $ids = join ',', @_;
	my $rows = decode_json(app("SELECT jsonb_agg(jsonb_build_array(input -> 'text', output -> 'embedding')) FROM orchestrator.task WHERE state = 'completed' AND id IN ($ids)"));
	return scalar grep { join(',', map { sprintf '%.3f', $_ } @{ $_->[1] }) ne vector($_->[0], 16) } @$rows;
}

# Tokens and cost of tasks, and what is counted of their definition.
sub used
{
	my $ids = join ',', @_;
	return app("SELECT sum(tokens_in) || ' ' || trim_scale(sum(cost)) FROM orchestrator.task_status WHERE task_id IN ($ids)");
}

sub counted { return app("SELECT calls || ' ' || tokens_in || ' ' || trim_scale(cost) FROM orchestrator.usage_status WHERE definition = '$_[0]'") }

sub under_way { return $node->wait_for("SELECT claimed FROM orchestrator.worker_status WHERE kind = 'courier'", $_[0], "$_[0] calls are under way") }

sub many
{
	foreach my $provider ('openai', 'ollama')
	{
		forget_received($url);
		my @ids = settle_all("embed $provider", texts(250));
		is(ends(@ids), 'completed 1 x250', "$provider: all are made");
		is(sizes(), '100 100 50', 'in as few requests as can be');
		is(wrong(@ids), 0, 'each has its own vector');
		is(used(@ids), '750 0.000015975', 'and its share of the tokens, and of their cost');
		is(counted("embed $provider"), '3 750 0.000015975', 'which are counted as the requests used them');
	}
	forget_received($url);
	my ($one) = settle_all('embed openai', 'just one');
	is(decode_json((received_by($url))[0]{body})->{input}, 'just one', 'one that is there alone goes as it is');
	is(wrong($one), 0, 'and has its vector');

	# texts in arrays among others
	forget_received($url);
	my @ids = settle_all('embed openai', 'a', [ 'b', 'c d', 'e' ], 'f');
	is(sizes(), '5', 'arrays of texts go with others');
	is(wrong(@ids[ 0, 2 ]), 0, 'which have their own');
	is(app("SELECT jsonb_array_length(output -> 'embeddings') || ' ' || (output #>> '{embeddings,2,0}') FROM orchestrator.task WHERE id = $ids[1]"),
		'3 ' . (vector('e', 16) =~ s/,.*//r + 0), 'and have theirs');

	# large ones
	forget_received($url);
	@ids = settle_all('embed openai', map { 'x' x 100_000 } 1 .. 5);
	is(sizes(), '2 2 1', 'a request is bounded by its size');
	is(ends(@ids), 'completed 1 x5', 'and all are made');
	return;
}

sub waiting
{
	forget_received($url);
	my $began = time;
	settle_all('patient', 'early');
	cmp_ok(time - $began, '>=', 1.4, 'one waits for others');
	$began = time;
	my @ids = enqueue('patient', texts(10));
	my @more = enqueue('patient', texts(10));
	all_final(@ids, @more);
	cmp_ok(time - $began, '<', 1.4, 'enough of them do not');
	is(sizes(), '20 1', 'and go together');

	# another definition of the queue meanwhile
	@ids = enqueue('patient', texts(3));
	measure_ok(1.2, 'tasks of other definitions are not held up', sub { settle_all('embed openai', 'quick') });
	is(ends(@ids), 'pending 0 x3', 'while those wait');
	app("SELECT orchestrator.cancel($ids[1])");
	all_final(@ids);
	is(ends(@ids), 'cancelled 0 OR001 x1, completed 1 x2', 'one that waits can be cancelled');
	return;
}

sub faults
{
	script_model($url, { fault => { status => 500 } });
	forget_received($url);
	my @ids = settle_all('embed openai', texts(80));
	is(ends(@ids), 'completed 2 x80', 'a request that fails is made again, which is an attempt of each');

	script_model($url, { match => 'poison', times => 1000, fault => { status => 400 } });
	forget_received($url);
	my @texts = texts(64);
	$texts[20] = 'poison';
	@ids = settle_all('embed openai', @texts);
	is(ends(@ids), 'completed 1 x63, failed 1 OR012 x1', 'of an input that is refused only the guilty fails');
	is(app("SELECT (error ->> 'status') FROM orchestrator.task WHERE id = $ids[20]"), '400', 'with its own answer');
	is(wrong(@ids), 0, 'the others have their vectors');
	cmp_ok(scalar(requests()), '<=', 13, 'found by halves, not one by one') or diag(sizes());

	script_model($url, { match => 'number 1"', times => 1000, fault => { status => 401 } });
	forget_received($url);
	@ids = settle_all('embed openai', texts(10));
	is(ends(@ids) . ' ' . sizes(), 'failed 1 OR012 x10 10', 'what blames nobody is everybody\'s');

	script_model($url, { fault => { garbage => JSON::PP::true } });
	@ids = settle_all('embed openai', texts(10));
	is(ends(@ids), 'failed 1 OR013 x10', 'as is an answer that cannot be read');
	script_model($url);
	return;
}

sub cancelled
{
	script_model($url, { fault => { wait => 1 } });
	forget_received($url);
	my $before = app("SELECT sum(tokens_in) FROM orchestrator.usage_status WHERE definition = 'embed openai'");
	my @ids = enqueue('embed openai', texts(10));
	under_way(10);
	app("SELECT orchestrator.cancel($ids[0])");
	app("SELECT orchestrator.pause($ids[1], force => true)");
	under_way(8);
	all_final(@ids[ 2 .. 9 ]);
	is(ends(@ids), 'cancelled 1 OR001 x1, completed 1 x8, paused 1 x1', 'who leaves a request does not end it');
	is(wrong(@ids[ 2 .. 9 ]), 0, 'the others have their vectors');
	is(scalar(requests()), 1, 'by that one request');
	is(app("SELECT sum(tokens_in) - $before FROM orchestrator.usage_status WHERE definition = 'embed openai'"), 30, 'and pay for it');
	app("SELECT orchestrator.cancel($ids[1])");

	script_model($url, { fault => { stall => JSON::PP::true } });
	@ids = enqueue('embed two', texts(10));
	under_way(10);
	my $began = time;
	app("SELECT orchestrator.cancel($_)") foreach @ids;
	under_way(0);
	cmp_ok(time - $began, '<', 1.5, 'when all have left, it ends');
	is($node->safe_psql('postgres', 'SELECT coalesce(sum(running), 0) FROM orchestrator._permits()'), '0', 'and holds no permit');
	script_model($url);
	return;
}

# An endpoint counts requests, not calls.
sub limits
{
	script_model($url, { times => 1000, fault => { wait => 0.2 } });
	forget_received($url);
	my $began = time;
	my @ids = settle_all('embed two', texts(600));
	cmp_ok(time - $began, '>=', 0.6, 'two requests at once, not more');
	is(sizes(), '100 100 100 100 100 100', 'which are full');
	is($node->safe_psql('postgres', 'SELECT coalesce(sum(running), 0) FROM orchestrator._permits()'), '0', 'every permit is given back');
	script_model($url);

	# one whose time is up before that of the others
	script_model($url, { fault => { wait => 0.7 }, match => 'hasty' });
	forget_received($url);
	my $hasty = app(q{SELECT orchestrator.enqueue('embed openai', '{"text": "hasty"}', deadline => now() + interval '400 ms')});
	@ids = settle_all('embed openai', texts(5));
	all_final($hasty);
	is(ends(@ids) . ' ' . app("SELECT state FROM orchestrator.task WHERE id = $hasty"), 'completed 1 x5 failed', 'a deadline that is near ends one call alone');
	script_model($url);
	return;
}

sub child
{
	my $parent = $node->safe_psql('postgres', q{SELECT pid FROM orchestrator.worker_status WHERE kind = 'courier'});
	foreach my $file (glob '/proc/[0-9]*/stat')
	{
		my ($pid) = (-e $file ? slurp_file($file) : '') =~ /^(\d+) \(orchestrator-co\w*\) \S $parent / or next;
		return $pid;
	}
	return 0;
}

sub deaths
{
	my %end = (
		'its program is killed' => sub { kill 'KILL', child() },
		'the courier is terminated' => sub { $node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM orchestrator.worker_status WHERE kind = 'courier'}) },
		'the server is' => sub { $node->stop('immediate'); $node->start });
	foreach my $how (sort keys %end)
	{
		script_model($url, { fault => { wait => 2 } });
		my @ids = enqueue('embed openai', texts(60));
		under_way(60);
		$end{$how}->();
		all_final(@ids);
		is(ends(@ids), 'completed 2 x60', "when $how, each is made again");
		is(wrong(@ids), 0, 'and has its vector');
	}
	script_model($url);
	return;
}

sub pgvector
{
	plan skip_all => 'pgvector is not installed'
	  if $node->safe_psql('postgres', q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'}) == 0;
	$node->safe_psql('postgres', 'CREATE EXTENSION vector; CREATE SCHEMA shop AUTHORIZATION app');
	my @ids = settle_all('embed openai', 'north', 'south', 'northern');
	my $near = app(q{CREATE TABLE shop.page (text text, embedding vector(16));
		INSERT INTO shop.page SELECT input ->> 'text', orchestrator.to_embedding(output) FROM orchestrator.task WHERE id IN (} . join(',', @ids) . q{);
		SELECT text || ' ' || (embedding <-> (SELECT orchestrator.to_embedding(output)::vector FROM orchestrator.task WHERE id = } . $ids[1] . q{)) FROM shop.page ORDER BY embedding <-> (SELECT embedding FROM shop.page WHERE text = 'south') LIMIT 1});
	is($near, 'south 0', 'an embedding is stored and found as a vector');
	return;
}

subtest 'many in one request' => \&many;
subtest 'waiting for others' => \&waiting;
subtest 'faults' => \&faults;
subtest 'who leaves under way' => \&cancelled;
subtest 'limits and deadlines' => \&limits;
subtest 'deaths' => \&deaths;
subtest 'pgvector' => \&pgvector;
$node->stop;
done_testing();
