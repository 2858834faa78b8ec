# Contexts that are too long for a model, by the courier against the tests'
# model: a summary in pieces made once for many, retries, a crash in the middle
# of it, and an agent.

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

my $url  = start_model();
my $node = new_node(name => 'context');
$node->start;
$node->create_extension;
$node->plain_role('app');
$node->safe_psql('postgres', <<"SQL");
CREATE SERVER model FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url/v1', provider 'openai', allow_private 'on');
CREATE SERVER small FOREIGN DATA WRAPPER orchestrator_http OPTIONS (url '$url', provider 'ollama', allow_private 'on');
GRANT USAGE ON FOREIGN SERVER model, small TO app;
SQL

sub app { return $node->psql_as('app', $_[0]) }

sub state_of
{
	my ($run) = @_;
	app("SELECT orchestrator.wait($run, '30 s')");
	return app("SELECT state || coalesce(' ' || (error ->> 'message'), '') FROM orchestrator.task WHERE id = $run");
}

# The bodies that the model was sent with a text in them.
sub sent_with
{
	my ($text) = @_;
	return grep { index($_->{body}, $text) >= 0 } received_by($url);
}

# A run whose context is 40 notes of 900 characters, about 9000 tokens.
my $notes = join ' ', map { "note $_: " . ('lorem ipsum ' x 74) } 1 .. 40;

sub start_run
{
	my ($workflow) = @_;
	my $run = app("SELECT orchestrator.enqueue('$workflow', '{\"items\": [1, 2, 3, 4, 5, 6]}')");
	app("SELECT orchestrator.set_context($run, jsonb_build_object('notes', '$notes', 'k', 1)); SELECT orchestrator.signal($run, 'go')");
	return $run;
}
app(<<'SQL');
SELECT orchestrator.define_workflow('read', ARRAY[
  orchestrator.step('start', wait_for => 'go'),
  orchestrator.step('ask', kind => 'llm', endpoint => 'model', needs => '{start}', each => '$.input.items', retry_delay => '100 ms',
    request => '{"model": "m", "system": "$.context.notes", "prompt": "$.item"}')],
  context => '{"limit": 4000, "endpoint": "small", "model": "s", "part": "$.context.notes"}');
SQL

script_model($url, { match => 'Summarise the text', content => 'they are all alike', times => 100 });
my $run = start_run('read');
is(state_of($run), 'completed', 'a map asks with a context that is too long');
my @summaries = sent_with('Summarise the text');
is(scalar(grep { $_->{path} eq '/api/chat' } @summaries), 4, 'it is summarised once, in 3 pieces and then together, where the workflow says');
is(scalar(grep { length $_->{body} > 16_000 + 1000 } @summaries), 0, 'each piece fits the limit');
is(scalar(sent_with('"content": "they are all alike"')), 6, 'and every item is told the summary');
is(app("SELECT orchestrator.context($run)"), '{"k": 1, "notes": "they are all alike"}', 'which is in the context');
my %keys;
$keys{ $_->{headers}{'idempotency-key'} }++ foreach received_by($url);
is(scalar(grep { $_ > 1 } values %keys), 0, 'no call was made twice');
is(app("SELECT string_agg(step || ' ' || state || ' ' || attempt, ', ' ORDER BY number) FROM orchestrator.step_status WHERE run_id = $run"), 'start completed 0, ask completed 0',
	'and no step was');
is(app('SELECT sum(started) FROM orchestrator.queue_stats WHERE period = $$hour$$'), 10, 'statistics have the calls that were made');
cmp_ok(app("SELECT tokens_in FROM orchestrator.task_status WHERE task_id = $run"), '>', 2000, 'the run has what its summary used');

forget_received($url);
is(app("SELECT orchestrator.restore($run, 'before summary 1') || ' ' || (orchestrator.context($run) ->> 'notes' = '$notes')"), 'waiting true', 'restore() gives the original back');
is(state_of($run), 'completed', 'and the run goes on from there');
is(scalar(sent_with('Summarise the text')), 4, 'with a summary made anew');

# What may go wrong
script_model($url, { match => 'note 1:', fault => { status => 429 } }, { match => 'note 40:', fault => { truncate => JSON::PP::true } },
	{ match => 'Summarise the text', content => 'they are all alike', times => 100 });
is(state_of(start_run('read')), 'completed', 'pieces are retried as the step would be');
script_model($url, { match => 'note 40:', fault => { status => 400 } }, { match => 'Summarise the text', content => 'they are all alike', times => 100 });
like(state_of(start_run('read')), qr/^failed .*the context could not be summarised: .*400/, 'what fails for good fails the step');

# A crash between two answers
script_model($url, { match => 'note 40:', fault => { stall => JSON::PP::true } }, { match => 'Summarise the text', content => 'they are all alike', times => 100 });
$run = start_run('read');
my $pieces = "orchestrator.task WHERE root_id = $run AND iteration IS NOT NULL";
$node->wait_for("SELECT count(*) FILTER (WHERE state = 'completed') || ' ' || count(*) FILTER (WHERE state = 'running') FROM $pieces", '2 1', 'two pieces of three are answered');
$node->stop('immediate');
$node->start;
is(state_of($run), 'completed', 'a summary goes on after a crash');
is(app("SELECT count(*) || ' ' || max(attempt) FROM $pieces AND item = 0 AND iteration = 1"), '1 1', 'what was answered is not asked again');
is(app("SELECT string_agg(name, ', ') FROM orchestrator.checkpoint WHERE task_id = $run"), 'before summary 1', 'and it is made once');

# Steps of kind checkpoint and summarize, and a conversation
script_model($url, { match => 'Summarise the text', content => 'we said hello' });
forget_received($url);
app(<<'SQL');
SELECT orchestrator.define_workflow('talk', ARRAY[
  orchestrator.step('hello', kind => 'llm', endpoint => 'model', request => '{"model": "m", "prompt": "hello", "conversation": true}'),
  orchestrator.step('said', kind => 'checkpoint', needs => '{hello}'),
  orchestrator.step('sum', kind => 'summarize', endpoint => 'small', needs => '{said}', request => '{"model": "s"}'),
  orchestrator.step('bye', kind => 'llm', endpoint => 'model', needs => '{sum}', request => '{"model": "m", "prompt": "bye", "conversation": true}')]);
SQL
$run = app(q{SELECT orchestrator.enqueue('talk')});
is(state_of($run), 'completed', 'a conversation is summarised by a step');
is(app("SELECT string_agg(m ->> 'content', ' | ' ORDER BY n) FROM jsonb_array_elements(orchestrator.context($run) -> 'messages') WITH ORDINALITY e(m, n)"),
	'What was done so far: we said hello | bye | bye', 'and goes on from there');
is(app("SELECT string_agg(name || ' ' || jsonb_array_length(context -> 'messages'), ', ' ORDER BY name) FROM orchestrator.checkpoint WHERE task_id = $run"),
	'before summary 1 2, said 2', 'checkpoints have what was said');

# An agent whose last step said more than its model can be told at once
app(q{SELECT orchestrator.define('word', 'SELECT 1', 'sql'), orchestrator.define_tool('word', '{"type": "object"}')});
sub decision
{
	my ($decision, $answer, @steps) = @_;
	return { decision => $decision, reason => 'it seems best', answer => $answer, steps => [ map { { name => $_->[0], description => '', tool => 'word', arguments => $_->[1], needs => [] } } @steps ] };
}
script_model($url, { match => 'Summarise the text', content => 'a word was said', times => 9 }, { match => 'a word was said', content => decision('done', 'said') },
	{ match => 'Goal: ', content => decision('continue', '', [ 'one', { text => $notes } ]) });
forget_received($url);
$run = app(q{SELECT orchestrator.orchestrate('say it', '{word}', 'model', 'm', context_limit => 4000)});
is(state_of($run), 'completed', 'an agent goes on from a summary');
is(scalar(sent_with('Summarise the text')), 4, 'that it had made of pieces');
is(app("SELECT string_agg(step, ', ' ORDER BY number) FROM orchestrator.step_status WHERE run_id = $run"), 'plan, one, evaluate 1', 'without a step for it');
is(app("SELECT count(*) FROM orchestrator.trace WHERE task_id = $run AND event = 'summarized'"), 1, 'which its trace tells');
$node->stop;
done_testing();
