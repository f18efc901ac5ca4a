"""A small HTTP proxy before a real S3 server that does to a share of the requests what networks and stores do.

Which request is hit depends on the seed, the request and how often it came, not on the order of threads: a run can be
repeated. Faults:

| fault | what the client meets |
|---|---|
| latency | the answer comes 50 to 200 ms late |
| error500, error503, slow_down | that status, with S3's XML |
| reset | the connection is reset instead of an answer |
| truncated | the headers and half of the body, then a reset |
| stale | a listing as it was when this listing was asked for first |
| changed | the object is overwritten just before it is read (each object once; `overwrite` says by what) |
"""

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

FAULTS = ("latency", "error500", "error503", "slow_down", "reset", "truncated", "stale", "changed")
_CODES = {
    "error500": (500, "InternalError"),
    "error503": (503, "ServiceUnavailable"),
    "slow_down": (503, "SlowDown"),
}
_NOT_FORWARDED = {"connection", "transfer-encoding", "keep-alive"}


class FaultProxy(ThreadingHTTPServer):
    """A running proxy.

    Attributes:
        url: where it listens.
        share: share of the requests that are hit; 0 lets everything through.
        played: how often each fault was played.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        upstream: str,
        faults: Sequence[str],
        share: float,
        seed: int,
        only: Callable[[str], bool] = lambda path: True,
        overwrite: Callable[[str], None] = lambda key: None,
    ) -> None:
        """`only` chooses the paths (with their query) that may be hit; `overwrite` writes another version of a key."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.upstream = urlsplit(upstream).netloc
        self.faults, self.share, self.seed, self.only, self.overwrite = faults, share, seed, only, overwrite
        self.played: Counter[str] = Counter()
        self.remembered: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self.overwritten: set[str] = set()
        self.lock = threading.Lock()
        self._asked: Counter[str] = Counter()

    def fault(self, method: str, path: str) -> tuple[str | None, random.Random]:
        """The fault for this request, and the dice for its details."""
        with self.lock:
            asked = method + re.sub("^/[^/?]+", "", path)  # without the bucket, whose name may be drawn
            self._asked[asked] += 1
            dice = random.Random(f"{self.seed} {asked} {self._asked[asked]}")
        if dice.random() >= self.share or not self.only(path):
            return None, dice
        listing = "list-type=2" in path
        fitting = [each for each in self.faults if each not in ("stale", "changed") or (each == "stale") == listing]
        return (dice.choice(fitting) if fitting else None), dice

    def count(self, fault: str) -> None:
        with self.lock:
            self.played[fault] += 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def _serve(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault, dice = self.server.fault(self.command, self.path)
        if fault in _CODES:
            self.server.count(fault)
            status, code = _CODES[fault]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>played</Message></Error>".encode()
            return self._answer(status, [("Content-Type", "application/xml")], body)
        if fault == "reset":
            self.server.count(fault)
            return self._reset()
        if fault == "latency":
            self.server.count(fault)
            time.sleep(dice.uniform(0.05, 0.2))
        if fault == "changed" and self.command == "GET":
            key = unquote(urlsplit(self.path).path.split("/", 2)[2])
            with self.server.lock:
                first = key not in self.server.overwritten
                self.server.overwritten.add(key)
            if first:
                self.server.count(fault)
                self.server.overwrite(key)
        if fault == "stale" and (old := self.server.remembered.get(self._question())) is not None:
            self.server.count(fault)
            return self._answer(*old)
        answer = self._forward(sent)
        if "list-type=2" in self.path:
            with self.server.lock:
                self.server.remembered.setdefault(self._question(), answer)
        if fault == "truncated" and len(answer[2]) > 1:
            self.server.count(fault)
            return self._answer(*answer, upto=len(answer[2]) // 2)
        return self._answer(*answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _question(self) -> str:
        url = urlsplit(self.path)
        return url.path + str(sorted(parse_qs(url.query).items()))

    def _forward(self, sent: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_FORWARDED}
            upstream.request(self.command, self.path, sent, headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, upto: int | None = None) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value if self.command == "HEAD" else length
            elif name.lower() not in _NOT_FORWARDED:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:upto])
        if upto is not None:
            self.wfile.flush()
            self._reset()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def fault_proxy(upstream: str, faults: Sequence[str], share: float, seed: int, **more: Any) -> Iterator[FaultProxy]:
    """A proxy that lives as long as the block; `more` as for FaultProxy."""
    proxy = FaultProxy(upstream, faults, share, seed, **more)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
