# Webhooks: signed, posted again with the same id, in order about one task and at
# the same time about many; alerts of queues; who may have them; and their secret,
# which is nowhere.  A receiver checks signatures by itself, and so does the official
# library of Standard Webhooks.

use strict;
use warnings;

use JSON::PP;
use MIME::Base64 qw(encode_base64);
use OrchestratorModel;
use OrchestratorOutside;
use OrchestratorTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $missing = missing_model();
plan skip_all => "$missing is not installed" if $missing;
$PostgreSQL::Test::Utils::timeout_default = 60;

my $key = 'canary-of-webhooks-4711-' . 'x' x 8;
my $secret = 'whsec_' . encode_base64($key, '');
my $receiver = receiver($secret);
my $folder = PostgreSQL::Test::Utils::tempdir();
my $node = new_node(name => 'webhooks', log_statement => 'none', 'orchestrator.secrets_directory' => $folder);
$node->start;
$node->create_extension;
$node->plain_role($_) foreach 'app', 'other';
write_secret('key', $secret);
app(q{SELECT orchestrator.define('job', 'SELECT 1 AS n', 'sql', max_attempts => 1), orchestrator.define('fails', 'SELECT 1 / ($1 ->> ''n'')::int', 'sql', max_attempts => 1)});

sub admin { return $node->safe_psql('postgres', $_[0]) }
sub app { return $node->psql_as('app', $_[0]) }

sub write_secret
{
	my ($name, $value) = @_;
	append_to_file("$folder/$name", "$value\n");
	chmod 0600, "$folder/$name" or die;
	return;
}

# An endpoint of the receiver's, by its path.
sub endpoint
{
	my ($name, $path, $more) = @_;
	admin("CREATE SERVER $name FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$receiver->{url}$path', provider 'webhook', allow_private 'on', "
		. ($more // "secret 'key'") . "); GRANT USAGE ON FOREIGN SERVER $name TO app");
	return;
}

# Webhooks that came to a path, in the order in which they did.
sub came
{
	my ($path) = @_;
	my $log = decode_json(HTTP::Tiny->new->get("$receiver->{url}/log")->{content});
	return grep { $_->{path} eq $path } @$log;
}

# Wait until so many came.
sub comes
{
	my ($path, $n, $name) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	usleep(20_000) until came($path) >= $n || time > $until;
	return is(scalar(came($path)), $n, $name);
}

# Enqueue a job whose end is told to an endpoint, or by a definition; its id.
sub told
{
	my ($endpoint) = @_;
	return told_by("endpoint => '$endpoint'");
}

sub told_by
{
	my ($how, $job) = @_;
	return app("SELECT id FROM (SELECT orchestrator.enqueue(" . ($job // q{'job'}) . ") AS id OFFSET 0) t, orchestrator.on_completion(id, $how)");
}

# When all webhooks about a task have ended, what became of them.
sub posted
{
	my ($about, $n) = @_;
	$node->wait_for("SELECT count(*) FROM orchestrator.task WHERE metadata \@> '{\"task\": $about}' AND NOT live", $n // 1, "webhooks about task $about end");
	return app("SELECT string_agg(state || ' ' || attempt, ', ' ORDER BY id) FROM orchestrator.task WHERE metadata \@> '{\"task\": $about}'");
}

subtest 'what is posted' => \&plain;
subtest 'posted again' => \&retries;
subtest 'in order' => \&order;
subtest 'in order, whatever happens' => \&order_under_fire;
subtest 'at the same time' => \&parallel;
subtest 'answers that are odd' => \&answers;
subtest 'alerts' => \&alerts;
subtest 'steps and batches' => \&steps;
subtest 'who may' => \&rights;
subtest 'a program that dies' => \&death;
subtest 'secrets' => \&secrets;
subtest 'the official library' => \&official;
subtest 'what the README says' => \&readme;
$node->stop('fast');
done_testing();

sub plain
{
	endpoint('ok', '/ok');
	my $task = told('ok');
	is(posted($task), 'completed 1', 'the end of a task is told');
	my ($hook) = came('/ok');
	ok($hook->{signed}, 'signed');
	is($hook->{headers}{'content-type'}, 'application/json', 'as JSON');
	is($hook->{headers}{authorization}, undef, 'its secret is not sent');
	is($hook->{id}, $hook->{headers}{'idempotency-key'}, 'with an id');
	my $body = decode_json($hook->{body});
	is_deeply([ $body->{type}, @{ $body->{data} }{qw(task definition state)}, $body->{data}{output} ], [ 'task.completed', $task, 'job', 'completed', [ { n => 1 } ] ], 'and what happened');
	is(app("SELECT (output - 'headers')::text FROM orchestrator.task WHERE metadata \@> '{\"task\": $task}'"), '{"body": null, "status": 200}', 'the task of the webhook knows that it came');
	app(q{BEGIN; SELECT orchestrator.on_completion(orchestrator.enqueue('job'), endpoint => 'ok'); ROLLBACK});
	is(admin(q{SELECT count(*) FROM orchestrator.task WHERE metadata ? 'event'}), 1, 'what is rolled back is not told');
	return;
}

sub retries
{
	endpoint('busy', '/busy/2');
	app(q{SELECT orchestrator.define('tell busy', NULL, 'webhook', endpoint => 'busy', retry_delay => '1.1 s', retry_jitter => 0, backoff => 'fixed', max_attempts => 3)});
	my $task = told_by(q{'tell busy'});
	is(posted($task), 'completed 3', 'a receiver that is busy');
	my @hooks = came('/busy/2');
	is(scalar(grep { $_->{signed} } @hooks), 3, 'each attempt is signed');
	is(scalar(keys %{ { map { $_->{id} => 1 } @hooks } }), 1, 'with the same id');
	is(scalar(keys %{ { map { $_->{body} => 1 } @hooks } }), 1, 'and body');
	is(scalar(keys %{ { map { $_->{headers}{'webhook-timestamp'} => 1 } @hooks } }), 3, 'at another time');

	endpoint('dead', '/busy/9');
	app(q{SELECT orchestrator.define('tell dead', NULL, 'webhook', endpoint => 'dead', retry_delay => '10 ms', max_attempts => 3)});
	$task = told_by(q{'tell dead'});
	is(posted($task), 'failed 3', 'one that stays so');
	is(app("SELECT string_agg(event, ' ' ORDER BY at) FILTER (WHERE event IN ('retrying', 'failed')) || ' ' || max(detail ->> 'status') FROM orchestrator.trace WHERE task_id IN (SELECT id FROM orchestrator.task WHERE metadata \@> '{\"task\": $task}')"),
		'retrying retrying failed 503', 'its trace tells');
	return;
}

sub order
{
	endpoint('slow_failures', '/busy/3/task.failed');
	endpoint('no_failures', '/gone/task.failed');
	app(q{SELECT orchestrator.define('tell ' || e, NULL, 'webhook', endpoint => e, retry_delay => '200 ms', retry_jitter => 0, backoff => 'fixed', max_attempts => 9) FROM unnest('{slow_failures,no_failures}'::text[]) e});
	foreach my $case ([ 'slow_failures', '/busy/3/task.failed', 'completed 4, completed 1', 'task.failed ' x 4 ], [ 'no_failures', '/gone/task.failed', 'failed 1, completed 1', 'task.failed ' ])
	{
		my ($endpoint, $path, $ends, $failures) = @$case;
		my $task = told_by("'tell $endpoint'", q{'fails', '{"n": 0}'});
		$node->wait_for("SELECT state FROM orchestrator.task WHERE id = $task", 'failed', 'a task fails');
		admin("UPDATE orchestrator.task SET input = '{\"n\": 1}' WHERE id = $task");
		app("SELECT orchestrator.retry($task)");
		$node->wait_for("SELECT state FROM orchestrator.task WHERE id = $task", 'completed', 'and completes when it is retried');
		my $other = told($endpoint);
		is(posted($other), 'completed 1', 'webhooks about another task do not wait');
		is(posted($task, 2), $ends, 'nothing overtakes');
		is(join('', map { "$_->{type} " } grep { $_->{body} =~ /"task": $task\b/ } came($path)), "${failures}task.completed ", 'the order of the events');
		my ($first) = grep { $_->{body} =~ /"task": $other\b/ } came($path);
		my ($last) = reverse came($path);
		cmp_ok($first->{at}, '<', $last->{at}, 'others came between') if $endpoint eq 'slow_failures';
	}
	is(admin('SELECT count(*) FROM orchestrator.webhook'), 0, 'nothing stands in line any more');
	return;
}

# Tasks end again and again, while the receiver is busy every other time and the
# courier, or its program, is killed.
sub order_under_fire
{
	my ($tasks, $rounds) = (30, 6);
	endpoint('shaky', '/shaky');
	app(q{SELECT orchestrator.define('tell shaky', NULL, 'webhook', endpoint => 'shaky', retry_delay => '20 ms', backoff => 'fixed', max_attempts => 1000),
		orchestrator.define('again', 'SELECT 1 / 0', 'sql', max_attempts => 1, failure_callback => 'tell shaky')});
	app("SELECT orchestrator.enqueue_many('again', array_fill('{}'::jsonb, ARRAY[$tasks]))");
	foreach my $round (1 .. $rounds)
	{
		$node->wait_for(q{SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'again' AND t.state = 'failed'}, $tasks, "all tasks failed $round times");
		if ($round % 2) { admin(q{SELECT pg_terminate_backend(pid) FROM orchestrator.worker_status WHERE kind = 'courier'}) }
		elsif (my $program = program()) { kill 'KILL', $program }
		app(q{SELECT orchestrator.retry_many('again')}) if $round < $rounds;
	}
	$node->wait_for(q{SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'tell shaky' AND t.state = 'completed'}, $tasks * $rounds, 'every end is told');
	my (%last, %posted);
	my $overtook = 0;
	foreach my $hook (came('/shaky'))
	{
		my $about = decode_json($hook->{body})->{data}{task};
		my ($id) = $hook->{id} =~ /-(\d+)$/;
		$overtook++ if $id < ($last{$about} // 0);
		$last{$about} = $id;
		$posted{$id} += $hook->{status} == 200;
	}
	is($overtook, 0, 'no webhook is posted after a later one about the same task');
	is(scalar(grep { $_ } values %posted), $tasks * $rounds, 'each was posted');
	is(admin('SELECT count(*) FROM orchestrator.webhook'), 0, 'and has left its line');
	return;
}

# The process that makes the calls; 0: there is none.
sub program
{
	my $courier = admin(q{SELECT coalesce(max(pid), 0) FROM orchestrator.worker_status WHERE kind = 'courier'});
	foreach my $file (glob '/proc/[0-9]*/stat')
	{
		open my $stat, '<', $file or next;
		my $line = <$stat> // '';
		return $1 if $line =~ /^(\d+) \(orchestrator-co\w*\) \S $courier /;
	}
	return 0;
}

sub parallel
{
	endpoint('slow', '/slow/50');
	app(q{SELECT count(orchestrator.on_completion(id, endpoint => 'slow')) FROM unnest(orchestrator.enqueue_many('job', array_fill('{}'::jsonb, ARRAY[300]))) id});
	$node->wait_for(q{SELECT count(*) FROM orchestrator.task t JOIN orchestrator.definition d ON d.id = t.definition WHERE d.name = 'orchestrator.webhook slow' AND t.state = 'completed'}, 300, 'many webhooks end');
	my @hooks = came('/slow/50');
	is(scalar(@hooks), 300, 'each is posted once');
	is(scalar(grep { $_->{signed} } @hooks), 300, 'and signed');
	is(scalar(keys %{ { map { $_->{id} => 1 } @hooks } }), 300, 'with an id of its own');
	my ($most) = sort { $b <=> $a } map { $_->{under_way} } @hooks;
	cmp_ok($most, '>', 20, "at the same time ($most)");
	return;
}

sub answers
{
	endpoint('odd', '/odd');
	endpoint('huge', '/huge');
	is(posted(told('odd')), 'completed 1', 'a body that is not what it says: the status counts');
	is(posted(told('huge')), 'completed 1', 'one that is too large');
	return;
}

sub alerts
{
	endpoint('ops', '/busy/1/queue.alert.raised');
	app(q{SELECT orchestrator.define_queue('q', alert_depth => 5, alert_endpoint => 'ops'), orchestrator.pause_queue('q')});
	app(q{SELECT orchestrator.enqueue('job', queue => 'q') FROM generate_series(1, 7)});
	$node->wait_for(q{SELECT raised FROM orchestrator.alert_status}, 't', 'an alert is raised');
	app(q{SELECT orchestrator.resume_queue('q')});
	$node->wait_for(q{SELECT raised FROM orchestrator.alert_status}, 'f', 'and cleared');
	$node->wait_for(q{SELECT count(*) FROM orchestrator.task WHERE metadata ->> 'event' = 'queue.alert.cleared' AND state = 'completed'}, 1, 'both are posted');
	my @hooks = came('/busy/1/queue.alert.raised');
	is(join(' ', map { $_->{type} } @hooks), 'queue.alert.raised queue.alert.raised queue.alert.cleared', 'its rise, again since the receiver was busy, and its fall');
	is(scalar(grep { $_->{signed} } @hooks), 3, 'signed');
	is_deeply(decode_json($hooks[0]{body})->{data}, { queue => 'q', kind => 'depth', value => 7, limit => 5 }, 'with what it is about');
	is(admin(q{SELECT count(*) FROM orchestrator.task WHERE metadata ->> 'event' LIKE 'queue.alert.%'}), 2, 'one for each');
	return;
}

sub steps
{
	app(q{SELECT orchestrator.define_workflow('flow', ARRAY[orchestrator.step('a', handler => 'SELECT 7 AS n', kind => 'sql'),
		orchestrator.step('b', kind => 'webhook', endpoint => 'ok', needs => '{a}', request => '{"path": ["b", "$.input.xy"], "headers": {"Content-Type": "text/plain"}, "body": "$.input.text"}')])});
	my $run = app(q{SELECT orchestrator.enqueue('flow', '{"xy": "1/2", "text": "as it is"}')});
	is(app("SELECT state FROM orchestrator.wait($run, '20 s')"), 'completed', 'a step');
	my ($hook) = came('/ok/b/1%2F2');
	is($hook->{signed} && $hook->{body}, 'as it is', 'posts what its request says, signed');
	app(q{SELECT orchestrator.define('forge', NULL, 'webhook', endpoint => 'ok', max_attempts => 1, request => '{"headers": {"Webhook-Id": "mine"}}')});
	my $forged = app(q{SELECT orchestrator.enqueue('forge')});
	is(app("SELECT error ->> 'message' FROM orchestrator.wait($forged, '20 s')"), 'header "Webhook-Id" cannot be set', 'but for the signature');

	app(q{SELECT orchestrator.define('batch is done', NULL, 'webhook', endpoint => 'ok', request => '{"path": "/batch", "body": {"n": "$.output.total"}}')});
	my $batch = app(q{SELECT orchestrator.enqueue_batch('job', array_fill('{}'::jsonb, ARRAY[3]), on_completion => 'batch is done')});
	is(posted($batch), 'completed 1', 'the end of a batch');
	is((came('/ok/batch'))[0]{body}, '{"n": 3}', 'tells of its items');
	return;
}

sub rights
{
	endpoint('theirs', '/ok');
	my (undef, undef, $stderr) = $node->psql('postgres', q{SELECT orchestrator.define('job', 'SELECT 1', 'sql'); SELECT orchestrator.on_completion(orchestrator.enqueue('job'), endpoint => 'theirs')}, extra_params => [ '-U', 'other' ]);
	like($stderr, qr/permission denied for endpoint "theirs"/, 'USAGE is needed');
	my $task = told_by(q{endpoint => 'theirs'}, q{'job', delay => '1 day'});
	admin('REVOKE USAGE ON FOREIGN SERVER theirs FROM app');
	app("SELECT orchestrator.cancel($task)");
	$node->wait_for("SELECT error ->> 'sqlstate' FROM orchestrator.task WHERE metadata \@> '{\"task\": $task}'", '42501', 'also when it is posted');
	admin('GRANT USAGE ON FOREIGN SERVER theirs TO app');
	is(posted($task), 'completed 2', 'and it goes when the right is there again');
	return;
}

sub death
{
	endpoint('hang', '/hang');
	app(q{SELECT orchestrator.define('tell hang', NULL, 'webhook', endpoint => 'hang', retry_delay => '10 ms', max_attempts => 2, timeout => '20 s')});
	my $task = told_by(q{'tell hang'});
	$node->wait_for("SELECT state FROM orchestrator.task WHERE metadata \@> '{\"task\": $task}'", 'running', 'a webhook is under way');
	comes('/hang', 1, 'it came');
	admin(q{SELECT pg_terminate_backend(pid) FROM orchestrator.worker_status WHERE kind = 'courier'});
	comes('/hang', 2, 'after the courier is gone it comes again');
	is(scalar(keys %{ { map { $_->{id} => 1 } came('/hang') } }), 1, 'with the same id');
	app("SELECT orchestrator.cancel(id) FROM orchestrator.task WHERE metadata \@> '{\"task\": $task}'");
	return;
}

sub secrets
{
	write_secret('brief', 'too-short-a-key');
	write_secret('broken', 'whsec_%%%%not base64');
	write_secret('plain', $key);
	write_secret('two', "another-$key\n$secret");
	write_secret('five', join "\n", ($secret) x 5);
	endpoint($_, '/ok', "secret '$_'") foreach 'brief', 'broken', 'absent', 'five';
	endpoint('two', '/ok/two', q{secret 'two'});
	foreach my $name ('brief', 'broken', 'five')
	{
		my $task = told($name);
		is(posted($task), 'failed 1', "a secret that is $name");
		like(app("SELECT error ->> 'message' FROM orchestrator.task WHERE metadata \@> '{\"task\": $task}'"), qr/its secret cannot sign: it must be whsec_ and base64, or plain, of 24 bytes at least, in up to four lines/, 'is refused');
	}
	is(posted(told('absent')), 'failed 1', 'as is one that is not there');
	my $other = receiver($key);
	admin("CREATE SERVER plain FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$other->{url}/ok', provider 'webhook', allow_private 'on', secret 'plain'); GRANT USAGE ON FOREIGN SERVER plain TO app");
	is(posted(told('plain')), 'completed 1', 'one that is plain');
	ok(decode_json(HTTP::Tiny->new->get("$other->{url}/log")->{content})->[0]{signed}, 'signs as well');
	is(posted(told('two')), 'completed 1', 'one that is being changed');
	my ($hook) = came('/ok/two');
	ok($hook->{signed}, 'signs for those who know the old one');
	like($hook->{headers}{'webhook-signature'}, qr/^v1,\S{44} v1,\S{44}$/, 'and the new one');

	# A webhook that hangs while we look, and one that failed with what it was answered.
	my $task = told('hang');
	$node->wait_for("SELECT state FROM orchestrator.task WHERE metadata \@> '{\"task\": $task}'", 'running', 'a webhook is under way');
	my $nowhere = qr/\Q$secret\E|\Q$key\E|canary/;
	my ($dump) = run_command([ 'pg_dump', '-p', $node->port, '-h', $node->host, 'postgres' ]);
	unlike($dump, $nowhere, 'R13: no secret in any row');
	unlike(slurp_file($node->logfile), $nowhere, 'R14, R15: nor in the log');
	is(admin(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%canary%' AND pid <> pg_backend_pid()}), '0', 'nor in pg_stat_activity');
	app("SELECT orchestrator.cancel(id) FROM orchestrator.task WHERE metadata \@> '{\"task\": $task}'");
	return;
}

# A file with what came, and how many it were.
sub kept
{
	my @hooks = map { came($_) } '/ok', '/ok/batch', '/ok/two', '/busy/2', '/busy/1/queue.alert.raised';
	my $file = PostgreSQL::Test::Utils::tempdir() . '/hooks.json';
	append_to_file($file, encode_json(\@hooks));
	return ($file, scalar @hooks);
}

sub official
{
	my $packages = model_packages();
	plan skip_all => 'npm, or its registry, is missing' unless $packages;
	my ($file, $n) = kept();
	my ($out, $err) = run_command([ 'node', "$packages/webhooks.mjs", $secret, $file ]);
	is($out . $err, "$n 0", 'accepts every signature, and none of another body');
	return;
}

sub readme
{
	my ($file, $n) = kept();
	my ($code) = slurp_file('README.md') =~ /^### Webhooks\n.*?^```python\n(.*?)^```/ms;
	my ($out, $err) = run_command([ 'python3', '-c', $code . <<'PYTHON', $secret, $file ]);
import json, sys
all = [(each["headers"], each["body"].encode()) for each in json.load(open(sys.argv[2]))]
print(sum(is_ours(sys.argv[1], h, b) for h, b in all), sum(is_ours(sys.argv[1], h, b + b" ") for h, b in all),
      sum(is_ours(sys.argv[1], dict(h, **{"webhook-timestamp": "1"}), b) for h, b in all))
PYTHON
	is($out . $err, "$n 0 0", 'accepts every signature, and none of another body or time');
	return;
}
