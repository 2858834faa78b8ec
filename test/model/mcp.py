"""MCP over Streamable HTTP: sessions, and a few tools.

Answers are JSON, or events where a script says {"events": true}; tools/list
comes in two pages.  {"lose": true} in a script forgets the session first.
"""
import json
import threading
import uuid

import wire

VERSIONS = ('2024-11-05', '2025-03-26', '2025-06-18')

sessions = {}   # id: whether it was told that the client is initialized
lock = threading.Lock()

TOOLS = [
    {'name': 'add', 'description': 'The sum of two numbers', 'inputSchema': {
        'type': 'object', 'properties': {'a': {'type': 'number'}, 'b': {'type': 'number'}}, 'required': ['a', 'b']}},
    {'name': 'echo', 'description': 'Says what it is told', 'inputSchema': {
        'type': 'object', 'properties': {'message': {'type': 'string'}}, 'required': ['message']}},
    {'name': 'fail', 'description': 'Never works', 'inputSchema': {'type': 'object'}},
]


def end(headers):
    """DELETE: the client ends its session."""
    with lock:
        return sessions.pop(headers.get('Mcp-Session-Id'), None) is not None


def handle(headers, request, answer):
    accept = headers.get('Accept', '')
    if 'application/json' not in accept or 'text/event-stream' not in accept:
        return problem(406, request, -32000, 'Client must accept both application/json and text/event-stream')
    if request.get('jsonrpc') != '2.0' or 'method' not in request:
        return problem(400, request, -32600, 'Invalid Request')
    if request['method'] == 'initialize':
        return initialize(request, answer)
    given = headers.get('Mcp-Session-Id')
    if not given:
        return problem(400, request, -32000, 'Mcp-Session-Id header is required')
    with lock:
        if answer.get('lose'):
            sessions.clear()
        if given not in sessions:
            return problem(404, request, -32001, 'Session not found')
        if request['method'] == 'notifications/initialized':
            sessions[given] = True
        ready = sessions[given]
    if headers.get('MCP-Protocol-Version') not in VERSIONS:
        return problem(400, request, -32000, 'Unsupported protocol version')
    if 'id' not in request:
        return 202, {}, [b'']
    if not ready:
        return problem(400, request, -32002, 'Not initialized')
    return call(request, answer)


def initialize(request, answer):
    version = request['params']['protocolVersion']
    session = uuid.uuid4().hex
    with lock:
        sessions[session] = False
    return result(request, answer, {
        'protocolVersion': version if version in VERSIONS else VERSIONS[-1],
        'capabilities': {'tools': {'listChanged': False}},
        'serverInfo': {'name': 'model', 'version': '1'}}, {'Mcp-Session-Id': session})


def call(request, answer):
    params = request.get('params', {})
    if request['method'] == 'ping':
        return result(request, answer, {})
    if request['method'] == 'tools/list':
        if params.get('cursor') == '2':
            return result(request, answer, {'tools': TOOLS[2:]})
        return result(request, answer, {'tools': TOOLS[:2], 'nextCursor': '2'})
    if request['method'] != 'tools/call':
        return problem(200, request, -32601, 'Method not found')
    if params.get('name') not in [tool['name'] for tool in TOOLS]:
        return problem(200, request, -32602, f'Unknown tool: {params.get("name")}')
    given = params.get('arguments', {})
    if params['name'] == 'fail':
        return result(request, answer, {'content': [{'type': 'text', 'text': 'it never works'}], 'isError': True})
    if params['name'] == 'add':
        total = given['a'] + given['b']
        return result(request, answer, {'content': [{'type': 'text', 'text': str(total)}], 'structuredContent': {'sum': total}})
    return result(request, answer, {'content': [{'type': 'text', 'text': f'Echo: {given.get("message")}'}]})


def result(request, answer, value, headers=None):
    return reply(200, {'jsonrpc': '2.0', 'id': request['id'], 'result': value}, answer, headers or {})


def problem(status, request, code, message):
    return reply(status, {'jsonrpc': '2.0', 'id': request.get('id'), 'error': {'code': code, 'message': message}}, {}, {})


def reply(status, value, answer, headers):
    if answer.get('events'):
        note = {'jsonrpc': '2.0', 'method': 'notifications/message', 'params': {'level': 'info', 'data': 'soon'}}
        return status, wire.EVENTS | headers, [wire.event(note, 'message'), wire.event(value, 'message')]
    return status, wire.JSON | headers, [json.dumps(value).encode()]
