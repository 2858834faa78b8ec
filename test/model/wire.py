"""The forms of OpenAI, Anthropic and Ollama: what is refused, and answers,
whole or streamed."""
import itertools
import json
import re

JSON = {'Content-Type': 'application/json'}
EVENTS = {'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache'}

numbers = itertools.count(1)


class Refused(Exception):
    def __init__(self, message, status=400, kind='invalid_request_error', param=None):
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param


def require(holds, message, param=None):
    if not holds:
        raise Refused(message, param=param)


def count_tokens(value):
    """A token is a word, or a sign."""
    text = value if isinstance(value, str) else json.dumps(value)
    return len(re.findall(r'\w+|[^\w\s]', text))


def text_of(content):
    """The text of a message: a string, or the text among its parts."""
    if isinstance(content, str):
        return content
    return ''.join(part.get('text', '') for part in content or [] if part.get('type') == 'text')


def smallest(schema):
    """A value that fits a schema."""
    if 'enum' in schema:
        return schema['enum'][0]
    if 'const' in schema:
        return schema['const']
    kind = schema.get('type', 'object')
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == 'object':
        properties = schema.get('properties', {})
        return {name: smallest(properties.get(name, {'type': 'string'})) for name in schema.get('required', [])}
    if kind == 'array':
        return [smallest(schema.get('items', {'type': 'string'}))] * schema.get('minItems', 0)
    return {'string': 'x' * schema.get('minLength', 0), 'integer': schema.get('minimum', 0),
            'number': schema.get('minimum', 0), 'boolean': True, 'null': None}[kind]


def reply_to(messages, schema, answer):
    """Text and tool calls of an answer: scripted, or what can be said of itself."""
    calls = [{'id': f'call_{next(numbers)}', **call} for call in answer.get('tool_calls', [])]
    content = answer.get('content')
    if content is None and not calls:
        content = smallest(schema) if schema else text_of(messages[-1]['content'])
    if content is not None and not isinstance(content, str):
        content = json.dumps(content)
    return content, calls


def words(text):
    """In the pieces that it is streamed in."""
    return re.findall(r'\S+\s*|\s+', text or '')


def event(value, name=None):
    return ((f'event: {name}\n' if name else '') + f'data: {json.dumps(value, ensure_ascii=False)}\n\n').encode()


def vector(text, size):
    """Some numbers that depend on the text only."""
    seed = sum((place + 1) * ord(sign) for place, sign in enumerate(text))
    return [((seed * (place + 7)) % 1000) / 1000 for place in range(size)]


class OpenAI:
    path = 'chat completions'

    def check(self, headers, request, key):
        if key and headers.get('Authorization') != f'Bearer {key}':
            raise Refused('Incorrect API key provided', 401)
        require(isinstance(request.get('model'), str), 'you must provide a model parameter', 'model')
        messages = request.get('messages')
        require(isinstance(messages, list) and messages, "'messages' must be a non-empty array", 'messages')
        asked = set()
        for message in messages:
            role = message.get('role')
            require(role in ('system', 'developer', 'user', 'assistant', 'tool'), f'invalid role {role!r}', 'messages')
            require('content' in message or message.get('tool_calls'), 'a message needs content', 'messages')
            asked |= {call['id'] for call in message.get('tool_calls') or []}
            if role == 'tool':
                require(message.get('tool_call_id') in asked, "'tool_call_id' answers no call", 'messages')
        for tool in request.get('tools', []):
            require(tool.get('type') == 'function' and tool.get('function', {}).get('name'), 'a tool needs a function with a name', 'tools')
        form = request.get('response_format', {})
        if form.get('type') == 'json_schema':
            require(form.get('json_schema', {}).get('name'), "'json_schema' needs a name", 'response_format')

    def error(self, refused):
        return {'error': {'message': str(refused), 'type': refused.kind, 'param': refused.param, 'code': None}}

    def failure(self, refused):
        """An error within a stream."""
        return event(self.error(refused))

    def answer(self, request, answer):
        schema = request.get('response_format', {}).get('json_schema', {}).get('schema')
        content, calls = reply_to(request['messages'], schema, answer)
        message = {'role': 'assistant', 'content': content, 'refusal': None}
        if calls:
            message['tool_calls'] = [{'id': call['id'], 'type': 'function', 'function': {
                'name': call['name'], 'arguments': json.dumps(call.get('arguments', {}))}} for call in calls]
        reason = answer.get('finish_reason') or ('tool_calls' if calls else 'stop')
        usage = self.usage(request, content, calls)
        frame = {'id': f'chatcmpl-{next(numbers)}', 'created': 1700000000, 'model': request['model']}
        if request.get('stream'):
            return 200, EVENTS, self.stream(request, frame, message, reason, usage)
        body = frame | {'object': 'chat.completion', 'usage': usage, 'choices': [
            {'index': 0, 'message': message, 'logprobs': None, 'finish_reason': reason}]}
        return 200, JSON, [json.dumps(body).encode()]

    @staticmethod
    def usage(request, content, calls):
        tokens_in = sum(count_tokens(message.get('content') or '') for message in request['messages'])
        tokens_out = count_tokens(content or '') + sum(count_tokens(call.get('arguments', {})) for call in calls)
        return {'prompt_tokens': tokens_in, 'completion_tokens': tokens_out, 'total_tokens': tokens_in + tokens_out}

    @staticmethod
    def stream(request, frame, message, reason, usage):
        def chunk(delta, reason=None):
            return event(frame | {'object': 'chat.completion.chunk', 'choices': [
                {'index': 0, 'delta': delta, 'logprobs': None, 'finish_reason': reason}]})
        chunks = [chunk({'role': 'assistant', 'content': ''})]
        chunks += [chunk({'content': word}) for word in words(message['content'])]
        for index, call in enumerate(message.get('tool_calls', [])):
            head = {'index': index, 'id': call['id'], 'type': 'function', 'function': {'name': call['function']['name'], 'arguments': ''}}
            chunks.append(chunk({'tool_calls': [head]}))
            chunks += [chunk({'tool_calls': [{'index': index, 'function': {'arguments': word}}]})
                       for word in words(call['function']['arguments'])]
        chunks.append(chunk({}, reason))
        if request.get('stream_options', {}).get('include_usage'):
            chunks.append(event(frame | {'object': 'chat.completion.chunk', 'choices': [], 'usage': usage}))
        return chunks + [b'data: [DONE]\n\n']


class OpenAIEmbeddings(OpenAI):
    def check(self, headers, request, key):
        if key and headers.get('Authorization') != f'Bearer {key}':
            raise Refused('Incorrect API key provided', 401)
        require(isinstance(request.get('model'), str), 'you must provide a model parameter', 'model')
        given = request.get('input')
        require(given and (isinstance(given, str) or all(isinstance(text, str) and text for text in given)),
                "'input' must be a string or an array of strings", 'input')

    def answer(self, request, answer):
        texts = [request['input']] if isinstance(request['input'], str) else request['input']
        vectors = [vector(text, request.get('dimensions', 8)) for text in texts]
        tokens = sum(count_tokens(text) for text in texts)
        if request.get('encoding_format') == 'base64':
            vectors = [self.packed(numbers) for numbers in vectors]
        body = {'object': 'list', 'model': request['model'],
                'data': [{'object': 'embedding', 'index': index, 'embedding': numbers} for index, numbers in enumerate(vectors)],
                'usage': {'prompt_tokens': tokens, 'total_tokens': tokens}}
        return 200, JSON, [json.dumps(body).encode()]

    @staticmethod
    def packed(values):
        import base64
        import struct
        return base64.b64encode(struct.pack(f'<{len(values)}f', *values)).decode()


class Anthropic:
    def check(self, headers, request, key):
        # its own client sends the second form
        if key and headers.get('x-api-key') != key and headers.get('Authorization') != f'Bearer {key}':
            raise Refused('invalid x-api-key', 401, 'authentication_error')
        require(headers.get('anthropic-version'), 'anthropic-version: header is required')
        require(isinstance(request.get('model'), str), 'model: Field required')
        require(isinstance(request.get('max_tokens'), int), 'max_tokens: Field required')
        messages = request.get('messages')
        require(isinstance(messages, list) and messages, 'messages: at least one message is required')
        asked = set()
        for message in messages:
            require(message.get('role') in ('user', 'assistant'), f'messages: unexpected role "{message.get("role")}"')
            require(message.get('content'), 'messages: content must not be empty')
            blocks = message['content'] if isinstance(message['content'], list) else []
            for block in blocks:
                if block['type'] == 'tool_use':
                    require(message['role'] == 'assistant' and isinstance(block.get('input'), dict), 'messages: bad tool_use')
                    asked.add(block['id'])
                if block['type'] == 'tool_result':
                    require(message['role'] == 'user' and block.get('tool_use_id') in asked, 'messages: tool_result answers no tool_use')
        for tool in request.get('tools', []):
            require(tool.get('name') and isinstance(tool.get('input_schema'), dict), 'tools: input_schema: Field required')

    def error(self, refused):
        return {'type': 'error', 'error': {'type': refused.kind, 'message': str(refused)}}

    def failure(self, refused):
        return event(self.error(refused), 'error')

    def answer(self, request, answer):
        content, calls = reply_to(request['messages'], None, answer)
        forced = request.get('tool_choice', {}).get('name')
        if forced and not calls:
            # a content that was scripted is what the tool is called with
            schema = next(tool['input_schema'] for tool in request['tools'] if tool['name'] == forced)
            calls = [{'id': f'toolu_{next(numbers)}', 'name': forced, 'arguments': answer.get('content', smallest(schema))}]
            content = None
        blocks = [{'type': 'text', 'text': content}] if content else []
        blocks += [{'type': 'tool_use', 'id': call['id'], 'name': call['name'], 'input': call.get('arguments', {})} for call in calls]
        reason = answer.get('finish_reason') or ('tool_use' if calls else 'end_turn')
        given = [text_of(text) for text in [request.get('system')] + [message['content'] for message in request['messages']]]
        usage = {'input_tokens': sum(count_tokens(text) for text in given),
                 'output_tokens': count_tokens(content or '') + sum(count_tokens(call.get('arguments', {})) for call in calls)}
        frame = {'id': f'msg_{next(numbers)}', 'type': 'message', 'role': 'assistant', 'model': request['model'], 'stop_sequence': None}
        if request.get('stream'):
            return 200, EVENTS, self.stream(frame, blocks, reason, usage)
        return 200, JSON, [json.dumps(frame | {'content': blocks, 'stop_reason': reason, 'usage': usage}).encode()]

    @staticmethod
    def stream(frame, blocks, reason, usage):
        start = frame | {'content': [], 'stop_reason': None, 'usage': usage | {'output_tokens': 1}}
        chunks = [event({'type': 'message_start', 'message': start}, 'message_start'), event({'type': 'ping'}, 'ping')]
        for index, block in enumerate(blocks):
            is_text = block['type'] == 'text'
            empty = block | ({'text': ''} if is_text else {'input': {}})
            chunks.append(event({'type': 'content_block_start', 'index': index, 'content_block': empty}, 'content_block_start'))
            for word in words(block['text'] if is_text else json.dumps(block['input'])):
                delta = {'type': 'text_delta', 'text': word} if is_text else {'type': 'input_json_delta', 'partial_json': word}
                chunks.append(event({'type': 'content_block_delta', 'index': index, 'delta': delta}, 'content_block_delta'))
            chunks.append(event({'type': 'content_block_stop', 'index': index}, 'content_block_stop'))
        chunks.append(event({'type': 'message_delta', 'delta': {'stop_reason': reason, 'stop_sequence': None},
                             'usage': {'output_tokens': usage['output_tokens']}}, 'message_delta'))
        return chunks + [event({'type': 'message_stop'}, 'message_stop')]


class Ollama:
    def check(self, headers, request, key):
        require(isinstance(request.get('model'), str) and request['model'], 'model is required')
        require(isinstance(request.get('messages', []), list), 'messages must be an array')
        for message in request.get('messages', []):
            require(message.get('role') in ('system', 'user', 'assistant', 'tool'), 'invalid role')
            require(isinstance(message.get('content', ''), str), 'content must be a string')
            for call in message.get('tool_calls', []):
                require(isinstance(call['function'].get('arguments'), dict), 'arguments must be an object')

    def error(self, refused):
        return {'error': str(refused)}

    def failure(self, refused):
        return (json.dumps(self.error(refused)) + '\n').encode()

    def answer(self, request, answer):
        schema = request.get('format') if isinstance(request.get('format'), dict) else None
        content, calls = reply_to(request['messages'], schema, answer)
        message = {'role': 'assistant', 'content': content or ''}
        if calls:
            message['tool_calls'] = [{'function': {'name': call['name'], 'arguments': call.get('arguments', {})}} for call in calls]
        frame = {'model': request['model'], 'created_at': '2023-11-14T22:13:20Z'}
        end = {'done': True, 'done_reason': answer.get('finish_reason') or 'stop', 'total_duration': 2000, 'load_duration': 500,
               'prompt_eval_count': sum(count_tokens(message.get('content', '')) for message in request['messages']),
               'prompt_eval_duration': 500, 'eval_duration': 1000,
               'eval_count': count_tokens(content or '') + sum(count_tokens(call.get('arguments', {})) for call in calls)}
        if request.get('stream', True):
            return 200, {'Content-Type': 'application/x-ndjson'}, self.stream(frame, message, end)
        return 200, JSON, [json.dumps(frame | {'message': message} | end).encode()]

    @staticmethod
    def stream(frame, message, end):
        parts = [{'role': 'assistant', 'content': word} for word in words(message['content'])]
        if 'tool_calls' in message:
            parts.append(message | {'content': ''})
        lines = [frame | {'message': part, 'done': False} for part in parts]
        lines.append(frame | {'message': {'role': 'assistant', 'content': ''}} | end)
        return [(json.dumps(line, ensure_ascii=False) + '\n').encode() for line in lines]


class OllamaEmbeddings(Ollama):
    def check(self, headers, request, key):
        require(isinstance(request.get('model'), str) and request['model'], 'model is required')
        require(request.get('input'), 'input is required')

    def answer(self, request, answer):
        texts = [request['input']] if isinstance(request['input'], str) else request['input']
        body = {'model': request['model'], 'embeddings': [vector(text, request.get('dimensions', 8)) for text in texts],
                'total_duration': 2000, 'load_duration': 500, 'prompt_eval_count': sum(count_tokens(text) for text in texts)}
        return 200, JSON, [json.dumps(body).encode()]
