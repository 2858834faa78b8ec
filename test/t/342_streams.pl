# Answers of models that come in parts: what is put together of them, who reads
# along and when, and what becomes of them when anything dies in the middle.

use strict;
use warnings;

use JSON::PP;
use OrchestratorClient;
use OrchestratorModel;
use OrchestratorStep;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $missing = missing_model();
plan skip_all => "$missing is not installed" if $missing;
$PostgreSQL::Test::Utils::timeout_default = 60;

my $url = start_model(key => 'canary-4711');
my $node = new_node(name => 'streams', 'orchestrator.secrets_directory' => secret_folder('canary-4711'), 'orchestrator.stream_memory' => '1MB');
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
$node->safe_psql('postgres', <<"SQL");
CREATE SERVER openai FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url/v1', provider 'openai', secret 'key', allow_private 'on');
CREATE SERVER anthropic FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url/v1', provider 'anthropic', secret 'key', allow_private 'on');
CREATE SERVER ollama FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url', provider 'ollama', allow_private 'on');
GRANT USAGE ON FOREIGN SERVER openai, anthropic, ollama TO app;
SELECT orchestrator.set_price('m', 1, 2);
SQL
my $tools = '"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}, {"type": "function", "function": {"name": "g"}}]';
my $schema = '"schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 3}}}';
app(<<"SQL");
SELECT orchestrator.define(w || ' ' || e, NULL, 'llm', endpoint => e, retry_delay => '10 ms', max_attempts => 2, response_timeout => '2 s',
         request => ('{"model": "m", "prompt": "\$.q"}'::jsonb || r) || CASE w WHEN 'whole' THEN '{}' ELSE '{"stream": true}'::jsonb END)
FROM unnest('{openai,anthropic,ollama}'::text[]) e, unnest('{whole,parts}'::text[]) w, (VALUES ('{}'::jsonb)) v(r);
SELECT orchestrator.define(w || '-' || n || ' ' || e, NULL, 'llm', endpoint => e, max_attempts => 1,
         request => ('{"model": "m", "prompt": "\$.q"}'::jsonb || r) || jsonb_build_object('stream', w = 'parts'))
FROM unnest('{openai,anthropic,ollama}'::text[]) e, unnest('{whole,parts}'::text[]) w, (VALUES ('tools', '{$tools}'::jsonb), ('schema', '{$schema}')) v(n, r);
SQL

sub app { return $node->psql_as('app', $_[0]) }

sub enqueue
{
	my ($name, $text) = @_;
	return app("SELECT orchestrator.enqueue('$name', jsonb_build_object('q', '" . ($text // 'one two three four') . q{'::text))});
}

# A task as task_status has it, when it has ended.
sub ended
{
	my ($task) = @_;
	app("CALL orchestrator.await($task, '30 s')");
	return decode_json(app("SELECT to_jsonb(s) FROM orchestrator.task_status s WHERE task_id = $task"));
}

# attempt|length|text|done
sub read_stream
{
	my ($task, $more, $role) = @_;
	return $node->psql_as($role // 'app', "SELECT attempt, length, text, done FROM orchestrator.llm_stream($task" . ($more ? ", $more" : '') . ')');
}

sub wait_for_text
{
	my ($task, $text, $what) = @_;
	return $node->wait_for("SELECT attempt || ' ' || text FROM orchestrator.llm_stream($task)", $text, $what);
}

sub errors
{
	my ($task) = @_;
	return app("SELECT string_agg(detail ->> 'message', '; ' ORDER BY at) FROM orchestrator.trace WHERE task_id = $task AND event = 'retrying'");
}

subtest 'what is put together' => \&together;
subtest 'who reads along' => \&readers;
subtest 'listeners' => \&listeners;
subtest 'the command-line client' => \&client_reads;
subtest 'streams that go wrong' => \&faults;
subtest 'streams as they may be' => \&forms;
subtest 'another attempt' => \&attempts;
subtest 'rounds of tools' => \&rounds;
subtest 'cancel, pause, and what stays' => \&interruption;
subtest 'a program that dies' => \&deaths;
subtest 'many at once' => \&many;
subtest 'memory' => \&memory;
subtest 'a courier that is late' => \&late;
subtest 'secrets' => \&secrets;
$node->stop('fast');
done_testing();

# However it comes, it is the same in the end.
sub together
{
	my @cases = (
		[ '', {}, 'a text' ],
		[ '', { content => "gr\x{fc}\x{df}e \x{1f600} \x{65e5}\x{672c}\n\n \"quoted\" \\ data: x", fault => { drip => 0.0002, crlf => JSON::PP::true } }, 'a byte at a time, with other line ends' ],
		[ '', { content => 'cut', finish_reason => 'length' }, 'one that was cut off' ],
		[ '-tools', { tool_calls => [ { name => 'f', arguments => { a => [ 1, 2 ], b => "x y \x{1f600}" } }, { name => 'g', arguments => {} } ] }, 'tool calls' ],
		[ '-tools', { content => 'I shall see.', tool_calls => [ { name => 'f', arguments => { a => 1 } } ] }, 'text and a tool call' ],
		[ '-schema', { content => { n => 12 } }, 'a schema' ],
		[ '', { fault => { whole => JSON::PP::true } }, 'a server that does not stream' ]);
	foreach my $provider (qw(openai anthropic ollama))
	{
		foreach my $case (@cases)
		{
			my ($kind, $answer, $what) = @$case;
			my $reason = { openai => 'length', ollama => 'length', anthropic => 'max_tokens' }->{$provider};
			my %answer = (%$answer, times => 1, $answer->{finish_reason} ? (finish_reason => $reason) : ());
			my @got;
			foreach my $way ('whole', 'parts')
			{
				script_model($url, \%answer);
				my $task = ended(enqueue("$way$kind $provider"));
				delete $_->{id} foreach @{ $task->{output}{tool_calls} // [] };
				push @got, { map { $_ => $task->{$_} } qw(state output tokens_in tokens_out cost attempt) };
			}
			is_deeply($got[1], $got[0], "$provider: $what") or diag(explain(\@got));
			is($got[0]{state}, 'completed', 'and it is an answer');
		}
	}
	forget_received($url);
	ended(enqueue('parts openai'));
	my ($request) = received_by($url);
	is_deeply(decode_json($request->{body}), { model => 'm', stream => JSON::PP::true, stream_options => { include_usage => JSON::PP::true }, messages => [ { role => 'user', content => 'one two three four' } ] }, 'what is sent');
	return;
}

sub readers
{
	foreach my $provider (qw(openai anthropic ollama))
	{
		my $before = { openai => 3, anthropic => 5, ollama => 2 }->{$provider};
		script_model($url, { fault => { after => $before, hold => JSON::PP::true } });
		my $task = enqueue("parts $provider");
		wait_for_text($task, '1 one two ', "$provider: what has come is seen");
		is(read_stream($task, 4), '1|8|two |f', 'from a place on');
		is(read_stream($task, 8), '1|8||f', 'or nothing new');
		is(read_stream($task, 100), '1|8||f', 'nor beyond it');
		is(read_stream($task, '4, attempt => 2'), '1|8|one two |f', 'of another attempt all');
		is(read_stream($task, undef, 'other'), '', 'another role sees nothing');
		release_model($url);
		is(ended($task)->{output}{content}, 'one two three four', 'it ends');
		is(read_stream($task, '8, attempt => 1'), '1|18|three four|t', 'and who read along reads on');
		is(read_stream($task), '1|18|one two three four|t', 'and who comes late reads all');
		is(read_stream($task, undef, 'other'), '', 'but not another role');
	}
	$node->safe_psql('postgres', q{CREATE ROLE viewer LOGIN; SELECT orchestrator.grant_usage('viewer', 'viewer')});
	script_model($url, { fault => { after => 3, hold => JSON::PP::true } });
	my $task = enqueue('parts openai', "gr\xc3\xbc\xc3\x9fe \xf0\x9f\x98\x80 b c");
	$node->wait_for("SELECT length FROM orchestrator.llm_stream($task)", 8, 'characters are counted, not bytes');
	is(read_stream($task, 5, 'viewer'), "1|8| \xf0\x9f\x98\x80 |f", 'a viewer sees it, whole characters');
	release_model($url);
	ended($task);

	my $whole = enqueue('whole openai');
	ended($whole);
	is(read_stream($whole, 4), '1|18|two three four|t', 'an answer that came in one is read when it is there');
	script_model($url, { content => { n => 7 }, fault => { after => 2, hold => JSON::PP::true } });
	$task = enqueue('parts-schema openai');
	$node->wait_for("SELECT count(*) FROM orchestrator.task WHERE id = $task AND state = 'running'", 1, 'one with a schema runs');
	is(read_stream($task), '1|0||f', 'and is not shown');
	release_model($url);
	ended($task);
	is(read_stream($task), '1|8|{"n": 7}|t', 'until it fits');
	is(read_stream(4711), '', 'a task that is not there');
	is(read_stream('NULL, NULL, NULL'), '', 'nor is null');
	my $session = session($node, 'app');
	script_model($url, { fault => { after => 3, hold => JSON::PP::true } });
	$task = enqueue('parts openai');
	wait_for_text($task, '1 one two ', 'a session with an old snapshot');
	$session->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
	is($session->query("SELECT text FROM orchestrator.llm_stream($task)"), 'one two ', 'sees what has come');
	release_model($url);
	ended($task);
	is($session->query("SELECT text, done FROM orchestrator.llm_stream($task, 8)"), 'three four|t', 'and the end');
	$session->query('COMMIT');
	$session->quit;
	return;
}

# What a session hears until one is such.
sub events
{
	my ($session, $is_last) = @_;
	my @events;
	until (grep { $is_last->() } @events)
	{
		push @events, map { decode_json($_) } $session->query('SELECT 1') =~ /with payload "(\{.*?\})" received/g;
	}
	return @events;
}

# Ids and numbers, and not too often.
sub listeners
{
	my $session = session($node, 'other');
	script_model($url, { content => 'secret ' x 60, fault => { pause => 0.02 } });
	app(q{SELECT orchestrator.define_queue('told'), orchestrator.pause_queue('told')});
	my $task = app(q{SELECT orchestrator.enqueue('parts openai', '{"q": "x"}', queue => 'told')});
	$session->query("LISTEN orchestrator_task_$task");
	app(q{SELECT orchestrator.resume_queue('told')});
	my $began = time;
	ended($task);
	my $took = time - $began;
	my @events = events($session, sub { $_->{event} eq 'completed' });
	my @ticks = grep { exists $_->{length} } @events;
	cmp_ok(scalar @ticks, '>=', 3, 'it is told that there is more');
	cmp_ok(scalar @ticks, '<=', $took * 5 + 2, 'not more than five times a second');
	is_deeply([ sort keys %{ $ticks[0] } ], [ sort qw(task root parent event state progress attempt length) ], 'with ids and numbers');
	is("$ticks[0]{event} $ticks[0]{state} $ticks[0]{task}", "progress running $task", 'as progress');
	is_deeply([ sort { $a <=> $b } map { $_->{length} } @ticks ], [ map { $_->{length} } @ticks ], 'how much there is');
	cmp_ok($ticks[-1]{length}, '<=', 420, 'in characters');

	app(q{SELECT orchestrator.define_workflow('flow', ARRAY[orchestrator.step('ask', kind => 'llm', endpoint => 'openai', request => '{"model": "m", "prompt": "$.input.q", "stream": true}')])});
	script_model($url, { fault => { after => 3, hold => JSON::PP::true } });
	app(q{SELECT orchestrator.pause_queue('told')});
	my $run = app(q{SELECT orchestrator.enqueue('flow', '{"q": "one two three"}', queue => 'told')});
	$session->query("LISTEN orchestrator_task_$run");
	app(q{SELECT orchestrator.resume_queue('told')});
	$node->wait_for("SELECT s.text FROM orchestrator.step_status t, orchestrator.llm_stream(t.task_id) s WHERE t.run_id = $run", 'one two ', 'a step of a run is read along');
	my ($tick) = grep { exists $_->{length} } events($session, sub { exists $_->{length} });
	is("$tick->{root} $tick->{parent}", "$run $run", 'and told to listeners of the run');
	isnt($tick->{task}, $run, 'which step it is');
	release_model($url);
	ended($run);
	$session->quit;
	return;
}

sub client_reads
{
	my $cli = client($node, 'app');
	script_model($url, { fault => { after => 4, hold => JSON::PP::true, reset => JSON::PP::true } }, { content => "five\e[1m six", fault => { after => 3, hold => JSON::PP::true } });
	my $task = enqueue('parts openai');
	wait_for_text($task, '1 one two three ', 'it has begun');
	my $reader = $cli->terminal(80, 24, 'read', $task);
	$reader->until(qr/one two three/);
	release_model($url);
	$reader->until(qr/it begins anew.*five\\x1b\[1m /s);
	release_model($url);
	$reader->until(qr/six/);
	is($reader->exit_code, 0, 'it completed');
	my ($out) = $cli->exits(0, 'read', $task);
	is($out, "five\\x1b[1m six\n", 'afterwards all is there at once');
	($out) = $cli->exits(0, '--json', 'read', $task);
	is_deeply(decode_json($out), { attempt => 2, length => 12, text => "five\e[1m six" }, 'as JSON');
	script_model($url, { fault => { status => 400 } });
	$cli->exits(4, 'read', enqueue('parts openai'));
	my (undef, $err) = client($node, 'other')->exits(1, 'read', $task);
	like($err, qr/there is no task $task/, 'not of another role');
	return;
}

sub faults
{
	my @cases = (
		[ {}, 'completed 2', qr/^the answer ended too early: it is not complete$/, 'it ends properly, but too early' ],
		[ { reset => JSON::PP::true }, 'completed 2', qr/^the answer ended too early: transfer closed/, 'its connection ends' ],
		[ { stall => JSON::PP::true }, 'completed 2', qr/^no answer in time: nothing came for 2000 ms/, 'it says nothing more' ],
		[ { error => JSON::PP::true }, 'completed 2', qr/^the server ended its answer with an error: Overloaded$/, 'it says that it went wrong' ]);
	foreach my $provider (qw(openai anthropic ollama))
	{
		my $before = { openai => 3, anthropic => 5, ollama => 2 }->{$provider};
		foreach my $case (@cases)
		{
			my ($fault, $expected, $message, $name) = @$case;
			next if $fault->{stall} && $provider ne 'openai'; # it takes its time
			script_model($url, { fault => { %$fault, after => $before } });
			my $id = enqueue("parts $provider");
			my $task = ended($id);
			is("$task->{state} $task->{attempt} " . ($task->{output}{content} // ''), "$expected one two three four", "$provider: $name");
			like(errors($id), $message, 'which the trace says');
		}
	}
	foreach my $case (
		[ { huge => 2_000_000 }, 'failed 1', qr/^the answer is too large$/, 'a line without an end' ],
		[ { status => 429, retry_after => 1 }, 'completed 2', qr/^the answer has HTTP status 429$/, 'a status before it begins' ],
		[ { status => 400 }, 'failed 1', qr/^the answer has HTTP status 400$/, 'one that is final' ],
		[ { garbage => JSON::PP::true, after => 3 }, 'failed 1', qr/^the answer has a part that is not the JSON it should be: invalid byte sequence/, 'garbage in the middle' ],
		[ { truncate => JSON::PP::true }, 'completed 2', qr/^the answer ended too early/, 'half of what it said' ])
	{
		my ($fault, $expected, $message, $name) = @$case;
		script_model($url, { fault => $fault });
		my $id = enqueue('parts openai');
		my $task = ended($id);
		is("$task->{state} $task->{attempt}", $expected, $name);
		like($task->{error}{message} // errors($id), $message, 'which it says');
	}
	script_model($url, { content => 'much ' x 250_000 });
	my $task = ended(enqueue('parts openai'));
	is("$task->{state} $task->{attempt} $task->{error}{message}", 'failed 1 the answer is too large', 'more text than max_response_size');
	return;
}

# What the standard allows, and what servers do all the same.
sub forms
{
	my $chunk = sub { return '{"model": "m", "choices": [{"index": 0, "delta": {"content": "' . $_[0] . '"}, "finish_reason": ' . ($_[1] ? "\"$_[1]\"" : 'null') . '}]}' };
	my $usage = '{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}';
	my ($a, $b, $end) = ($chunk->('a'), $chunk->('b'), $chunk->('', 'stop'));
	(my $broken = $b) =~ s/"choices"/\ndata: "choices"/;
	foreach my $case (
		[ "\xef\xbb\xbf: hello\n\ndata: $a\n\n: ping\n\nevent: x\nid: 1\nretry: 5\ndata:$b\n\ndata: $end\n\ndata: $usage\n\ndata: [DONE]\n\n", 'completed ab 3', 'comments, other fields, no blank' ],
		[ "data: $a\r\rdata: $b\r\rdata: $end\r\rdata: $usage\r\rdata: [DONE]\r\r", 'completed ab 3', 'CR alone' ],
		[ "data: $a\n\ndata: $broken\n\ndata: $end\n\ndata: $usage\n\ndata: [DONE]\n\n", 'completed ab 3', 'data of several lines' ],
		[ "data: $a\n\ndata: $b\n\ndata: $end\n\n", 'completed ab 0', 'nothing behind the reason' ],
		[ "data: $a\n\ndata: $b\n\ndata: $end\n\ndata: $usage\n\ndata: [DONE]", 'completed ab 3', 'no line end behind the last' ],
		[ "data: $a\n\ndata: $b\n\ndata: $end", 'completed ab 0', 'nor behind the reason' ],
		[ "data: $a\n\ndata: $b\n\ndata: $end\n\ndata: $usage\n\ndata: [DONE]\n\ndata: rubbish\n\n", 'completed ab 3', 'what follows the end is nothing' ],
		[ "data: {\"error\": {\"message\": \"no such model\", \"type\": \"invalid_request_error\"}}\n\n", 'failed no such model', 'an error that is final' ],
		[ "data: $a\n\nupstream connect error\n\n", 'failed it is not complete', 'words of a proxy' ],
		[ "data: 17\n\ndata: []\n\ndata: {}\n\ndata: {\"choices\": 3}\n\ndata: {\"choices\": [3]}\n\ndata: {\"choices\": [{\"delta\": \"x\"}]}\n\ndata: $a\n\ndata: $end\n\n", 'completed a 0', 'JSON that says nothing' ],
		[ 'data: {"a": ' . '[' x 100_000 . "\n\n", 'failed stack depth', 'JSON that is too deep' ],
		[ "data: {\"choices\": [{\"delta\": {\"tool_calls\": [{\"index\": 99999999999}]}}]}\n\n", 'failed integer out of range', 'numbers that are too large' ],
		[ "data: {\"a\": \"\\u0000\"}\n\n", 'failed unsupported Unicode', 'what is no text' ])
	{
		my ($raw, $expected, $name) = @$case;
		script_model($url, map { { fault => { raw => $raw } } } 1 .. 2);
		my $task = ended(enqueue('parts openai'));
		my $got = $task->{state} . ' ' . ($task->{state} eq 'completed' ? "$task->{output}{content} $task->{output}{tokens_in}" : $task->{error}{message});
		my ($state, $rest) = split / /, $expected, 2;
		like($got, qr/^$state .*\Q$rest\E/, $name);
	}
	return;
}

sub attempts
{
	script_model($url, { fault => { after => 4, hold => JSON::PP::true, reset => JSON::PP::true } }, { content => 'five six seven', fault => { after => 3, hold => JSON::PP::true } });
	my $task = enqueue('parts openai');
	wait_for_text($task, '1 one two three ', 'the first attempt');
	release_model($url);
	wait_for_text($task, '2 five six ', 'the second begins anew');
	is(read_stream($task, '14, attempt => 1'), '2|9|five six |f', 'who read the first along reads it from its beginning');
	is(read_stream($task, '9, attempt => 2'), '2|9||f', 'and goes on');
	release_model($url);
	ended($task);
	is(read_stream($task, '9, attempt => 2'), '2|14|seven|t', 'to its end');
	is(read_stream($task, '14, attempt => 1'), '2|14|five six seven|t', 'also who has missed it');
	return;
}

# Each is an answer of its own.
sub rounds
{
	app(q{SELECT orchestrator.define('word', 'SELECT 1 AS word', 'sql'), orchestrator.define_tool('word'),
		orchestrator.define('helped', NULL, 'llm', endpoint => 'openai', request => '{"model": "m", "prompt": "$.q", "stream": true, "tools": ["word"]}')});
	script_model($url, { content => 'let me see', tool_calls => [ { name => 'word', arguments => {} } ], fault => { after => 3, hold => JSON::PP::true } },
		{ content => 'it is one', fault => { after => 3, hold => JSON::PP::true } });
	my $task = enqueue('helped');
	wait_for_text($task, '1 let me ', 'the first round');
	release_model($url);
	$node->wait_for("SELECT text FROM orchestrator.step_status t, orchestrator.llm_stream(t.task_id) WHERE t.run_id = $task AND t.step = 'round 2'", 'it is ', 'another one, by its step');
	is(read_stream($task, '7, attempt => 1'), '2|0||f', 'has not ended the task');
	release_model($url);
	ended($task);
	is(read_stream($task, '7, attempt => 1'), '2|9|it is one|t', 'whose answer is read from its beginning');
	return;
}

sub under_way { return $node->wait_for(q{SELECT claimed FROM orchestrator.worker_status WHERE kind = 'courier'}, $_[0], $_[1]) }

sub interruption
{
	# more than its share of the memory each, and more than there is of all
	my $words = ('x' x 9999 . ' ') x 13;
	foreach my $how ('cancel', 'pause', 'cancel', 'cancel', 'cancel', 'cancel', 'cancel', 'cancel', 'cancel', 'cancel')
	{
		script_model($url, { content => "$words end", fault => { after => 14, hold => JSON::PP::true } });
		my $task = enqueue('parts openai');
		$node->wait_for("SELECT length > 100000 FROM orchestrator.llm_stream($task)", 't', "$how in the middle");
		my $began = time;
		app($how eq 'pause' ? "SELECT orchestrator.pause($task, force => true)" : "SELECT orchestrator.cancel($task)");
		under_way(0, 'ends the transfer');
		cmp_ok(time - $began, '<', 1, 'at once');
		is(read_stream($task), $how eq 'pause' ? '1|0||f' : '1|0||t', 'and nothing of it stays');
		app("SELECT orchestrator.cancel($task)") if $how eq 'pause';
		release_model($url);
	}
	return;
}

sub child
{
	my $parent = $node->safe_psql('postgres', q{SELECT pid FROM orchestrator.worker_status WHERE kind = 'courier'});
	foreach my $file (glob '/proc/[0-9]*/stat')
	{
		open my $stat, '<', $file or next;
		my $line = <$stat> // '';
		return $1 if $line =~ /^(\d+) \(orchestrator-co\w*\) \S $parent /;
	}
	return 0;
}

sub deaths
{
	script_model($url, { fault => { after => 3, hold => JSON::PP::true } }, { fault => { after => 4, hold => JSON::PP::true } });
	my $task = enqueue('parts openai');
	wait_for_text($task, '1 one two ', 'under way');
	my $program = child();
	cmp_ok($program, '>', 1, 'a program makes the call');
	kill 'KILL', $program;
	wait_for_text($task, '2 one two three ', 'another one makes it again');
	release_model($url);
	is(ended($task)->{output}{content}, 'one two three four', 'to its end');
	script_model($url, { fault => { after => 3, hold => JSON::PP::true } }, { fault => { after => 4, hold => JSON::PP::true } });
	$task = enqueue('parts openai');
	wait_for_text($task, '1 one two ', 'once more');
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM orchestrator.worker_status WHERE kind = 'courier'});
	wait_for_text($task, '2 one two three ', 'nor is it lost with the courier');
	release_model($url);
	is(ended($task)->{output}{content}, 'one two three four', 'which another one is');
	return;
}

sub many
{
	script_model($url, { times => 200, fault => { after => 3, hold => JSON::PP::true } });
	app(q{SELECT orchestrator.enqueue_many('parts openai', array_agg(jsonb_build_object('q', format('no %s has more', i)))) FROM generate_series(1, 200) i});
	my $tasks = q{orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'parts openai' AND t.input ->> 'q' LIKE 'no %'};
	$node->wait_for("SELECT count(*) FROM (SELECT t.id, t.input ->> 'q' AS q FROM $tasks) t, orchestrator.llm_stream(t.id) s WHERE s.text = substring(q, '^no \\d+ ') AND NOT s.done", 200, '200 streams are read along at once', 'app');
	release_model($url);
	$node->wait_for("SELECT count(*) FROM (SELECT t.id, t.input ->> 'q' AS q, t.output FROM $tasks) t, orchestrator.llm_stream(t.id, 3) s WHERE s.text = substr(q, 4) AND s.done AND t.output ->> 'content' = q", 200, 'and each comes to its own end', 'app');
	return;
}

# What is shown is bounded; the answer is whole.
sub memory
{
	my $words = ('y' x 9999 . ' ') x 50;
	script_model($url, { content => "${words}end", fault => { after => 51, hold => JSON::PP::true } });
	my $task = enqueue('parts openai');
	$node->wait_for("SELECT length BETWEEN 120000 AND 131072 FROM orchestrator.llm_stream($task)", 't', 'a stream has an eighth of the memory');
	release_model($url);
	ended($task);
	is(app("SELECT length, right(text, 4), done FROM orchestrator.llm_stream($task)"), '500003| end|t', 'and its end is read all the same');
	return;
}

# It sleeps while more comes than is kept for it.
sub late
{
	my $words = ('z' x 9999 . ' ') x 75;
	script_model($url, { content => $words, times => 12, fault => { after => 2, hold => JSON::PP::true } });
	app(q{SELECT orchestrator.enqueue_many('parts ollama', array_fill('{"q": "late"}'::jsonb, ARRAY[12]))});
	my $late = q{orchestrator.task WHERE input ->> 'q' = 'late'};
	$node->wait_for("SELECT count(*) FROM (SELECT id FROM $late) t, orchestrator.llm_stream(t.id) WHERE length > 0", 12, 'they have begun');
	my ($courier, $program) = ($node->safe_psql('postgres', q{SELECT pid FROM orchestrator.worker_status WHERE kind = 'courier'}), child());
	kill 'STOP', $courier;
	release_model($url);
	my ($size, $same) = (0, 0);
	my $until = time + 30;
	while ($same < 20 && time < $until)
	{
		my $now = memory_of($program);
		$same = $now == $size && $now > 0 ? $same + 1 : 0;
		$size = $now;
		usleep(50_000);
	}
	kill 'CONT', $courier;
	$node->wait_for("SELECT count(*) FROM $late AND state = 'completed' AND length(output ->> 'content') = 750000", 12, 'nothing is lost');
	cmp_ok($size, '<', 40_000, 'the program does not keep what it cannot pass on');
	is($node->safe_psql('postgres', "SELECT max(attempt) FROM $late"), 1, 'at the first attempt');
	return;
}

# In kilobytes.
sub memory_of
{
	my ($pid) = @_;
	open my $status, '<', "/proc/$pid/status" or return 0;
	my ($size) = map { /^VmRSS:\s+(\d+)/ ? $1 : () } <$status>;
	return $size // 0;
}

# R14, R15: also one that is cut in two.
sub secrets
{
	my $raw = qq|data: {"model": "m", "choices": [{"index": 0, "delta": {"content": "it is canary-4711, canary-47"}, "finish_reason": "stop"}]}\n\n|;
	script_model($url, { fault => { raw => $raw, drip => 0.001 } });
	is(ended(enqueue('parts openai'))->{output}{content}, 'it is ***********, canary-47', 'a secret is blotted out, part of it is none');
	is($node->safe_psql('postgres', qq{SELECT count(*) FROM $_ r WHERE r::text LIKE '%canary-4711%'}), 0, "and is in no row of $_") foreach 'orchestrator.task', 'orchestrator.trace_log';
	unlike(slurp_file($node->logfile), qr/canary-4711/, 'nor in the log');
	return;
}
