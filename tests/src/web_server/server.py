"""A web backend that says what it got, and behaves as a request wants.

Every answer names the backend, in X-Backend and, where it is JSON, in "backend". See ROUTES at the end for
what there is; `tests/src/web_server.rs` starts it.
"""

import argparse
import asyncio
import base64
import binascii
import hashlib
import json
import logging
import secrets
import weakref

from aiohttp import WSCloseCode, WSMsgType, web

# Octets of one piece of a long answer.
PIECE = 65536
# What a client may read without a password.
OPEN = ("/public/", "/auth/", "/.well-known/", "/state")
# Seconds between two events, unless the request says otherwise.
TICK = 0.1


class Backend:
    """What it knows, and what it has seen."""

    def __init__(self, arguments):
        self.name = arguments.name
        self.users = dict(pair.split(":", 1) for pair in arguments.user)
        self.tokens = dict(pair.split(":", 1) for pair in arguments.token)
        self.codes = set()
        self.address = ""
        self.connections = weakref.WeakKeyDictionary()
        self.seen = {"connections": 0, "requests": 0, "refused": 0, "sse": 0, "ws": 0, "octets": 0}
        self.by_path = {}

    def who(self, request):
        """The account that the request may act for, or None."""
        scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.tokens.get(rest.strip())
        if scheme.lower() != "basic":
            return None
        try:
            user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        known = self.users.get(user)
        return user if known is not None and known == password else None

    def connection(self, request):
        """This connection's number, from 1, and the number of the request on it."""
        transport = request.transport
        if transport not in self.connections:
            self.seen["connections"] += 1
            self.connections[transport] = [self.seen["connections"], 0]
        self.connections[transport][1] += 1
        return tuple(self.connections[transport])


def backend_of(request):
    return request.app["backend"]


def number(request, name, default):
    return int(request.query.get(name, default))


async def pause(request, name="ms", default=0):
    await asyncio.sleep(number(request, name, default) / 1000)


@web.middleware
async def guard(request, handler):
    backend = backend_of(request)
    backend.seen["requests"] += 1
    backend.by_path[request.path] = backend.by_path.get(request.path, 0) + 1
    request["connection"] = backend.connection(request)
    request["user"] = backend.who(request)
    print(request.method, request.path_qs, "user", request["user"], "connection", *request["connection"], flush=True)
    if request["user"] is None and not request.path.startswith(OPEN):
        backend.seen["refused"] += 1
        answer = {"backend": backend.name, "error": "who are you?"}
        return web.json_response(answer, status=401, headers={"WWW-Authenticate": f'Basic realm="{backend.name}"'})
    return await handler(request)


async def name_it(request, response):
    response.headers["X-Backend"] = backend_of(request).name


def said(request, **more):
    """What came, as JSON."""
    connection, nth = request["connection"]
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.raw_headers]
    return {
        "backend": backend_of(request).name,
        "method": request.method,
        "path": request.path_qs,
        "version": f"{request.version.major}.{request.version.minor}",
        "headers": headers,
        "peer": request.remote,
        "user": request["user"],
        "connection": connection,
        "nth": nth,
        **more,
    }


async def read(request):
    """Reads the body without keeping it: octets, and their SHA-256."""
    digest, octets = hashlib.sha256(), 0
    async for piece in request.content.iter_any():
        digest.update(piece)
        octets += len(piece)
        backend_of(request).seen["octets"] += len(piece)
    return {"octets": octets, "sha256": digest.hexdigest()}


async def echo(request):
    """What came, once all of it has."""
    await pause(request)
    return web.json_response(said(request, **await read(request)))


async def upload(request):
    """Reads after `wait` milliseconds, so that who sends is held up meanwhile."""
    await pause(request, "wait")
    return web.json_response(said(request, **await read(request)))


async def early(request):
    """Refuses before any of the body is read, and closes."""
    response = web.json_response({"backend": backend_of(request).name, "error": "too large"}, status=413)
    response.force_close()
    return response


async def never(request):
    """Does not ask for the body."""


async def expect(request):
    """Asks for the body after `ms` milliseconds; with `refuse` not at all."""
    await pause(request)
    if "refuse" in request.query:
        refusal = web.HTTPForbidden(text=f"not at {backend_of(request).name}")
        # Nobody knows whether the body comes all the same.
        refusal.force_close()
        raise refusal
    request["asked"] = True
    request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def continued(request):
    return web.json_response(said(request, asked=request.get("asked", False), **await read(request)))


async def sse(request):
    """An event every `ms` milliseconds, until the client goes or `count` were sent."""
    backend = backend_of(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    backend.seen["sse"] += 1
    try:
        n = 0
        while n != number(request, "count", -1):
            event = json.dumps({"backend": backend.name, "user": request["user"], "n": n})
            await response.write(f"event: state\ndata: {event}\n\n".encode())
            n += 1
            await pause(request, default=int(TICK * 1000))
    except ConnectionError:
        pass
    finally:
        backend.seen["sse"] -= 1
    return response


async def ws(request):
    """Says where and for whom it is, then echoes; "close" closes with 1001, "drop" without a word."""
    backend = backend_of(request)
    socket = web.WebSocketResponse(protocols=("jmap", "echo"))
    await socket.prepare(request)
    backend.seen["ws"] += 1
    try:
        await socket.send_json(said(request))
        async for message in socket:
            if message.type == WSMsgType.TEXT and message.data == "close":
                await socket.close(code=WSCloseCode.GOING_AWAY, message=b"as you wish")
            elif message.type == WSMsgType.TEXT and message.data == "drop":
                request.transport.abort()
            elif message.type == WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type == WSMsgType.BINARY:
                await socket.send_bytes(message.data)
    except ConnectionError:
        pass
    finally:
        backend.seen["ws"] -= 1
    return socket


async def slow(request):
    """Nothing for `ms` milliseconds, then the answer."""
    await pause(request)
    return web.json_response(said(request))


async def drip(request):
    """`count` lines, `ms` milliseconds apart."""
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    for n in range(number(request, "count", 10)):
        await response.write(f"{backend_of(request).name} {n}\n".encode())
        await pause(request, default=100)
    return response


async def download(request):
    """`octets` octets, with their length said before, or in chunks with `chunked`."""
    left = number(request, "octets", PIECE)
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    if "chunked" in request.query:
        response.enable_chunked_encoding()
    else:
        response.content_length = left
    await response.prepare(request)
    piece = bytes(range(256)) * (PIECE // 256)
    while left > 0:
        await response.write(piece[: min(left, PIECE)])
        left -= min(left, PIECE)
    return response


class WithTrailers(web.StreamResponse):
    """aiohttp knows no trailers."""

    def __init__(self, trailers, **more):
        super().__init__(**more)
        self.trailers = trailers

    async def write_eof(self, data=b""):
        if self._eof_sent:
            return
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.trailers)
        self._req.transport.write(f"0\r\n{lines}\r\n".encode())
        self._eof_sent = True
        self._payload_writer = None


async def trailers(request):
    """A body with `count` (1) trailers of `octets` (16) octets each."""
    values = [(f"X-Trailer-{n}", "t" * number(request, "octets", 16)) for n in range(number(request, "count", 1))]
    headers = {"Content-Type": "text/plain", "Trailer": ", ".join(name for name, _ in values)}
    response = WithTrailers(values, headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"and then:\n")
    return response


async def cut(request):
    """Promises more than it sends."""
    response = web.StreamResponse()
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b"half of it")
    request.transport.close()
    return response


async def hang_up(request):
    """Closes without an answer."""
    request.transport.abort()
    return web.Response()


async def hop(request):
    """Headers that are this connection's alone, and one that is not."""
    headers = {"Connection": "X-Secret", "Keep-Alive": "timeout=4711", "X-Secret": "hop", "X-Kept": "end"}
    return web.json_response(said(request), headers=headers)


async def status(request):
    """Answers with this status."""
    return web.json_response(said(request), status=int(request.match_info["code"]))


async def redirect(request):
    """To `to`, else to an address of its own, which no client can reach."""
    to = request.query.get("to", f"http://{backend_of(request).address}/echo")
    return web.Response(status=302, headers={"Location": to})


async def session(request):
    """A JMAP session whose addresses are its own."""
    backend, user = backend_of(request), request["user"]
    own = f"http://{backend.address}/jmap"
    account = {"name": user, "isPersonal": True, "isReadOnly": False, "accountCapabilities": {}}
    return web.json_response({
        "username": user,
        "apiUrl": f"{own}/",
        "downloadUrl": f"{own}/download/{{accountId}}/{{blobId}}/{{name}}?accept={{type}}",
        "uploadUrl": f"{own}/upload/{{accountId}}/",
        "eventSourceUrl": f"{own}/eventsource/?types={{types}}&closeafter={{closeafter}}&ping={{ping}}",
        "capabilities": {
            "urn:ietf:params:jmap:core": {},
            "urn:ietf:params:jmap:websocket": {"url": f"ws://{backend.address}/jmap/ws", "supportsPush": True},
        },
        "accounts": {backend.name: account},
        "primaryAccounts": {},
        "state": backend.name,
    })


async def device(request):
    """An OAuth code that no other backend knows."""
    code = secrets.token_urlsafe(12)
    backend_of(request).codes.add(code)
    return web.json_response({"backend": backend_of(request).name, "device_code": code, "user_code": code})


async def token(request):
    """Takes the codes that it has given, once."""
    backend, form = backend_of(request), await request.post()
    code = form.get("device_code") or form.get("code")
    if code not in backend.codes:
        return web.json_response({"backend": backend.name, "error": "invalid_grant"}, status=400)
    backend.codes.remove(code)
    return web.json_response({"backend": backend.name, "access_token": f"of-{backend.name}"})


async def page(request):
    """For browsers and for those who only want to know where they are."""
    text = f"<!doctype html><title>{backend_of(request).name}</title><p>This is {backend_of(request).name}.</p>\n"
    return web.Response(text=text, content_type="text/html")


async def state(request):
    """What it has seen so far, and what runs."""
    backend = backend_of(request)
    return web.json_response({"backend": backend.name, **backend.seen, "paths": backend.by_path})


# Path, what answers, what is asked before a body.
ROUTES = [
    ("/", page, None),
    ("/public/{rest:.*}", echo, None),
    ("/echo", echo, None),
    ("/upload", upload, None),
    ("/early", early, never),
    ("/continue", continued, expect),
    ("/sse", sse, None),
    ("/ws", ws, None),
    ("/slow", slow, None),
    ("/drip", drip, None),
    ("/download", download, None),
    ("/trailers", trailers, None),
    ("/cut", cut, None),
    ("/hang-up", hang_up, None),
    ("/hop", hop, None),
    ("/status/{code}", status, None),
    ("/redirect", redirect, None),
    ("/jmap/session", session, None),
    ("/jmap/upload/{account}/", upload, None),
    ("/jmap/eventsource/", sse, None),
    ("/jmap/ws", ws, None),
    ("/jmap/", echo, None),
    ("/auth/device", device, None),
    ("/auth/token", token, None),
    ("/state", state, None),
    # Last: whatever else there may be.
    ("/{rest:.*}", echo, None),
]


async def serve(arguments):
    app = web.Application(middlewares=[guard], client_max_size=0)
    app["backend"] = backend = Backend(arguments)
    app.on_response_prepare.append(name_it)
    for path, handler, before in ROUTES:
        app.router.add_route("*", path, handler, expect_handler=before)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=arguments.keepalive)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", arguments.port)
    await site.start()
    backend.address = "%s:%d" % site._server.sockets[0].getsockname()
    print("listening at", backend.address, flush=True)
    await asyncio.Event().wait()


def main():
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--keepalive", type=float, default=75)
    parser.add_argument("--user", action="append", default=[], help="name:password")
    parser.add_argument("--token", action="append", default=[], help="token:name")
    asyncio.run(serve(parser.parse_args()))


main()
