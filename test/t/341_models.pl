# Models, tools and agents against the tests' model, and tools against the MCP
# project's own server: every provider, what they may do wrong, and an agent whose
# tools are a function, an approval and a server of tools.

use strict;
use warnings;

use JSON::PP;
use OrchestratorModel;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $missing = missing_model();
plan skip_all => "$missing is not installed" if $missing;
$PostgreSQL::Test::Utils::timeout_default = 60;

my $url = start_model(key => 'canary-4711');
my $node = new_node(name => 'models', 'orchestrator.secrets_directory' => secret_folder('canary-4711'));
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', <<"SQL");
CREATE SERVER openai FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url/v1', provider 'openai', secret 'key', allow_private 'on', timeout '2 s');
CREATE SERVER anthropic FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url/v1', provider 'anthropic', secret 'key', allow_private 'on');
CREATE SERVER ollama FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url', provider 'ollama', allow_private 'on');
CREATE SERVER tools FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url/mcp', provider 'mcp', allow_private 'on');
GRANT USAGE ON FOREIGN SERVER openai, anthropic, ollama, tools TO app;
SELECT orchestrator.set_price('m', 1, 2);
CREATE SCHEMA lib AUTHORIZATION app;
SQL

sub app { return $node->psql_as('app', $_[0]) }

# Enqueue, wait, and give the task as task_status has it.
sub run
{
	my ($sql) = @_;
	my $task = app("SELECT $sql");
	app("SELECT orchestrator.wait($task, '30 s')");
	return status($task);
}

sub status
{
	my ($task) = @_;
	return decode_json(app("SELECT to_jsonb(s) FROM orchestrator.task_status s WHERE task_id = $task"));
}

# Every provider
app(<<'SQL');
SELECT orchestrator.define('ask ' || e, NULL, 'llm', endpoint => e, retry_delay => '10 ms',
         request => '{"model": "m", "system": "be brief", "prompt": "$.q", "temperature": 0}'),
       orchestrator.define('json ' || e, NULL, 'llm', endpoint => e, retry_delay => '10 ms', request => '{"model": "m", "prompt": "$.q",
         "schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 3}}}}')
FROM unnest('{openai,anthropic,ollama}'::text[]) e;
SELECT orchestrator.define('embed ' || e, NULL, 'embedding', endpoint => e, request => '{"model": "m", "input": "$.q"}')
FROM unnest('{openai,ollama}'::text[]) e;
SQL
foreach my $provider (qw(openai anthropic ollama))
{
	my $task = run(qq{orchestrator.enqueue('ask $provider', '{"q": "hello there"}')});
	is($task->{output}{content}, 'hello there', "$provider: an answer");
	is("$task->{tokens_in} $task->{tokens_out} " . ($task->{cost} * 1e6), '4 2 8', 'its tokens and their cost');
	script_model($url, { match => 'which', content => { n => 2 } }, { match => 'cannot be used', content => { n => 8 } });
	$task = run(qq{orchestrator.enqueue('json $provider', '{"q": "which number"}')});
	is("$task->{output}{content}{n} $task->{attempt}", '8 2', 'a schema, and an answer that does not fit it');
	next if $provider eq 'anthropic';
	$task = run(qq{orchestrator.enqueue('embed $provider', '{"q": ["a", "b"]}')});
	is(join(' ', map { scalar @$_ } @{ $task->{output}{embeddings} }), '8 8', 'embeddings');
}
is(app('SELECT sum(calls) FROM orchestrator.usage_status'), 11, 'every call was counted');

# What may go wrong
foreach my $fault (
	[ { status => 429, retry_after => 1 }, 'completed 2', '429 with Retry-After' ],
	[ { status => 500 }, 'completed 2', 'status 500' ],
	[ { garbage => JSON::PP::true }, 'failed 1', 'garbage' ],
	[ { truncate => JSON::PP::true }, 'completed 2', 'half an answer' ],
	[ { stall => JSON::PP::true }, 'completed 2', 'no answer' ],
	[ { huge => 2_000_000 }, 'failed 1', 'more than max_response_size' ],
	[ { status => 400 }, 'failed 1', 'status 400' ])
{
	my ($what, $expected, $name) = @$fault;
	script_model($url, { fault => $what });
	my $task = run(q{orchestrator.enqueue('ask openai', '{"q": "hello there"}')});
	is("$task->{state} $task->{attempt}", $expected, $name) or diag($task->{error}{message});
}

# F37: answers that cannot be kept fail for good, after one call
my $say = q{'{"q": "hello there", "message": "x"}'};
my %form = (
	'ask openai' => '{"choices": [{"message": {"content": %s}}]}',
	'ask anthropic' => '{"content": [{"type": "text", "text": %s}]}',
	'parts openai' => qq(data: {"choices": [{"delta": {"content": %s}}]}\n\ndata: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n),
	'parts anthropic' => qq(event: message_start\ndata: {"type": "message_start", "message": {}}\n\nevent: content_block_start\ndata: {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}\n\n)
	  . qq(event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": %s}}\n\nevent: message_stop\ndata: {"type": "message_stop"}\n\n),
	'parts ollama' => qq({"message": {"content": %s}, "done": false}\n{"message": {"content": ""}, "done": true}\n),
	'embed openai' => '{"data": [{"embedding": [%s]}]}',
	'say' => '{"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": %s}]}}',
	'say, as events' => qq(event: message\r\ndata: {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": %s}]}}\r\n\r\n));
my %unusable = (
	'a NUL' => '"\\u0000"', 'half a surrogate' => '"\\ud800"', 'a byte that is no text' => qq("\xff"), 'a number without end' => '1e200000',
	'too deep' => '[' x 100_000, 'too large' => '"' . 'x' x 1_100_000 . '"');
app(q{SELECT orchestrator.define('parts ' || e, NULL, 'llm', endpoint => e, retry_delay => '10 ms', request => '{"model": "m", "prompt": "$.q", "stream": true}')
        FROM unnest('{openai,anthropic,ollama}'::text[]) e;
      SELECT orchestrator.define('say', NULL, 'tool', endpoint => 'tools', request => '{"tool": "echo"}', retry_delay => '10 ms')});
is(run("orchestrator.enqueue('say', $say)")->{output}{text}, 'Echo: x', 'a session is open');
foreach my $name (sort keys %form)
{
	foreach my $what (sort keys %unusable)
	{
		script_model($url, { fault => { raw => sprintf $form{$name}, $unusable{$what} }, times => 9, $name =~ /events/ ? (events => JSON::PP::true) : () });
		forget_received($url);
		my $task = run("orchestrator.enqueue('" . $name =~ s/,.*//r . "', $say)");
		is("$task->{state} $task->{error}{sqlstate} " . scalar received_by($url), 'failed OR013 1', "F37: $name: $what") or diag($task->{error}{message});
	}
}
script_model($url);

# Tools of a server, as JSON and as events
script_model($url, { events => JSON::PP::true, match => 'tools/call', times => 1 });
app(q{SELECT orchestrator.define('add', NULL, 'tool', endpoint => 'tools', request => '{"tool": "add"}', max_attempts => 1),
             orchestrator.define('fails', NULL, 'tool', endpoint => 'tools', request => '{"tool": "fail"}', max_attempts => 1)});
my $task = run(q{orchestrator.enqueue('add', '{"a": 2, "b": 3}')});
is("$task->{output}{structuredContent}{sum} $task->{attempt}", '5 1', 'a tool opens a session, and is called');
is(run(q{orchestrator.enqueue('fails')})->{error}{sqlstate}, 'OR015', 'a tool that fails');
script_model($url, { lose => JSON::PP::true, match => 'tools/call', times => 1 });
$task = run(q{orchestrator.enqueue('add', '{"a": 20, "b": 30}')});
is("$task->{output}{structuredContent}{sum} $task->{attempt}", '50 1', 'a session that was lost is opened anew');
is(join(' ', @{ run(q{orchestrator.import_tools('tools', 't_')})->{output} }), 't_add t_echo t_fail', 'its tools are imported, both pages');
SKIP:
{
	my $folder = model_packages();
	skip 'npm can fetch no packages', 5 unless $folder;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	local $ENV{PORT} = $port;
	start_server(qr/listening on port|started|running/i,
		# of Node.js 20, which that of Debian 12 does not have by itself
		'node', '-e', 'globalThis.crypto ??= require("crypto").webcrypto; import(process.argv[1])',
		"$folder/node_modules/\@modelcontextprotocol/server-everything/dist/index.js", 'streamableHttp');
	$node->safe_psql('postgres', "CREATE SERVER everything FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url 'http://localhost:$port/mcp', provider 'mcp', allow_private 'on');
		GRANT USAGE ON FOREIGN SERVER everything TO app");
	like(join(' ', @{ run(q{orchestrator.import_tools('everything', 'e_')})->{output} }), qr/\be_echo\b/, 'the official server: tools/list');
	is(run(q{orchestrator.enqueue('e_echo', '{"message": "hello"}')})->{output}{text}, 'Echo: hello', 'tools/call');
	my $sum = app(q{SELECT name FROM orchestrator.tool WHERE name IN ('e_add', 'e_get-sum')});
	app(qq{SELECT orchestrator.define('everything', NULL, 'tool', request => '{"tools": ["e_echo", "$sum"]}')});
	is(run(q{orchestrator.enqueue('everything', '{"name": "e_echo", "arguments": {"message": "$.name"}}')})->{output}{text}, 'Echo: $.name', 'a tool by its name, from a list');
	like(run(qq{orchestrator.enqueue('everything', '{"name": "$sum", "arguments": {"a": 2, "b": 40}}')})->{output}{text}, qr/\b42\b/, 'another');
	my $task = run(qq{orchestrator.enqueue('everything', '{"name": "$sum", "arguments": {"a": 2, "b": "two"}}')});
	is("$task->{state} $task->{error}{message}", qq{failed the arguments of tool "$sum" do not fit: arguments.b is string, not number}, 'arguments that do not fit its schema');
}

# An agent of every provider
app(<<'SQL');
CREATE FUNCTION lib.search(d jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_build_object('found', d ->> 'query', 'as', session_user)$$;
CREATE FUNCTION lib.broken(d jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RAISE 'no such page'; END$$;
SELECT orchestrator.define('search', 'lib.search', description => 'searches the library'),
       orchestrator.define('broken', 'lib.broken', max_attempts => 1),
       orchestrator.define_tool('search', '{"type": "object", "required": ["query"], "properties": {"query": {"type": "string"}}, "additionalProperties": false}'),
       orchestrator.define_tool('broken', needs_approval => true);
SQL

# A model with tools: rounds, of every provider
app(<<'SQL');
SELECT orchestrator.define('helped ' || e || s, NULL, 'llm', endpoint => e, retry_delay => '10 ms', max_running => 1,
         request => jsonb_build_object('model', 'm', 'prompt', '$.q', 'tools', '["search", "broken", "t_add"]'::jsonb, 'max_tool_rounds', 2, 'stream', s <> ''))
FROM unnest('{openai,anthropic,ollama}'::text[]) e, unnest('{""," streamed"}'::text[]) s;
SELECT orchestrator.define('by name', NULL, 'tool', request => '{"tools": ["search", "t_add"]}');
SQL
is(run(q{orchestrator.enqueue('by name', '{"name": "t_add", "arguments": {"a": 4, "b": 5}}')})->{output}{structuredContent}{sum}, 9, 'a tool by its name');
forget_received($url);
is(run(q{orchestrator.enqueue('by name', '{"name": "t_add", "arguments": {"a": 4}}')})->{error}{sqlstate}, '22023', 'whose arguments do not fit');
is(scalar received_by($url), 0, 'is not called');
foreach my $provider (map { ($_, "$_ streamed") } qw(openai anthropic ollama))
{
	script_model($url,
		{ match => 'how much', tool_calls => [ { id => 'a1', name => 'search', arguments => { query => q{'); DROP TABLE lib.x; --} } },
				{ id => 'a2', name => 't_add', arguments => { a => 1, b => 2 } }, { id => 'a3', name => q{t_add'); --}, arguments => {} } ] },
		{ match => 'there is no tool', tool_calls => [ { id => 'b1', name => 'broken', arguments => {} } ] },
		{ match => 'no such page', content => 'three' });
	my $run = app(qq{SELECT orchestrator.enqueue('helped $provider', '{"q": "how much"}')});
	$node->wait_for("SELECT EXISTS (SELECT FROM orchestrator.step_status WHERE run_id = $run AND step = 'call 2.1 approval' AND state = 'waiting')", 't', "$provider: a call waits for its approval");
	app("SELECT orchestrator.approve($run, 'call 2.1 approval')");
	app("SELECT orchestrator.wait($run, '30 s')");
	my $helped = status($run);
	is("$helped->{state} $helped->{output}{content}", 'completed three', 'a model answers after two rounds of tools') or diag($helped->{error}{message});
	is(app("SELECT string_agg(step || ' ' || state, ', ' ORDER BY number) FROM orchestrator.step_status WHERE run_id = $helped->{task_id}"),
		'call 1.1 completed, call 1.2 completed, round 2 completed, call 2.1 approval completed, call 2.1 failed, round 3 completed', 'each call is a step');
	is(app("SELECT output ->> 'found' || ' ' || (output ->> 'as') FROM orchestrator.step_status WHERE run_id = $helped->{task_id} AND step = 'call 1.1'"),
		q{'); DROP TABLE lib.x; -- app}, 'with its arguments as they are, as the role');
	is($helped->{tokens_in}, app("SELECT sum(tokens_in) FROM orchestrator.usage_status WHERE definition = 'helped $provider'"), 'and what all used');
}

# Rounds survive the server
app(<<'SQL');
CREATE TABLE lib.noted (n int);
CREATE FUNCTION lib.note(d jsonb) RETURNS jsonb LANGUAGE sql AS $$INSERT INTO lib.noted VALUES ((d ->> 'n')::int); SELECT '"noted"'::jsonb$$;
SELECT orchestrator.define('note', 'lib.note'), orchestrator.define_tool('note'),
       orchestrator.define('noting', NULL, 'llm', endpoint => 'openai', retry_delay => '10 ms', max_attempts => 5, request => '{"model": "m", "prompt": "$.q", "tools": ["note"]}');
SQL
script_model($url,
	{ match => 'write it down', tool_calls => [ map { { id => "n$_", name => 'note', arguments => { n => $_ } } } 1 .. 3 ] },
	{ match => 'noted', fault => { stall => JSON::PP::true } },
	{ match => 'noted', content => 'so it is' });
my $noting = app(q{SELECT orchestrator.enqueue('noting', '{"q": "write it down"}')});
$node->wait_for("SELECT EXISTS (SELECT FROM orchestrator.step_status WHERE run_id = $noting AND step = 'round 2' AND state = 'running')", 't', 'a model is asked again');
$node->stop('immediate');
$node->start;
app("SELECT orchestrator.wait($noting, '30 s')");
is(status($noting)->{output}{content}, 'so it is', 'after a crash of the server it is asked once more');
is(app('SELECT string_agg(n::text, $$ $$ ORDER BY n) FROM lib.noted'), '1 2 3', 'what it had called was done once');

# Judged by a model
script_model($url, { match => 'many pages', content => { orchestrate => JSON::PP::true, score => 0.9, reason => 'many' } });
my $judged = decode_json(app(q{SELECT orchestrator.should_orchestrate('many pages', 'openai', 'm')}));
app("SELECT orchestrator.wait($judged->{task}, '30 s')");
is(status($judged->{task})->{output}{content}{reason}, 'many', 'a model judges whether to orchestrate');

sub decision
{
	my ($decision, $answer, @steps) = @_;
	return { decision => $decision, reason => 'it seems best', answer => $answer,
		steps => [ map { { name => $_->[0], description => '', tool => $_->[1], arguments => $_->[2], needs => $_->[3] || [] } } @steps ] };
}
my @script = (
	{ match => 'Goal: ', content => decision('continue', '', [ 'look', 'rm -rf', {} ]) },
	{ match => 'is no name', content => decision('continue', '', [ 'look', 'shell', {} ]) },
	{ match => 'there is no tool', content => decision('continue', '', [ 'look', 'search', { query => '$.input; DROP TABLE lib.x' } ],
			[ 'sum', 't_add', { a => 1, b => 2 } ], [ 'bad', 'broken', {} ], [ 'think', '', {}, [ 'look', 'sum' ] ]) },
	{ match => 'You do one step', content => 'a thought' },
	{ match => 'no such page', content => decision('done', 'forty-two') });
$script[0]{content}{steps}[0]{name} = 'no name';
foreach my $provider (qw(openai anthropic ollama))
{
	script_model($url, @script);
	my $run = app("SELECT orchestrator.orchestrate('find out about vacuum', '{search,broken,t_add}', '$provider', 'm', max_steps => 12)");
	$node->wait_for("SELECT EXISTS (SELECT FROM orchestrator.step_status WHERE run_id = $run AND step = 'bad approval' AND state = 'waiting')", 't', "$provider: an agent asks for approval");
	app("SELECT orchestrator.approve($run, 'bad approval')");
	app("SELECT orchestrator.wait($run, '30 s')");
	my $status = decode_json(app("SELECT orchestrator.agent_status($run)"));
	is("$status->{status} $status->{answer}", 'completed forty-two', 'and comes to its end');
	is(join(', ', map { "$_->{name} $_->{status}" } @{ $status->{steps} }),
		'plan completed, look completed, sum completed, bad approval completed, bad failed, think completed, evaluate 1 completed', 'by steps that it planned');
	is(app("SELECT output ->> 'found' || ' ' || (output ->> 'as') FROM orchestrator.step_status WHERE run_id = $run AND step = 'look'"),
		'$.input; DROP TABLE lib.x app', 'a tool gets its arguments as they are, and runs as the role');
	is(app("SELECT string_agg(detail ->> 'decision', ' ' ORDER BY at) FROM orchestrator.trace WHERE task_id = $run AND event = 'decision'"), 'continue done', 'its decisions are traced');
	cmp_ok($status->{tokens_in}, '>', 100, 'with what it used');
}

# Where it stops
script_model($url, @script[ 2 .. 4 ]);
$script[2]{match} = 'Goal: ';
script_model($url, @script[ 2 .. 4 ]);
my $run = app(q{SELECT orchestrator.orchestrate('stop here', '{search,broken,t_add}', 'openai', 'm', max_steps => 12)});
$node->wait_for("SELECT EXISTS (SELECT FROM orchestrator.step_status WHERE run_id = $run AND step = 'bad approval' AND state = 'waiting')", 't', 'it asks');
app("SELECT orchestrator.reject($run, 'bad approval', 'not today')");
app("SELECT orchestrator.wait($run, '30 s')");
is(status($run)->{error}{sqlstate}, 'OR006', 'at a human\'s no');
script_model($url, { content => decision('continue', '', [ 'look', 'search', { query => 'x' } ]) });
is(run(q{orchestrator.orchestrate('spend', '{search}', 'openai', 'm', max_tokens => 50)})->{error}{sqlstate}, 'OR014', 'at its budget');
script_model($url, { content => decision('continue', '', map { [ "s$_", 'search', { query => 'x' } ] } 1 .. 4), times => 9 });
is(run(q{orchestrator.orchestrate('go on', '{search}', 'openai', 'm', max_steps => 4)})->{error}{sqlstate}, 'OR013', 'at max_steps');
script_model($url, { content => decision('give_up', '') });
is(run(q{orchestrator.orchestrate('the impossible', '{}', 'openai', 'm')})->{error}{sqlstate}, 'OR016', 'where it gives up');

# A context that grows too long
script_model($url, (map { { match => $_ == 1 ? 'Goal: ' : "r$_: ", content => decision('continue', '', [ 'r' . ($_ + 1), 'search', { query => 'ab ' x 500 } ]) } } 1 .. 2),
	{ match => 'Summarise the text', content => 'much was read' }, { match => 'much was read', content => decision('done', 'read') });
$run = run(q{orchestrator.orchestrate('read on', '{search}', 'openai', 'm', context_limit => 1500)});
is($run->{output}{answer}, 'read', 'an agent goes on from a summary');
is(app("SELECT count(*) FROM orchestrator.trace WHERE task_id = $run->{task_id} AND event = 'summarized'"), 1, 'that it made once');

# R15: the secret is nowhere
is($node->safe_psql('postgres', q{SELECT count(*) FROM orchestrator.task t, orchestrator.trace_log l WHERE t::text || l::text LIKE '%canary-4711%'}), 0, 'the secret is in no row');
unlike(slurp_file($node->logfile), qr/canary-4711/, 'and not in the log');
$node->stop;
done_testing();
