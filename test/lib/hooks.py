#!/usr/bin/env python3
"""A receiver of webhooks for tests, on top of outside.py. It checks signatures by
itself, with Python's hmac.

hooks.py SECRET                 prints its port, serves 127.0.0.1 until its input ends

  /ok                 200
  /busy/N, /busy/N/T  503 the first N times that a webhook (of type T) comes, then 200
  /gone/T             410 to those of type T, 200 to others
  /slow/MS            200 after that time
  /shaky              200, or as often 503, at random
  /odd                200, with a body that is not what it says
  /huge               200, with a body of 3 MB
  /hang               no answer
  /log                every webhook so far
"""
import asyncio
import base64
import hashlib
import hmac
import json
import random
import sys
import time

import outside

log = []
times = {}
under_way = 0
dice = random.Random(4711)


def key():
    secret = sys.argv[1]
    return base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()


def is_signed(headers, body):
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    expected = "v1," + base64.b64encode(hmac.new(key(), signed, hashlib.sha256).digest()).decode()
    fresh = abs(time.time() - int(headers["webhook-timestamp"])) < 60
    return fresh and any(hmac.compare_digest(each, expected) for each in headers["webhook-signature"].split(" "))


async def judge(parts, entry):
    what, applies = parts[0], len(parts) < 3 or parts[2] == entry["type"]
    if what == "busy" and applies:
        return 503 if times[entry["id"]] <= int(parts[1]) else 200
    if what == "gone" and parts[1] == entry["type"]:
        return 410
    if what == "shaky":
        return dice.choice([200, 503])
    if what == "slow":
        await asyncio.sleep(int(parts[1]) / 1000)
    return 200


async def respond(method, url, query, headers, body):
    global under_way
    if url.path == "/log":
        return outside.as_json(log)
    sent = json.loads(body) if headers["content-type"] == "application/json" else None
    entry = {"path": url.path, "headers": headers, "body": body.decode(), "id": headers["webhook-id"], "signed": is_signed(headers, body),
             "type": sent.get("type") if isinstance(sent, dict) else None, "at": time.monotonic()}
    log.append(entry)
    times[entry["id"]] = times.get(entry["id"], 0) + 1
    if url.path == "/hang":
        return None
    under_way += 1
    entry["under_way"] = under_way
    entry["status"] = await judge(url.path.strip("/").split("/"), entry)
    under_way -= 1
    if url.path == "/odd":
        return outside.answer(200, b"\xff OK", "application/json")
    if url.path == "/huge":
        return outside.answer(200, b"x" * 3_000_000)
    return outside.answer(entry["status"], b"so it is")


outside.respond = respond
asyncio.run(outside.main())
