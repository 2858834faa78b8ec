#!/usr/bin/env python3
"""The receiver of outside calls under faults: answers each request with a token.

receiver.py LOG SEED     prints its port, serves 127.0.0.1 until its input ends

LOG is its memory, each line flushed before anything else happens:

  time  request  what  key  token  fate  after       what came
  time  given    what  key  token  fate  after       200 is about to be answered so

"what" is the end of the path: call or hook, or of the wire formats of models and
tools completions, embeddings and mcp.  "after" is what the body of the request
said of an earlier answer, or \\N.  Fates are drawn: answers at once, late, large,
or to nobody, since the client has given up; statuses; and connections that are
reset, or closed in the middle, or before the first byte, which is where clients
like to try again by themselves.
"""
import asyncio
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import outside

FATES = {"at once": 58, "late": 10, "large": 6, "to nobody": 3, "500": 7, "503": 3, "429": 4, "reset": 3, "cut": 3, "closed": 3}
PATIENCE = 2.0  # of the client: time-out of its endpoint, in seconds

log = open(sys.argv[1], "a", buffering=1)
draw = random.Random(int(sys.argv[2]))
count = 0


class Request:
    """One request, what becomes of it, and the token of its answer."""

    def __init__(self, url, headers, body):
        global count
        count += 1
        self.token = f"answer-{count}"
        self.fate = draw.choices(list(FATES), FATES.values())[0]
        self.what = url.path.rsplit("/", 1)[-1]
        self.key = headers.get("webhook-id") or headers.get("idempotency-key", "none")
        self.body = json.loads(body)
        self.note("request")

    def note(self, event):
        after = self.body.get("after") or r"\N"
        log.write("\t".join([repr(time.time()), event, self.what, self.key, self.token, self.fate, after]) + "\n")

    def answer(self):
        more = "x" * (300_000 if self.fate == "large" else 10)
        if self.what == "completions":
            message = {"role": "assistant", "content": self.token}
            return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "more": more}
        if self.what == "embeddings":
            texts = self.body["input"] if isinstance(self.body["input"], list) else [self.body["input"]]
            return {"data": [{"index": i, "embedding": [ord(c) for c in text]} for i, text in enumerate(texts)], "usage": {"prompt_tokens": len(texts)}}
        if self.what == "mcp":
            result = {"protocolVersion": "2025-06-18"} if self.body["method"] == "initialize" else {"content": [{"type": "text", "text": self.token}]}
            return {"jsonrpc": "2.0", "id": self.body.get("id"), "result": result}
        return {"token": self.token, "more": more}

    async def give(self, writer):
        if self.fate == "late":
            await asyncio.sleep(draw.uniform(0.1, 1))
        elif self.fate == "to nobody":
            await asyncio.sleep(PATIENCE + draw.uniform(0.3, 1))
        self.note("given")
        if self.body.get("method") == "notifications/initialized":
            writer.write(outside.answer(202))
        else:
            writer.write(outside.as_json(self.answer(), more=["Mcp-Session-Id: one"]))


async def take(request, writer):
    """False: this was all of its connection."""
    _, url, _, headers, body = request
    it = Request(url, headers, body)
    if it.fate.isdigit():
        writer.write(outside.answer(int(it.fate), b"not now", more=["Retry-After: 1"] if it.fate == "429" else []))
    elif it.fate in ("reset", "cut"):
        await outside.fault(it.fate, writer)
        return False
    elif it.fate == "closed":
        return False
    else:
        await it.give(writer)
    await writer.drain()
    return True


async def serve(reader, writer):
    try:
        while await take(await outside.read_request(reader), writer):
            pass
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
