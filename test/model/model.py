#!/usr/bin/env python3
"""The tests' model: one server that speaks the wire formats of outside calls.

    POST /v1/chat/completions, /v1/embeddings   OpenAI
    POST /v1/messages                           Anthropic
    POST /api/chat, /api/embed                  Ollama
    POST, DELETE /mcp                           MCP, Streamable HTTP

It thinks nothing.  Unless told otherwise it answers with the last message, or,
where a JSON schema is asked for, with the smallest value that fits it.

    POST /_script    [{"content": ..., "tool_calls": [...], "match": ...,
                       "times": n, "fault": {...}}, ...]   replaces the script
    GET /_log        what was received: path, headers, body
    DELETE /_log
    POST /_release   streams that are held go on

An answer of the script is given once, or so many times, to the first request
whose body contains "match".  Faults are in faults.py.

Prints "listening on http://127.0.0.1:PORT" when it is ready.
"""
import argparse
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import faults
import mcp
import wire

ROUTES = {
    '/v1/chat/completions': wire.OpenAI(),
    '/v1/embeddings': wire.OpenAIEmbeddings(),
    '/v1/messages': wire.Anthropic(),
    '/api/chat': wire.Ollama(),
    '/api/embed': wire.OllamaEmbeddings(),
}


class State:
    """What all connections share."""

    def __init__(self, key):
        self.lock = threading.Lock()
        self.released = 0
        self.release = threading.Condition(self.lock)
        self.key = key
        self.script = []
        self.log = []

    def note(self, entry):
        with self.lock:
            self.log.append(entry)

    def wait_for_release(self, before):
        """Until there was one more than before."""
        with self.lock:
            self.release.wait_for(lambda: self.released > before, timeout=60)

    def scripted(self, body):
        """The next answer for a request, which it uses up; {}: none."""
        with self.lock:
            for answer in self.script:
                if answer.get('match', '') in body and answer.get('times', 1) > 0:
                    answer['times'] = answer.get('times', 1) - 1
                    return answer
        return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    # headers and body go in one packet, or each in its own at once
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == '/_log':
            with self.server.state.lock:
                self.reply(200, self.server.state.log)
        elif self.path == '/mcp':
            self.reply(405, {'error': 'no stream of its own'})
        else:
            self.reply(404, {'error': 'not found'})

    def do_DELETE(self):
        if self.path == '/_log':
            with self.server.state.lock:
                self.server.state.log.clear()
            self.reply(200, {})
        elif self.path == '/mcp':
            self.reply(200 if mcp.end(self.headers) else 404, {})
        else:
            self.reply(404, {'error': 'not found'})

    def do_POST(self):
        state = self.server.state
        text = self.rfile.read(int(self.headers.get('Content-Length', 0))).decode()
        if self.path == '/_script':
            with state.lock:
                state.script = json.loads(text)
            self.reply(200, {})
            return
        if self.path == '/_release':
            with state.lock:
                state.released += 1
                state.release.notify_all()
            self.reply(200, {})
            return
        with state.lock:
            self.released = state.released
        state.note({'path': self.path, 'body': text,
                    'headers': {name.lower(): value for name, value in self.headers.items()}})
        answer = state.scripted(text)
        if 'fault' in answer and faults.before(self, answer['fault']):
            return
        try:
            request = json.loads(text)
            if answer.get('fault', {}).get('whole'):
                request['stream'] = False
            status, headers, chunks = self.make(request, answer)
        except json.JSONDecodeError:
            status, headers, chunks = 400, {}, [b'{"error": "the body is no JSON"}']
        faults.send(self, status, headers, chunks, answer.get('fault', {}))

    def make(self, request, answer):
        """Status, headers and the parts of the body."""
        if self.path == '/mcp':
            return mcp.handle(self.headers, request, answer)
        form = ROUTES.get(self.path)
        if form is None:
            return 404, {}, [b'{"error": "not found"}']
        self.failure = form.failure(wire.Refused('Overloaded', kind='overloaded_error'))
        try:
            form.check(self.headers, request, self.server.state.key)
            return form.answer(request, answer)
        except wire.Refused as refused:
            return refused.status, {'Content-Type': 'application/json'}, [json.dumps(form.error(refused)).encode()]

    def reply(self, status, value):
        faults.send(self, status, {'Content-Type': 'application/json'}, [json.dumps(value).encode()], {})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main():
    options = argparse.ArgumentParser(description='the tests\' model')
    options.add_argument('--port', type=int, default=0)
    options.add_argument('--key', help='that requests must bring')
    options.add_argument('--script', help='file of its first answers')
    given = options.parse_args()
    server = Server(('127.0.0.1', given.port), Handler)
    server.state = State(given.key)
    if given.script:
        with open(given.script, encoding='utf-8') as script:
            server.state.script = json.load(script)
    print(f'listening on http://127.0.0.1:{server.server_port}', flush=True)
    server.serve_forever()


if __name__ == '__main__':
    main()
