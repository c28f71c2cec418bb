"""Programs run to their end, with real ones."""

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from cradled.aio import process
from cradled.linux import limits

ENV = {"PATH": os.environ["PATH"], "GREETING": "hello"}


async def sh(script: str, **options: object) -> process.Finished:
    return await process.run(["sh", "-c", script], env=ENV, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_leak() -> object:
    yield
    children = Path("/proc/self/task")
    found = [p.read_text().split() for p in children.glob("*/children")]
    assert not any(found)


async def test_output_status_and_environment(tmp_path: Path) -> None:
    done = await sh(
        "pwd; echo $GREETING; echo bad >&2; cat; exit 3", cwd=str(tmp_path), stdin=b"in"
    )
    assert done == (3, f"{tmp_path}\nhello\nin".encode(), b"bad\n")


async def test_combined_output_keeps_the_order() -> None:
    done = await sh("echo a; echo b >&2; echo c", combined=True)
    assert (done.stdout, done.stderr) == (b"a\nb\nc\n", b"")


async def test_programs_get_the_usual_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(limits, "_usual", (123, hard))  # as if this process had raised its own
    # Just after its start a program may still see the other number.
    done = await sh("while [ $(ulimit -Sn) != 123 ]; do :; done; echo 123", timeout=20)
    assert done.stdout == b"123\n"


async def test_much_in_and_out() -> None:
    data = os.urandom(1 << 20)
    assert (await process.run(["cat"], env=ENV, stdin=data)).stdout == data


async def test_a_signal_is_a_negative_status() -> None:
    assert (await sh("kill -9 $$")).status == -9


async def test_a_program_starts_clean() -> None:
    script = "import os\nprint(os.getpgid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd')))"
    done = await process.run([sys.executable, "-I", "-S", "-c", script], env=ENV)
    assert done.stdout == b"True ['0', '1', '2', '3']\n"  # 3: the listing itself
    done = await process.run(["cat", "/proc/self/status"], env=ENV)
    theirs, ours = done.stdout.decode(), Path("/proc/self/status").read_text()
    assert signals("SigBlk", theirs) == set()
    # 32 and 33 are the C library's, and its posix_spawn may leave them ignored. What a nohup has
    # us ignore stays so.
    of_python = {signal.SIGPIPE, signal.SIGXFSZ}
    assert of_python <= signals("SigIgn", ours)
    assert signals("SigIgn", theirs) - {32, 33} == signals("SigIgn", ours) - of_python - {32, 33}


def signals(kind: str, status: str) -> set[int]:
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if kind in line)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


async def test_a_descendant_that_holds_the_output_is_not_waited_for() -> None:
    done = await sh("sleep 1000 & echo $!")
    os.kill(int(done.stdout), 9)


async def test_a_missing_program_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        await process.run(["/no/such"], env=ENV)


async def test_a_timeout_kills() -> None:
    with pytest.raises(TimeoutError):
        await process.run(["sleep", "1000"], env=ENV, timeout=0.05)


async def test_a_timeout_kills_what_the_program_has_started(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/first; sleep 1000 & echo $! > {tmp_path}/second; wait"
    with pytest.raises(TimeoutError):
        await process.run(["sh", "-c", script], env=ENV, timeout=0.3)
    for name in ("first", "second"):
        stat = Path(f"/proc/{(tmp_path / name).read_text().strip()}/stat")
        while stat.exists() and ") Z " not in stat.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_cancelled_run_kills() -> None:
    task = asyncio.create_task(process.run(["sleep", "1000"], env=ENV))
    while not any(p.read_text().split() for p in Path("/proc/self/task").glob("*/children")):  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
