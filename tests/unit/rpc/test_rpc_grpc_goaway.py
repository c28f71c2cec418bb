"""A server that asks our client to go away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from harness.echo import ECHO, message

from cradled import errors
from cradled.http2 import frames
from cradled.rpc import grpc_wire
from cradled.rpc.grpc_client import connect

HEADERS = 1


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, int, int]:
    """Type, flags and stream of a frame."""
    head = await reader.readexactly(9)
    await reader.readexactly(int.from_bytes(head[:3], "big"))
    return head[3], head[4], int.from_bytes(head[5:], "big")


async def test_the_client_hangs_up_after_its_last_call(tmp_path: Path) -> None:
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(24)
            writer.write(frames.settings(()))
            while (frame := await next_frame(reader))[0] != HEADERS:
                pass
            writer.write(frames.goaway(frame[2], 0))
            block = grpc_wire.trailers_block(5, "it: not found", (), headers_sent=False)
            writer.write(frames.frame(HEADERS, 5, frame[2], block))
            assert await reader.read() is not None
            over.set_result(None)
        except Exception as error:
            over.set_exception(error)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    async with await connect(f"{tmp_path}/s") as channel:
        with pytest.raises(errors.NotFound):
            await channel.call(ECHO.methods["Say"], message("hi"))
        async with asyncio.timeout(20):
            await over
    server.close()
    await server.wait_closed()
