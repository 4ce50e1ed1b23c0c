"""A WebSocket that comes again when it is closed.

    websocket.py URL USER PASSWORD CA|- [PROTOCOL]

Says where it is, sends something and gets it back, waits for the end, says how it ended, and does all of
that once more, but for the waiting. Not let in, it says so and tries again.
"""

import asyncio
import base64
import inspect
import json
import ssl
import sys

import websockets

# The library's versions differ.
HEADERS = next(name for name in inspect.signature(websockets.connect.__init__).parameters if name.endswith("_headers"))

# Times that it lets itself be turned away.
ATTEMPTS = 50


async def connect(url, **more):
    for _ in range(ATTEMPTS):
        try:
            return await websockets.connect(url, **more)
        except websockets.InvalidHandshake as refused:
            status = refused.status_code if hasattr(refused, "status_code") else refused.response.status_code
            print("status", status, flush=True)
            await asyncio.sleep(0.2)
    sys.exit("never let in")


async def talk(socket):
    hello = json.loads(await socket.recv())
    print("at", hello["backend"], "for", hello["user"], flush=True)
    for message in ("hallo", b"\x00\xff" * 50000, "ä" * 3000):
        await socket.send(message)
        if await socket.recv() != message:
            sys.exit("this is no echo")
    print("echoed", flush=True)


async def main():
    url, user, password, ca, *protocols = sys.argv[1:]
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    more = {"subprotocols": protocols or None, HEADERS: {"Authorization": f"Basic {login}"}}
    if ca != "-":
        more["ssl"] = ssl.create_default_context(cafile=ca)
    socket = await connect(url, **more)
    await talk(socket)
    try:
        await socket.recv()
        sys.exit("nobody has asked for this")
    except websockets.ConnectionClosed as closed:
        print("closed", closed.rcvd.code if closed.rcvd else "without a word", flush=True)
    socket = await connect(url, **more)
    await talk(socket)
    await socket.close()


asyncio.run(main())
