"""What the ends of a two-way connection do in tests."""

import ringmain


async def echo(connection: ringmain.Connection) -> None:
    async for block in connection:
        with block:
            await connection.write(block)


async def everything(connection: ringmain.Connection) -> bytes:
    return b"".join([bytes(block) async for block in connection])


async def send_all(connection: ringmain.Connection, data: bytes) -> None:
    for offset in range(0, len(data), 100_000):
        await connection.write(data[offset : offset + 100_000])
    await connection.write_eof()
