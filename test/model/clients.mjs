// The official clients of each form against the tests' model: what one of them
// does not understand, the model says wrongly.
//
//   node clients.mjs URL KEY        one line for each check, "ok" or "not ok"
import Anthropic from '@anthropic-ai/sdk';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { Ollama } from 'ollama';
import OpenAI from 'openai';

const [url, key] = process.argv.slice(2);
const schema = { type: 'object', properties: { n: { type: 'integer', minimum: 7 } }, required: ['n'], additionalProperties: false };
const parameters = { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'] };
const hello = [{ role: 'user', content: 'hello there' }];

function is(got, expected, name) {
  const good = JSON.stringify(got) === JSON.stringify(expected);
  console.log(`${good ? 'ok' : 'not ok'} ${name}${good ? '' : `: got ${JSON.stringify(got)}`}`);
}

async function script(...answers) {
  await fetch(`${url}/_script`, { method: 'POST', body: JSON.stringify(answers) });
}

// The error that a stream ends with.
async function drain(stream) {
  try {
    for await (const _ of stream);
  } catch (error) {
    return error;
  }
  return new Error('none');
}

async function openai() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
  const plain = await client.chat.completions.create({ model: 'm', messages: hello });
  is([plain.choices[0].message.content, plain.choices[0].finish_reason, plain.usage.total_tokens], ['hello there', 'stop', 4], 'openai: chat');
  const format = { type: 'json_schema', json_schema: { name: 'n', strict: true, schema } };
  const parsed = await client.chat.completions.parse({ model: 'm', messages: hello, response_format: format });
  is(JSON.parse(parsed.choices[0].message.content), { n: 7 }, 'openai: a schema');
  await script({ tool_calls: [{ name: 'f', arguments: { a: 1 } }], times: 2 });
  const tools = [{ type: 'function', function: { name: 'f', parameters } }];
  const called = await client.chat.completions.create({ model: 'm', messages: hello, tools });
  is([called.choices[0].message.tool_calls[0].function, called.choices[0].finish_reason], [{ name: 'f', arguments: '{"a": 1}' }, 'tool_calls'], 'openai: a tool call');
  const streamed = client.chat.completions.stream({ model: 'm', messages: hello, tools });
  is((await streamed.finalMessage()).tool_calls[0].function.arguments, '{"a": 1}', 'openai: a tool call, streamed');
  let text = '';
  let usage;
  for await (const chunk of await client.chat.completions.create({ model: 'm', messages: hello, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  is([text, usage.completion_tokens], ['hello there', 2], 'openai: a stream with its usage');
  await script({ fault: { after: 2, error: true } });
  const broken = await drain(await client.chat.completions.create({ model: 'm', messages: hello, stream: true }));
  is([broken instanceof OpenAI.APIError, broken.message], [true, 'Overloaded'], 'openai: a stream that ends with an error');
  const embedded = await client.embeddings.create({ model: 'm', input: ['a', 'b'], dimensions: 3 });
  is(embedded.data.map((each) => [each.index, each.embedding.length]), [[0, 3], [1, 3]], 'openai: embeddings');
  await script({ fault: { status: 429, retry_after: 2 } });
  const refused = await client.chat.completions.create({ model: 'm', messages: hello }).catch((error) => error);
  is([refused instanceof OpenAI.RateLimitError, refused.headers.get('retry-after')], [true, '2'], 'openai: 429');
  const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'wrong', maxRetries: 0 });
  const denied = await stranger.chat.completions.create({ model: 'm', messages: hello }).catch((error) => error);
  is(denied instanceof OpenAI.AuthenticationError, true, 'openai: a wrong key');
}

async function anthropic() {
  const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
  const plain = await client.messages.create({ model: 'm', max_tokens: 9, system: 'be brief', messages: hello });
  is([plain.content[0].text, plain.stop_reason, plain.usage.input_tokens], ['hello there', 'end_turn', 4], 'anthropic: messages');
  await script({ tool_calls: [{ name: 'f', arguments: { a: 1 } }], times: 2 });
  const tools = [{ name: 'f', input_schema: parameters }];
  const called = await client.messages.create({ model: 'm', max_tokens: 9, messages: hello, tools });
  is([called.content[0].name, called.content[0].input, called.stop_reason], ['f', { a: 1 }, 'tool_use'], 'anthropic: a tool call');
  const streamed = await client.messages.stream({ model: 'm', max_tokens: 9, messages: hello, tools }).finalMessage();
  is([streamed.content[0].input, streamed.stop_reason], [{ a: 1 }, 'tool_use'], 'anthropic: a tool call, streamed');
  const words = await client.messages.stream({ model: 'm', max_tokens: 9, messages: hello }).finalText();
  is(words, 'hello there', 'anthropic: a stream');
  await script({ fault: { after: 2, error: true } });
  const broken = await drain(await client.messages.create({ model: 'm', max_tokens: 9, messages: hello, stream: true }));
  is([broken instanceof Anthropic.APIError, /Overloaded/.test(broken.message)], [true, true], 'anthropic: a stream that ends with an error');
  const refused = await client.messages.create({ model: 'm', messages: hello }).catch((error) => error);
  is(refused instanceof Anthropic.BadRequestError, true, 'anthropic: max_tokens is asked for');
}

async function ollama() {
  const client = new Ollama({ host: url });
  const plain = await client.chat({ model: 'm', messages: hello });
  is([plain.message.content, plain.done_reason, plain.eval_count], ['hello there', 'stop', 2], 'ollama: chat');
  const formatted = await client.chat({ model: 'm', messages: hello, format: schema });
  is(JSON.parse(formatted.message.content), { n: 7 }, 'ollama: a schema');
  let text = '';
  for await (const part of await client.chat({ model: 'm', messages: hello, stream: true })) text += part.message.content;
  is(text, 'hello there', 'ollama: a stream');
  await script({ fault: { after: 1, error: true } });
  const broken = await drain(await client.chat({ model: 'm', messages: hello, stream: true }));
  is(broken.message, 'Overloaded', 'ollama: a stream that ends with an error');
  is((await client.embed({ model: 'm', input: ['a', 'b'] })).embeddings.length, 2, 'ollama: embeddings');
}

async function mcp(events) {
  const client = new Client({ name: 'test', version: '1' });
  await script({ events, times: 99 });
  await client.connect(new StreamableHTTPClientTransport(new URL(`${url}/mcp`)));
  const first = await client.listTools();
  const rest = await client.listTools({ cursor: first.nextCursor });
  const what = events ? 'mcp, as events' : 'mcp';
  is([...first.tools, ...rest.tools].map((tool) => tool.name), ['add', 'echo', 'fail'], `${what}: tools/list, two pages`);
  is((await client.callTool({ name: 'add', arguments: { a: 2, b: 3 } })).structuredContent, { sum: 5 }, `${what}: tools/call`);
  is((await client.callTool({ name: 'fail', arguments: {} })).isError, true, `${what}: a tool that fails`);
  const unknown = await client.callTool({ name: 'nothing', arguments: {} }).catch((error) => error);
  is(unknown.code, -32602, `${what}: a tool that is not there`);
  await client.close();
  await script();
}

await openai();
await anthropic();
await ollama();
await mcp(false);
await mcp(true);
