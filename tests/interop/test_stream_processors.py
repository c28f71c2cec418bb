"""Layers that only a configured program can read, on either daemon."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness.daemon import Daemon
from harness.images import LayerTar

from cradled import errors
from cradled.api import content_pb2, diff_pb2
from cradled.api.types_pb2 import Descriptor, Mount
from cradled.api.wellknown_pb2 import Any
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub, Transport

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LAYER = "application/vnd.oci.image.layer.v1.tar"
SECRET = "application/vnd.test.layer.v1.tar+secret"
HEADERS = [("containerd-namespace", "test")]

# Its key is the payload's value, the last byte of the message.
PROGRAM = """\
import os, sys
assert os.environ["STREAM_PROCESSOR_MEDIATYPE"] == sys.argv[1] and os.environ["MINE"] == "yes"
key = os.read(3, 1000)[-1]
data = sys.stdin.buffer.read()
if key != ord("k"):
    sys.exit("wrong key")
sys.stdout.buffer.write(bytes(byte ^ key for byte in data))
"""

CONFIG = f"""
[stream_processors."test.decrypt"]
accepts = ["{SECRET}"]
returns = "{LAYER}+gzip"
path = "{sys.executable}"
args = ["-I", "PATH", "{SECRET}"]
env = ["MINE=yes"]
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("d")
    program = directory / "decrypt.py"
    program.write_text(PROGRAM)
    daemon = Daemon(directory, settings=CONFIG.replace("PATH", str(program)))
    daemon.start()
    yield daemon
    daemon.destroy()
    shutil.rmtree(directory)


@pytest.fixture
async def channel(configured: Daemon) -> AsyncIterator[Transport]:
    channel = await grpc_client.connect(str(configured.socket))
    yield channel
    await channel.aclose()


def layer() -> bytes:
    made = LayerTar()
    made.directory("d").add("d/file", data=b"secret" * 1000)
    return made.bytes()


async def store(channel: Transport, data: bytes, media_type: str) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    write = content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT, ref=digest, data=data, total=len(data)
    )
    async with Stub(channel, content_pb2.Content, HEADERS).write() as stream:
        await stream.send(write)
        await stream.done()
        assert [reply async for reply in stream][-1].digest == digest
    return Descriptor(media_type=media_type, digest=digest, size=len(data))


async def apply(channel: Transport, descriptor: Descriptor, target: Path, key: bytes) -> Descriptor:
    request = diff_pb2.ApplyRequest(
        diff=descriptor,
        mounts=[Mount(type="bind", source=str(target), options=["rw", "rbind"])],
        payloads={"test.decrypt": Any(type_url="a/key", value=key)},
    )
    return (await Stub(channel, diff_pb2.Diff, HEADERS).apply(request, timeout=30)).applied


async def test_a_configured_program(channel: Transport, tmp_path: Path) -> None:
    tar = layer()
    hidden = bytes(byte ^ ord("k") for byte in gzip.compress(tar))
    applied = await apply(channel, await store(channel, hidden, SECRET), tmp_path, b"k")
    assert applied.digest == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert (applied.media_type, applied.size) == (LAYER, len(tar))
    assert (tmp_path / "d/file").read_bytes() == b"secret" * 1000


async def test_its_failure_is_told(channel: Transport, tmp_path: Path) -> None:
    descriptor = await store(channel, b"whatever", SECRET)
    with pytest.raises(errors.Error, match=r"wrong key|EOF"):
        await apply(channel, descriptor, tmp_path, b"x")


async def test_nothing_reads_it(channel: Transport, tmp_path: Path) -> None:
    descriptor = await store(channel, b"unknown", "x/y")
    with pytest.raises(errors.Error, match="no processor for media-type"):
        await apply(channel, descriptor, tmp_path, b"k")
