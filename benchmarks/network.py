"""A network that takes its time.

    python benchmarks/network.py PORT LATENCY_MS

prints its port and passes all that comes there on to 127.0.0.1:PORT, LATENCY_MS later, until its standard input ends.
It looks at no byte and delays the way there only, so a request and its answer take LATENCY_MS longer and no more.
"""

import asyncio
import sys
from typing import cast

import uvloop  # comes with Dagster's web server; half the CPU of asyncio's own loop, which the measured share with us


class _There(asyncio.Protocol):
    """The server's side of a connection."""

    def __init__(self, back: asyncio.Transport) -> None:
        self._back = back

    def data_received(self, data: bytes) -> None:
        self._back.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._back.close()


class _Here(asyncio.Protocol):
    """The client's side: what it sends goes on `delay` seconds later, in order."""

    def __init__(self, port: int, delay: float) -> None:
        self._port, self._delay = port, delay
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        back = cast(asyncio.Transport, transport)
        self._there = self._loop.create_task(
            self._loop.create_connection(lambda: _There(back), "127.0.0.1", self._port)
        )

    def data_received(self, data: bytes) -> None:
        self._loop.call_later(self._delay, self._pass_on, data)

    def _pass_on(self, data: bytes) -> None:
        if self._there.done():
            self._there.result()[0].write(data)
        else:  # the connection took longer than the delay
            self._there.add_done_callback(lambda there: there.result()[0].write(data))

    def connection_lost(self, error: Exception | None) -> None:
        self._there.add_done_callback(_close)


def _close(there: "asyncio.Task[tuple[asyncio.WriteTransport, asyncio.BaseProtocol]]") -> None:
    if not there.cancelled() and there.exception() is None:
        there.result()[0].close()


async def _network(port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Here(port, delay), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(_network(int(sys.argv[1]), int(sys.argv[2]) / 1000))
