"""Bad weather between a device and its hub: a relay that every connection goes through.

    device ⇄ Weather ⇄ broker, door

A relay of TCP sees no packets: what a link does to them, it does to what TCP shows of it. A lost packet is
a stall of one retransmission timeout; a duplicate is a connection that breaks before its acknowledgment, so
that the message comes twice. It stands in for the kernel's netem, and is no more than that.
"""

import asyncio
import random
import threading
from collections.abc import Awaitable
from contextlib import suppress

SEGMENT = 1400
"""Bytes of a packet."""
RETRANSMISSION = 0.2
"""Seconds after which TCP sends a lost packet again, at first."""


class Weather:
    """`delay`: seconds one way. `loss`: share of packets. `breaks`: share of bursts after which the
    connection breaks. `pace`: bytes a second, 0: any. All may be changed while it blows."""

    def __init__(self, *, delay: float = 0.0, loss: float = 0.0, breaks: float = 0.0, seed: int = 0) -> None:
        self.delay, self.loss, self.breaks, self.pace = delay, loss, breaks, 0.0
        self.broken = self.stalled = self.relayed = 0
        self._chance = random.Random(seed)
        self._parted = False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []

    def to(self, port: int) -> int:
        """A port that leads to that one through the weather."""
        return self._done(self._listen(port))

    def part(self, parted: bool) -> None:
        """Cut every link, silently: nothing comes through, nobody is told. Or heal them."""
        self._parted = parted

    def close(self) -> None:
        for server in self._servers:
            self._loop.call_soon_threadsafe(server.close)
        self._done(self._hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self, port: int) -> int:
        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._relay(reader, writer, port)

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _hang_up(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self._open.add(writer)
        there: asyncio.StreamWriter | None = None
        with suppress(OSError):
            await self._sky()
            far, there = await asyncio.open_connection("127.0.0.1", port)
            self._open.add(there)
            await asyncio.gather(self._blow(reader, there), self._blow(far, writer), return_exceptions=True)
        for end in (writer, there):
            if end is not None:
                end.transport.abort()
                self._open.discard(end)

    async def _blow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def hand_over() -> None:
            while True:
                at, data = await queue.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                await self._sky()
                if not data:
                    writer.transport.close()
                    return
                writer.write(data)
                await writer.drain()
                self.relayed += len(data)
                if self._chance.random() < self.breaks:
                    self.broken += 1
                    raise ConnectionResetError

        carrier = asyncio.ensure_future(hand_over())
        try:
            while not carrier.done():
                data = await reader.read(1 << 10 if self.pace else 1 << 14)
                packets = -(-len(data) // SEGMENT)
                lost = sum(self._chance.random() < self.loss for _ in range(packets))
                self.stalled += lost
                slow = len(data) / self.pace if self.pace else 0.0
                if slow:
                    await asyncio.sleep(slow)
                stall = RETRANSMISSION if lost else 0.0  # those of one window are sent again together
                await queue.put((loop.time() + self.delay + stall, data))
                if not data:
                    break
            await carrier
        finally:
            carrier.cancel()
            writer.transport.abort()

    async def _sky(self) -> None:
        while self._parted:
            await asyncio.sleep(0.05)

    def _done(self, work: Awaitable[int] | Awaitable[None]) -> int:
        async def whole() -> int:
            return await work or 0

        return asyncio.run_coroutine_threadsafe(whole(), self._loop).result(30)
