"""What can go wrong with an answer.

    {"status": 429, "retry_after": 2}   another status
    {"stall": true}                     no answer; the connection stays
    {"wait": seconds}                   the answer, so much later
    {"reset": true}                     no answer; the connection is closed
    {"garbage": true}                   no JSON, although it says so
    {"raw": "..."}                      these bytes, as latin-1
    {"truncate": true}                  half of it, then the connection is closed
    {"huge": bytes}                     blanks before it
    {"gzip": true}                      compressed, asked for or not
    {"drip": seconds}                   a byte at a time, so far apart
    {"pause": seconds}                  a part of a stream at a time, likewise

Of a stream, after so many parts:

    {"after": n}                        it ends there
    {"after": n, "stall": true}, or "reset" or "garbage"
    {"after": n, "error": true}         the provider says that it went wrong
    {"after": n, "hold": true}          the rest, or the fault, comes after POST /_release

    {"whole": true}                     no stream, although one is asked for
    {"crlf": true}                      with other line ends
"""
import gzip
import json
import threading


def before(handler, fault):
    """Faults that need no answer.  True: this is all that is said."""
    if 'after' in fault:
        return False
    if fault.get('stall'):
        threading.Event().wait(60)
        handler.close_connection = True
        return True
    if fault.get('reset'):
        handler.close_connection = True
        return True
    if 'wait' in fault:
        threading.Event().wait(fault['wait'])
    if 'status' in fault:
        headers = {'Content-Type': 'application/json'}
        if 'retry_after' in fault:
            headers['Retry-After'] = str(fault['retry_after'])
        body = json.dumps({'error': {'message': 'scripted', 'type': 'scripted'}})
        send(handler, fault['status'], headers, [body.encode()], {})
        return True
    return False


def send(handler, status, headers, chunks, fault):
    """Send an answer.  Several parts, or a drip, go in chunks as they come."""
    if fault.get('crlf'):
        chunks = [chunk.replace(b'\n', b'\r\n') for chunk in chunks]
    if fault.get('garbage') and 'after' not in fault:
        chunks = [b'\x00\xff\xfe{"half": ']
    if 'raw' in fault:
        chunks = [fault['raw'].encode('latin-1')]
    if 'huge' in fault:
        chunks = [b' ' * fault['huge']] + chunks
    if fault.get('gzip'):
        headers = headers | {'Content-Encoding': 'gzip'}
        chunks = [gzip.compress(b''.join(chunks))]
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    if fault.get('truncate'):
        send_half(handler, chunks)
    elif len(chunks) > 1 or 'drip' in fault:
        send_chunks(handler, chunks, fault)
    else:
        body = b''.join(chunks)
        handler.send_header('Content-Length', str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()


def send_half(handler, chunks):
    body = b''.join(chunks)
    handler.send_header('Content-Length', str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:len(body) // 2])
    handler.wfile.flush()
    handler.close_connection = True


def send_chunks(handler, chunks, fault):
    handler.send_header('Transfer-Encoding', 'chunked')
    handler.end_headers()
    if 'drip' in fault:
        chunks = [bytes([byte]) for byte in b''.join(chunks)]
    for number, chunk in enumerate(chunks):
        if number == fault.get('after') and not go_on(handler, fault):
            return
        if chunk:
            write_chunk(handler, chunk)
        if 'drip' in fault or 'pause' in fault:
            threading.Event().wait(fault.get('drip') or fault['pause'])
    write_chunk(handler, b'')


def write_chunk(handler, chunk):
    handler.wfile.write(b'%x\r\n%s\r\n' % (len(chunk), chunk))
    handler.wfile.flush()


def go_on(handler, fault):
    """The fault in the middle of a stream.  False: nothing follows."""
    if fault.get('hold'):
        handler.server.state.wait_for_release(handler.released)
    if len(fault) == 2 and fault.get('hold'):
        return True
    if fault.get('garbage'):
        write_chunk(handler, b'data: {"half": \xff\n\n')
        return True
    if fault.get('stall'):
        threading.Event().wait(60)
    if fault.get('stall') or fault.get('reset'):
        handler.close_connection = True
        return False
    if fault.get('error'):
        write_chunk(handler, handler.failure)
    write_chunk(handler, b'')
    return False
