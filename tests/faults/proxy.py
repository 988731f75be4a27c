"""A proxy before an S3 server that answers some requests wrongly, by a script. It knows no jobs.

A `Burst` says which requests and how many; an answer (`refuse`, `reset`, `hang`, ...) says what they get instead:

    proxy.play(Burst("footers", request("GET", part="/corpus/"), refuse(503, "SlowDown"), times=3))
"""

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

HOP_BY_HOP = ("Connection", "Transfer-Encoding", "Content-Length", "Expect", "Keep-Alive")
NUM_PIECES = 10


@dataclass
class Reply:
    """What the server answered, and with it what the proxy is to answer."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    length: int
    """Content-Length. Where it is more than the body has, the connection is cut after the body."""
    pause: float = 0.0
    """Seconds between two pieces of the body."""


@dataclass(frozen=True)
class Sent:
    """One answer, as it was sent."""

    method: str
    path: str
    """With the query."""
    num_bytes: int
    """Of the body."""


Forward = Callable[[], Awaitable[Reply]]
Answer = Callable[[web.Request, Forward], Awaitable[Reply | None]]  # None: the connection is cut


@dataclass
class Burst:
    """One fault: the requests it applies to, and what they are answered."""

    name: str
    matches: Callable[[web.Request], bool]
    answer: Answer
    times: float = 3
    """Requests that get this answer."""
    skip: int = 0
    """Matching requests that are let through first."""
    seconds: float = float("inf")
    """So long after its first request the burst is over."""
    num_hit: int = 0
    began: float = 0.0

    def takes(self, request: web.Request) -> bool:
        """Return whether the burst answers this request, and count it."""
        if self.num_hit >= self.times or not self.matches(request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.began = self.began or time.monotonic()
        if time.monotonic() - self.began > self.seconds:
            return False
        self.num_hit += 1
        return True


class FaultyProxy:
    """The proxy, at a port of loopback. It plays one script at a time."""

    def __init__(self, upstream: str, port: int) -> None:
        self.upstream, self.port = upstream, port
        self.bursts: Sequence[Burst] = ()
        self.sent: list[Sent] = []

    def play(self, *bursts: Burst) -> None:
        """Replace the script."""
        self.bursts = bursts

    @contextmanager
    def running(self) -> Iterator["FaultyProxy"]:
        """Serve on loopback, from a thread of its own."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), loop).result(30)
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    async def _start(self) -> None:
        self._session = ClientSession(
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
            connector=TCPConnector(limit=0),
            timeout=ClientTimeout(total=300),
        )
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        content = await request.content.read()

        async def forward() -> Reply:
            headers = _without(request.headers, HOP_BY_HOP)
            url = URL(self.upstream + request.raw_path, encoded=True)
            # A signature covers what was sent.
            no_defaults = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
            async with self._session.request(
                request.method, url, headers=headers, data=content, skip_auto_headers=no_defaults, allow_redirects=False
            ) as got:
                body = await got.read()
                length = int(got.headers.get("Content-Length", len(body)))
                return Reply(got.status, _without(got.headers, HOP_BY_HOP), body, length)

        burst = next((burst for burst in self.bursts if burst.takes(request)), None)
        reply = await (forward() if burst is None else burst.answer(request, forward))
        num_bytes = len(reply.body) if reply is not None and request.method != "HEAD" else 0
        self.sent.append(Sent(request.method, request.path_qs, num_bytes))
        return await _send(request, reply)


async def _send(request: web.Request, reply: Reply | None) -> web.StreamResponse:
    response = web.StreamResponse() if reply is None else web.StreamResponse(status=reply.status, headers=reply.headers)
    if reply is not None:
        response.content_length = reply.length
        await response.prepare(request)
        is_whole = request.method == "HEAD" or reply.length == len(reply.body)
        if request.method != "HEAD":
            await _write(response, reply)
    if reply is None or not is_whole:
        if request.transport is not None:
            request.transport.abort()
    else:
        await response.write_eof()
    return response


async def _write(response: web.StreamResponse, reply: Reply) -> None:
    size = max(1, -(-len(reply.body) // NUM_PIECES))
    for start in range(0, len(reply.body), size):
        await asyncio.sleep(reply.pause)
        await response.write(reply.body[start : start + size])


def _without(headers: Mapping[str, str], names: Sequence[str]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    for name in names:
        kept.popall(name, None)
    return kept


# ------------------------------------------------------------------------------------------------------ what matches


def request(*methods: str, part: str = "", listing: bool = False) -> Callable[[web.Request], bool]:
    """Match requests with one of the methods, a path that has a part (a regular expression), and that list or not."""
    return lambda got: (
        got.method in methods and ("list-type" in got.query) == listing and re.search(part, got.path_qs) is not None
    )


# ------------------------------------------------------------------------------------------------ what is answered


def refuse(status: int, code: str) -> Answer:
    """Refuse the request with an error of S3."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>"

    async def answer(_: web.Request, __: Forward) -> Reply:
        return Reply(status, CIMultiDict({"Content-Type": "application/xml"}), body.encode(), len(body))

    return answer


async def reset(_: web.Request, __: Forward) -> None:
    """Cut the connection; the request does not reach the server."""


async def forget(_: web.Request, forward: Forward) -> None:
    """Cut the connection after the server did what was asked."""
    await forward()


async def cut_short(_: web.Request, forward: Forward) -> Reply:
    """Cut the connection in the middle of the body."""
    reply = await forward()
    return replace(reply, body=reply.body[: len(reply.body) // 2], length=max(reply.length, 1))


async def shorten(_: web.Request, forward: Forward) -> Reply:
    """Send half of the body as if it were all."""
    reply = await forward()
    half = reply.body[: len(reply.body) // 2]
    return replace(reply, body=half, length=len(half) if reply.body else reply.length)


async def garble(_: web.Request, forward: Forward) -> Reply:
    """Send a body of the right length with wrong bytes."""
    reply = await forward()
    return replace(reply, body=bytes(byte ^ 0x5A for byte in reply.body))


async def pretend(_: web.Request, __: Forward) -> Reply:
    """Say that the object was stored, and do nothing."""
    return Reply(200, CIMultiDict({"ETag": '"00000000000000000000000000000000"'}), b"", 0)


async def rename_etag(_: web.Request, forward: Forward) -> Reply:
    """Answer with the ETag of another object."""
    reply = await forward()
    etag = '"11111111111111111111111111111111"'
    body = re.sub(rb"<ETag>[^<]*</ETag>", b"<ETag>" + etag.encode() + b"</ETag>", reply.body)
    headers = CIMultiDict({**reply.headers, "ETag": etag})
    return replace(reply, headers=headers, body=body, length=reply.length + len(body) - len(reply.body))


def hang(seconds: float) -> Answer:
    """Say nothing for some time, and then cut the connection."""

    async def answer(_: web.Request, __: Forward) -> None:
        await asyncio.sleep(seconds)

    return answer


def drip(seconds: float) -> Answer:
    """Send the body in pieces, over so many seconds."""

    async def answer(_: web.Request, forward: Forward) -> Reply:
        return replace(await forward(), pause=seconds / NUM_PIECES)

    return answer
