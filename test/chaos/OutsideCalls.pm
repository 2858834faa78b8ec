package OutsideCalls;

# Outside calls under faults, and what must hold of them.
#
#   my $calls = OutsideCalls->start($folder);       # the receiver (receiver.py)
#   $calls->prepare($node, @roles);                 # definitions http, http_chain, asked (a model),
#                                                   # embedded, tooled (an MCP server) and tell of each
#   my $sql = OutsideCalls::hooked($input);         # a note, and two webhooks that tell of its end
#   $calls->remember($node);                        # what was settled so far is to stay
#   my $n = $calls->interrupt($node);               # pause some with force, and resume them
#   my $pid = $calls->program($node);               # of the courier; undef: it has none
#   my @violations = $calls->check($node, $since);  # when the last call was enqueued
#
# The receiver writes down every request before it answers, draws what becomes of
# it, and gives each a token of its own.  It lives on while the server is killed.

use strict;
use warnings;

use Fault;
use File::Basename qw(dirname);
use IPC::Open2;
use PostgreSQL::Test::Utils;

my $items = 3;    # of http_chain

sub start
{
	my ($class, $folder, $seed) = @_;
	my $self = bless { log => "$folder/requests", secrets => "$folder/secrets", settled => {}, programs => {} }, $class;

	$self->{pid} = open2($self->{out}, $self->{in}, 'python3', '-B', dirname(__FILE__) . '/receiver.py', $self->{log}, int $seed);
	mkdir $self->{secrets};
	append_to_file("$self->{secrets}/key", 'a secret of webhooks, long enough');
	chmod 0600, "$self->{secrets}/key";
	chomp($self->{port} = readline($self->{out}) // die 'the receiver of outside calls did not start');
	return $self;
}

sub stop
{
	my ($self) = @_;
	close $self->{in};
	waitpid $self->{pid}, 0;
	return;
}

sub secrets { return $_[0]->{secrets} }

sub prepare
{
	my ($self, $node, @roles) = @_;
	my $retry = q(max_attempts => 10000, backoff => 'fixed', retry_delay => '0.05 s');
	my $options = "kind => 'http', endpoint => 'outside', $retry";

	$node->safe_psql('postgres', <<"SQL");
CREATE SERVER outside FOREIGN DATA WRAPPER orchestrator_http
  OPTIONS (url 'http://127.0.0.1:$self->{port}', allow_private 'on', timeout '2 s', max_in_flight '40');
CREATE SERVER hooks FOREIGN DATA WRAPPER orchestrator_http
  OPTIONS (url 'http://127.0.0.1:$self->{port}/hook', provider 'webhook', secret 'key', allow_private 'on', timeout '2 s', max_in_flight '20');
CREATE SERVER model FOREIGN DATA WRAPPER orchestrator_http
  OPTIONS (url 'http://127.0.0.1:$self->{port}', provider 'openai', allow_private 'on', timeout '2 s', max_in_flight '20');
CREATE SERVER tools FOREIGN DATA WRAPPER orchestrator_http
  OPTIONS (url 'http://127.0.0.1:$self->{port}/mcp', provider 'mcp', allow_private 'on', timeout '2 s', max_in_flight '20');
GRANT USAGE ON FOREIGN SERVER outside, hooks, model, tools TO @{[join ', ', @roles]};
CREATE TABLE chaos.request (at float8, event text, what text, key text, token text, fate text, after text);
CREATE TABLE chaos.settled (task bigint, token text);
SQL
	$node->psql_as($_, <<"SQL") foreach @roles;
SELECT orchestrator.define('http', NULL, $options, request => '{"path": "/call", "body": {"of": "\$.token"}}');
SELECT orchestrator.define('asked', NULL, 'llm', endpoint => 'model', $retry, request => '{"model": "m", "prompt": "\$.token"}'),
       orchestrator.define('embedded', NULL, 'embedding', endpoint => 'model', $retry, batch_size => 10, batch_wait => '50 ms', request => '{"model": "m", "input": "\$.token"}'),
       orchestrator.define('tooled', NULL, 'tool', endpoint => 'tools', $retry, request => '{"tool": "x"}');
SELECT orchestrator.define('tell', NULL, kind => 'webhook', endpoint => 'hooks', $retry);
SELECT orchestrator.define_workflow('http_chain', ARRAY[
  orchestrator.step('a', $options, request => '{"path": "/call", "body": {}, "expect": "exists(\$.body.token)"}'),
  orchestrator.step('m', $options, needs => '{a}', each => '\$.input.items', max_parallel => 2, input => '{"after": "\$.steps.a.body.token"}',
                    request => '{"path": "/call", "body": {"after": "\$.after"}}'),
  orchestrator.step('z', 'chaos.step', needs => '{m}', $retry)]);
SQL
	return;
}

sub items { return '[' . join(', ', 1 .. $items) . ']' }

sub hooked
{
	my ($input) = @_;
	return "SELECT 'id ' || id FROM (SELECT orchestrator.enqueue('note', $input) AS id OFFSET 0) t,
		orchestrator.on_completion(id, 'tell') first, orchestrator.on_completion(id, 'tell') second;\n";
}

my $hooks = q(JOIN orchestrator.definition d ON d.id = t.definition AND d.kind = 'webhook');
my $answered = q(JOIN orchestrator.definition d ON d.id = t.definition AND d.kind IN ('http', 'llm', 'tool'));
my $token = q(coalesce(t.output #>> '{body,token}', t.output ->> 'text', t.output ->> 'content'));
my $single = q(JOIN orchestrator.definition d ON d.id = t.definition AND d.kind IN ('http', 'llm', 'tool', 'webhook'));
my $all = q(JOIN orchestrator.definition d ON d.id = t.definition AND d.kind IN ('http', 'llm', 'tool', 'webhook', 'embedding'));

sub remember
{
	my ($self, $node) = @_;
	my $lines = value($node, "SELECT t.id, $token FROM orchestrator.task t $answered WHERE t.state = 'completed'") // return;

	foreach my $line (split /\n/, $lines)
	{
		my ($task, $token) = split /\|/, $line;
		$self->{settled}{$task} //= $token;
	}
	return;
}

# Stop a few calls under way, and let them be made again: how many.
sub interrupt
{
	my ($self, $node) = @_;
	return value($node, "SELECT count(orchestrator.resume(p.id)) FROM (SELECT t.id, orchestrator.pause(t.id, force => true) AS state
		FROM (SELECT t.id FROM orchestrator.task t $all WHERE t.live AND t.state = 'running' ORDER BY random() LIMIT 3) t OFFSET 0) p WHERE p.state = 'paused'") // 0;
}

sub program
{
	my ($self, $node) = @_;
	my ($pid) = map { children($_) } workers($node, 'courier');

	$self->{programs}{$pid} = born($pid) if $pid;
	return $pid;
}

# When a process began, for numbers are given out again; empty: it is gone.
sub born
{
	my ($pid) = @_;
	open my $stat, '<', "/proc/$pid/stat" or return '';
	return (split ' ', (<$stat> // '') =~ s/^.*\) //r)[19] // '';
}

# ---------------------------------------------------------------- verdict

# Each query finds what must not be; a row is a violation.
my @checks = (
	'C1: a call is not completed' => qq(
		SELECT t.id, t.state, t.attempt, t.run_at, t.error FROM orchestrator.task t $all WHERE t.live OR t.state <> 'completed'),
	'C2: a call was completed that nobody received' => qq(
		SELECT t.id, t.output FROM orchestrator.task t $single WHERE NOT EXISTS (SELECT FROM seen s WHERE s.task = t.id AND s.event = 'request')),
	'C3: more requests than attempts' => qq(
		SELECT t.id, t.attempt, t.state, array_agg(s.at || ' ' || s.fate ORDER BY s.at) FROM orchestrator.task t $single JOIN seen s ON s.task = t.id AND s.event = 'request'
		GROUP BY 1, 2, 3 HAVING count(*) > t.attempt),
	'C4: more attempts than allowed' => qq(
		SELECT t.id, t.attempt FROM orchestrator.task t $all WHERE t.attempt NOT BETWEEN 1 AND t.max_attempts),
	'C5: an output is no answer that was given to its task' => qq(
		SELECT t.id, $token FROM orchestrator.task t $answered
		WHERE NOT EXISTS (SELECT FROM seen s WHERE s.task = t.id AND s.event = 'given' AND s.token = $token)),
	'C6: a request of a task that there is not' => q(
		SELECT s.* FROM seen s WHERE NOT EXISTS (SELECT FROM orchestrator.task t WHERE t.id = s.task)),
	'C7: a task has several keys' => q(
		SELECT s.task, array_agg(DISTINCT s.key) FROM seen s GROUP BY 1 HAVING count(DISTINCT s.key) > 1),
	'C8: an answer that was settled is lost, or is another' => qq(
		SELECT z.*, t.state, $token FROM chaos.settled z LEFT JOIN orchestrator.task t ON t.id = z.task
		WHERE $token IS DISTINCT FROM z.token),
	'C9: a task was called again after its answer was settled' => qq(
		SELECT t.id, t.finished_at, to_timestamp(s.at) FROM orchestrator.task t $single JOIN seen s ON s.task = t.id AND s.event = 'request'
		WHERE to_timestamp(s.at) > t.finished_at),
	'C10: a step was told of another answer than that of the step before' => q(
		SELECT s.*, a.output -> 'body' FROM seen s JOIN orchestrator.task t ON t.id = s.task JOIN orchestrator.task a ON a.parent_id = t.root_id AND a.name = 'a'
		WHERE s.after IS DISTINCT FROM CASE t.name WHEN 'a' THEN NULL ELSE a.output #>> '{body,token}' END),
	'C11: a task has not two webhooks that tell of its end' => qq(
		SELECT t.id, t.state, array_agg(h.id) FROM orchestrator.task t
		LEFT JOIN (SELECT t.id, t.metadata ->> 'task' AS about FROM orchestrator.task t $hooks) h ON h.about = t.id::text
		WHERE t.parent_id IS NULL AND t.input ->> 'kind' = 'hooked' GROUP BY 1, 2 HAVING count(h.id) <> 2),
	'C12: a webhook was posted before one that came before it' => qq(
		SELECT a.id, b.id, a.finished_at, to_timestamp(s.at) FROM (SELECT t.* FROM orchestrator.task t $hooks) a
		JOIN (SELECT t.* FROM orchestrator.task t $hooks) b ON b.metadata ->> 'task' = a.metadata ->> 'task' AND b.id > a.id
		JOIN seen s ON s.task = b.id WHERE to_timestamp(s.at) < a.finished_at),
	'C13: what a model used was not counted once' => q(
		SELECT u.calls, t.n FROM (SELECT coalesce(sum(calls), 0) AS calls FROM orchestrator.usage_status WHERE definition = 'asked') u,
			(SELECT count(*) AS n FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'asked') t WHERE u.calls <> t.n),
	'C14: an embedding is of another text' => q(
		SELECT t.id, t.input, t.output FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition AND d.kind = 'embedding'
		WHERE t.output -> 'embedding' IS DISTINCT FROM (SELECT jsonb_agg(ascii(c.c) ORDER BY c.n) FROM regexp_split_to_table(t.input ->> 'token', '') WITH ORDINALITY c(c, n))),
	'C15: a call is still under way' => q(SELECT kind, claimed FROM orchestrator.worker_status WHERE kind = 'courier' AND claimed > 0));

sub check
{
	my ($self, $node, $since) = @_;
	my @violations;

	$node->safe_psql('postgres', "\\copy chaos.request FROM '$self->{log}'\n"
		. q(CREATE VIEW seen AS SELECT r.*, substring(r.key FROM '\d+$')::bigint AS task FROM chaos.request r WHERE r.what <> 'embeddings' AND r.key !~ '-initialized?$';));
	$node->safe_psql('postgres', 'INSERT INTO chaos.settled VALUES ' . join ', ', map { "($_, '$self->{settled}{$_}')" } keys %{ $self->{settled} })
	  if %{ $self->{settled} };
	my @left = (@checks, 'C16: a call was stuck' => qq(
		SELECT t.id, t.created_at, t.started_at, t.finished_at FROM orchestrator.task t $all
		WHERE t.finished_at > to_timestamp($since) + interval '20 seconds'));
	while (my ($name, $query) = splice @left, 0, 2)
	{
		my $found = $node->safe_psql('postgres', "SELECT count(*) FROM ($query) found");
		next if $found == 0;
		push @violations, "$name: $found\n" . $node->safe_psql('postgres', "$query LIMIT 10");
	}
	my ($current) = map { children($_) } workers($node, 'courier');
	push @violations, map { "C17: a program of a courier that is gone lives on: $_" }
	  grep { alive($_) && $_ != ($current // 0) && born($_) eq $self->{programs}{$_} } keys %{ $self->{programs} };
	return @violations;
}

# What the receiver did, as text; and how many answers were given in vain.
sub summary
{
	my ($self, $node) = @_;
	my $fates = $node->safe_psql('postgres', q(SELECT string_agg(format('%s %s', fate, n), ', ' ORDER BY n DESC)
		FROM (SELECT fate, count(*) AS n FROM chaos.request WHERE event = 'request' GROUP BY 1) f));
	my $calls = $node->safe_psql('postgres', "SELECT format('%s calls, %s attempts, %s requests, %s answers that never arrived', count(*), sum(t.attempt),
		(SELECT count(*) FROM chaos.request WHERE event = 'request'), (SELECT count(*) FROM chaos.request WHERE event = 'given') - count(*)) FROM orchestrator.task t $all");
	return sprintf '%s; %d looked at meanwhile; %s', $calls, scalar keys %{ $self->{settled} }, $fates;
}

1;
