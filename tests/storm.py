"""Clients of a storm, many in this process: what each sends, and how it ends, follows from a seed and its number.

`python storm.py JSON` has them all connect to a port at once, and prints the numbers of those whose last byte was
received, as a proper end has told them.
"""

import asyncio
import contextlib
import json
import random
import resource
import socket
import ssl
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import faults
import framed
import witness
from faults import Way

LARGE = 3_000_000
PROPER = ("fin", "close_notify")
# What a client does in the end, drawn from these; "proxy" is what the fault proxy makes of it.
ENDS = ["proper"] * 6 + ["reset", "cut", "proxy", "proxy"]


@dataclass(frozen=True)
class Storm:
    """What all clients of a port do. `kind` is a framing, or else a `delimiter` is given; a CA file makes it TLS."""

    seed: int
    count: int
    port: int
    kind: str
    delimiter: str = ""
    cafile: str = ""
    faults: tuple[str, ...] = field(default=("reset", "cut"))

    def draw(self, number: int, what: str) -> random.Random:
        """Return what decides of something that a client does."""
        return random.Random(f"{self.seed} {self.kind} {number} {what}")

    def contents(self, number: int) -> Iterator[bytes]:
        """Yield what a client sends: records that tell who sent them and which each is, and little ones that do not."""
        chance = self.draw(number, "contents")
        most = {"length:1": 200, "length:2": 65_000}.get(self.kind[:8], LARGE)
        sizes = [0, 1, 10, 400, 400, 5_000, *([60_000] if chance.random() < 0.2 else [])]
        count = chance.randrange(1, 60)
        large = chance.randrange(count) if most == LARGE and chance.random() < 0.05 else None
        for index in range(count):
            kind = chance.choice(["text", "text", "text", "one", "empty"])
            if index and index != large and kind != "text":
                yield b"x" if kind == "one" or self.kind == "octet-counting" else b""
                continue
            size = LARGE if index == large else min(most, chance.choice(sizes))
            filling = f"{chance.randrange(1 << 30)} ø☃€ \t".encode()
            filling = filling * (size // len(filling)) + b"y" * (size % len(filling))
            first = b"<%d>" % chance.randrange(10) if chance.random() < 0.3 else b""
            yield b"%b#%d %d %08x %b" % (first, number, index, zlib.crc32(filling), filling)

    def frames(self, number: int) -> Iterator[bytes]:
        """Yield the same as it is sent."""
        for content in self.contents(number):
            yield content + self.delimiter.encode() if self.delimiter else framed.framed(self.kind, content)

    def end(self, number: int) -> str:
        """Return what a client does in the end; who ends properly must have been received whole."""
        end = self.draw(number, "end").choice(ENDS)
        return "reset" if end == "cut" and not self.cut_is_told else end

    @property
    def cut_is_told(self) -> bool:
        """Whether an end within a record is told from a proper one behind it: a line is completed."""
        return bool(self.cafile) or self.kind.startswith("length")


async def send_all(client: witness.Witness, data: bytes, chance: random.Random) -> None:
    """Send data in pieces, some late."""
    small = 30
    while data:
        size = chance.choice([1, 2, 7, 400]) if small and chance.random() < 0.5 else chance.choice([9_000, 1 << 18])
        small -= size <= 400
        await client.send(data[:size])
        data = data[size:]
        if chance.random() < 0.1:
            await asyncio.sleep(chance.random() * 0.03)


async def one(storm: Storm, number: int) -> bool:
    """Be a client; tell whether all that it sent was received."""
    chance, data, end = storm.draw(number, "pieces"), b"".join(storm.frames(number)), storm.end(number)
    wanted = [it for it in storm.faults if it != "cut" or storm.cut_is_told]
    there, back = Way.drawn(chance, len(data), wanted), Way.drawn(chance, 100, [])
    context = ssl.create_default_context(cafile=storm.cafile) if storm.cafile else None
    client = None
    async with contextlib.AsyncExitStack() as stack:
        port = storm.port
        if end == "proxy":
            port = await stack.enter_async_context(faults.proxy(port, there, back))
        try:
            client = await witness.connect(port, context)
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await client.shake_hands()
            if end in ("reset", "cut"):
                await send_all(client, data[: chance.randrange(len(data) + 1)], chance)
                return False
            await send_all(client, data, chance)
            await client.finish()
            await client.read_to_end()
        except OSError:
            return False
        finally:
            if client is not None and end == "reset":
                client.reset()
            elif client is not None:
                client.sock.close()
    return client.end in PROPER and not (end == "proxy" and there.fired)


async def main(storm: Storm) -> list[int]:
    whole = await asyncio.gather(*(one(storm, number) for number in range(storm.count)))
    return [number for number, it in enumerate(whole) if it]


async def clients_of(storm: Storm) -> list[int]:
    """Run all clients in a process of their own; return whose last byte was received."""
    command = [sys.executable, __file__, json.dumps(asdict(storm))]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    whole: list[int] = json.loads(said)
    return whole


def open_many() -> None:
    """Let this process have as many descriptors as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    open_many()
    sys.stdout.write(json.dumps(asyncio.run(main(Storm(**json.loads(sys.argv[1]))))))
