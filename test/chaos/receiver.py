#!/usr/bin/env python3
"""The receiver of outside calls under faults: answers each request with a token.

receiver.py LOG SEED     prints its port, serves 127.0.0.1 until its input ends

LOG is its memory, each line flushed before anything else happens:

  time  request  key  token  fate  after       what came
  time  given    key  token  fate  after       200 is about to be answered so

"after" is what the body of the request said of an earlier answer, or \\N.  Fates
are drawn: answers at once, late, large, or to nobody, since the client has given
up; statuses; and connections that are reset, or closed in the middle, or before
the first byte, which is where clients like to try again by themselves.
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


def note(event, key, token, fate, after):
    log.write("\t".join([repr(time.time()), event, key, token, fate, after]) + "\n")


async def give(fate, key, token, after, writer):
    if fate == "late":
        await asyncio.sleep(draw.uniform(0.1, 1))
    elif fate == "to nobody":
        await asyncio.sleep(PATIENCE + draw.uniform(0.3, 1))
    note("given", key, token, fate, after)
    writer.write(outside.as_json({"token": token, "more": "x" * (300_000 if fate == "large" else 10)}))
    await writer.drain()


async def take(request, writer):
    """False: this was all of its connection."""
    global count
    count += 1
    key, token = request[3].get("webhook-id") or request[3].get("idempotency-key", "none"), f"answer-{count}"
    fate = draw.choices(list(FATES), FATES.values())[0]
    after = json.loads(request[4]).get("after") or r"\N"
    note("request", key, token, fate, after)
    if fate.isdigit():
        writer.write(outside.answer(int(fate), b"not now", more=["Retry-After: 1"] if fate == "429" else []))
    elif fate in ("reset", "cut"):
        await outside.fault(fate, writer)
        return False
    elif fate == "closed":
        return False
    else:
        await give(fate, key, token, after, writer)
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
