"""Programs between a layer's blob and its tar: real ones, by any user."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cradled import errors
from cradled.aio import threads
from cradled.api.wellknown_pb2 import Any
from cradled.core.values import AnyValue
from cradled.differs.processors import Processor, plan

LAYER = "application/vnd.oci.image.layer.v1.tar"
ENCRYPTED = f"{LAYER}+gzip+encrypted"


def python(id: str, accepts: str, returns: str, program: str, *env: str) -> Processor:
    arguments = ("-I", "-c", f"import os, signal, sys\n{program}")
    return Processor(id, (accepts,), returns, sys.executable, arguments, env)


def inheritable() -> set[int]:
    """Descriptors that whoever started the tests has left open for all."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.get_inheritable(fd):
                found.add(fd)
    return found


COPY = "data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data)"
REVERSE = "data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data[::-1])"


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[int]:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "blob").write_bytes(b"the blob" * 100_000)
    fd = os.open(tmp_path / "blob", os.O_RDONLY)
    yield fd
    os.close(fd)
    threads.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # the loop's own are still open
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def result(
    processors: list[Processor], media_type: str, fd: int, **payloads: AnyValue
) -> bytes:
    with ExitStack() as stack:
        made = await plan(processors, media_type).run(media_type, fd, payloads, stack)
        return os.pread(made, 1 << 24, 0)


class TestPlan:
    @pytest.mark.parametrize(
        ("media_type", "compressed"),
        [
            (LAYER, False),
            (f"{LAYER}+gzip", True),
            (f"{LAYER}+zstd", True),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar", False),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", True),
            ("application/vnd.docker.image.rootfs.diff.tar", True),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", True),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", True),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar", True),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
        ],
    )
    def test_what_is_built_in(self, media_type: str, compressed: bool) -> None:
        assert plan([], media_type) == ((), compressed)

    @pytest.mark.parametrize(
        "media_type",
        [ENCRYPTED, f"{LAYER}+encrypted", "", "x/y", "application/vnd.erofs.layer.v1",
         f"{LAYER}+gzip+gzip"],
    )  # fmt: skip
    def test_nothing_leads_to_a_tar(self, media_type: str) -> None:
        text = f"failed to get stream processor for {media_type}: no processor for media-type"
        with pytest.raises(errors.NotFound) as caught:
            plan([python("other", "y/z", LAYER, COPY)], media_type)
        assert caught.value.what == text

    def test_what_is_configured_goes_first_and_each_once(self) -> None:
        decrypt = python("decrypt", ENCRYPTED, f"{LAYER}+gzip", COPY)
        unpack = python("unpack", f"{LAYER}+gzip", LAYER, COPY)
        again = python("again", LAYER, "x/y", COPY)
        circle = python("circle", "x/y", "x/y", COPY)
        configured = [circle, again, unpack, decrypt]
        assert plan(configured, ENCRYPTED) == ((decrypt, unpack), False)
        assert plan([decrypt], ENCRYPTED) == ((decrypt,), True)
        assert plan(configured, LAYER) == ((), False)
        with pytest.raises(errors.NotFound):
            plan(configured, "x/y")


class TestRun:
    async def test_one_after_the_other(self, blob: int) -> None:
        chain = [python("a", "a/a", "b/b", REVERSE), python("b", "b/b", LAYER, COPY)]
        assert await result(chain, "a/a", blob) == (b"the blob" * 100_000)[::-1]
        assert await result([], LAYER, blob) == b"the blob" * 100_000

    async def test_what_a_program_is_told(self, blob: int) -> None:
        program = """
print(os.environ["STREAM_PROCESSOR_MEDIATYPE"], os.environ["MINE"], os.environ["PATH"], sys.argv)
print(os.read(3, 100))
print(*os.listdir("/proc/self/fd"))
"""
        told = python("p", "a/a", LAYER, program, "MINE=yes=no")._replace(
            args=("-I", "-c", f"import os, sys\n{program}", "--flag")
        )
        payload = AnyValue("type/url", b"\0secret")
        first, second, third = (
            (await result([told], "a/a", blob, p=payload, other=payload)).decode().splitlines()
        )
        assert first == f"a/a yes=no {os.environ['PATH']} ['-c', '--flag']"
        assert second == repr(Any(type_url="type/url", value=b"\0secret").SerializeToString())
        given = inheritable() | {0, 1, 2, 3}
        assert len(set(map(int, third.split())) - given) == 1  # the listing's own

    async def test_what_python_ignores_a_program_does_not(self, blob: int) -> None:
        shell = Processor("p", ("a/a",), LAYER, "sh", ("-c", "grep SigIgn /proc/self/status"))
        ignored = int((await result([shell], "a/a", blob)).split()[1], 16)
        assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)

    async def test_without_a_payload_there_is_no_descriptor(self, blob: int) -> None:
        program = 'print(os.path.exists("/proc/self/fd/3"))'
        assert await result([python("p", "a/a", LAYER, program)], "a/a", blob) == b"False\n"

    @pytest.mark.parametrize(
        ("program", "text"),
        [
            ('sys.exit("wrong key\\nsecond line")', "wrong key\nsecond line"),
            ("sys.exit(3)", f"{sys.executable}: exit status 3"),
            ("os.kill(os.getpid(), signal.SIGKILL)", f"{sys.executable}: signal 9"),
        ],
    )
    async def test_a_failure_is_its_standard_error(
        self, blob: int, program: str, text: str
    ) -> None:
        with pytest.raises(errors.Error) as caught:
            await result([python("p", "a/a", LAYER, program)], "a/a", blob)
        assert str(caught.value) == text

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("no-such-program", "executable file not found in $PATH"),
            ("/no/such/program", "no such file or directory"),
            ("/etc", "permission denied"),
        ],
    )
    async def test_one_that_cannot_be_started(self, blob: int, path: str, reason: str) -> None:
        with pytest.raises(errors.Error) as caught:
            await result([Processor("p", ("a/a",), LAYER, path)], "a/a", blob)
        text = f'failed to get stream processor for a/a: exec: "{path}": {reason}'
        assert str(caught.value) == text

    async def test_cancelled_it_is_gone(self, blob: int, tmp_path: Path) -> None:
        begun = tmp_path / "begun"
        os.mkfifo(begun)
        program = f"open({str(begun)!r}, 'w').close(); signal.pause()"
        task = asyncio.create_task(result([python("p", "a/a", LAYER, program)], "a/a", blob))
        await threads.run("fs", begun.read_bytes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
