#!/usr/bin/env python3
"""A server to call in tests: answers and faults by the path of the request.

outside.py [--tls CERT KEY | --old-tls CERT KEY]     prints its port, serves 127.0.0.1 until its input ends

  /echo             what was sent, as JSON
  /status/N         that status; ?after=S gives Retry-After, ?ms=N after that time
  /flaky/N          500 the first N times that a key comes, then 200
  /sleep/MS         200 after that time; /once/MS at once when its key comes again
  /json, /text, /type?as=T&body=B
                    answers of other types; body is percent-encoded bytes
  /bytes/HEX        these bytes, as text; /deep JSON that is nested too deep
  /big/N            N bytes; /bomb/N the same, compressed; /endless without end
  /headers/N        N headers; ?each=M gives each so many bytes
  /tell/N           that status, with the Authorization of the request in a header
                    and, as often as ?times says, in the body; ?gzip compresses it
  /redirect?to=URL  301
  /hang, /silent, /drip, /reset, /garbage, /cut
                    no answer, headers only, a byte each second, an end in the
                    middle, no HTTP, less than was promised
  /log              every request so far: [[key, path], ...]
"""
import asyncio
import gzip
import json
import resource
import ssl
import sys
import urllib.parse

log = []
seen = {}


def answer(status, body=b"", kind="text/plain", more=()):
    lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def as_json(value, status=200, more=()):
    return answer(status, json.dumps(value).encode(), "application/json", more)


async def read_request(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = {}
    for line in head[1:]:
        if line:
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    url = urllib.parse.urlsplit(target)
    query = urllib.parse.parse_qs(url.query, keep_blank_values=True, encoding="latin-1")
    return method, url, query, headers, body


async def fault(what, writer):
    if what == "hang":
        await asyncio.sleep(3600)
    elif what == "silent":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(3600)
    elif what == "drip":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1)
    elif what == "reset":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxyz")
        await writer.drain()
        writer.transport.abort()
    elif what == "garbage":
        writer.write(b"\x00\x01\x02 this is not HTTP\r\n\r\n" * 50)
    elif what == "cut":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxyz")
    elif what == "endless":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()


async def respond(method, url, query, headers, body):
    parts = url.path.strip("/").split("/")
    what, number = parts[0], parts[1] if len(parts) > 1 else ""
    key = headers.get("idempotency-key")
    if what == "log":
        return as_json(log)
    log.append([key, url.path])
    if what == "echo":
        return as_json({"method": method, "path": url.path, "query": query, "headers": headers, "body": body.decode("latin-1")})
    if what == "status":
        await asyncio.sleep(int(query.get("ms", ["0"])[0]) / 1000)
        after = [f"Retry-After: {query['after'][0]}"] if "after" in query else []
        return answer(int(number), f"status {number}".encode(), more=after)
    if what == "tell":
        body = headers.get("authorization", "none").encode() * int(query.get("times", ["1"])[0])
        more = ["X-Told: " + headers.get("authorization", "none")] + (["Content-Encoding: gzip"] if "gzip" in query else [])
        return answer(int(number), gzip.compress(body) if "gzip" in query else body, query.get("as", ["text/plain"])[0], more)
    if what == "flaky":
        seen[key] = seen.get(key, 0) + 1
        return answer(500) if seen[key] <= int(number) else as_json({"tries": seen[key]})
    if what in ("sleep", "once"):
        seen[key] = seen.get(key, 0) + 1
        if what == "sleep" or seen[key] == 1:
            await asyncio.sleep(int(number) / 1000)
        return as_json({"slept": int(number)})
    if what == "json":
        return as_json({"n": 1, "ok": True})
    if what == "text":
        return answer(200, b"plain")
    if what == "type":
        return answer(200, query["body"][0].encode("latin-1"), query["as"][0])
    if what == "bytes":
        return answer(200, bytes.fromhex(number))
    if what == "deep":
        return answer(200, b"[" * 100000, "application/json")
    if what == "big":
        return answer(200, b"x" * int(number))
    if what == "bomb":
        return answer(200, gzip.compress(b"x" * int(number)), more=["Content-Encoding: gzip"])
    if what == "headers":
        return answer(200, b"many", more=[f"X-{i}: " + "y" * int(query.get("each", ["1"])[0]) for i in range(int(number))])
    if what == "redirect":
        return answer(301, more=[f"Location: {query['to'][0]}"])
    return None


async def serve(reader, writer):
    try:
        while True:
            request = await read_request(reader)
            reply = await respond(*request)
            if reply is None:
                await fault(request[1].path.strip("/"), writer)
                break
            writer.write(reply)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, ValueError):
        pass
    finally:
        writer.close()


async def main():
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if sys.argv[1] == "--old-tls":
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
        context.load_cert_chain(sys.argv[2], sys.argv[3])
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, backlog=4096, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
