"""The floor: a bare OCI runtime, driven by nothing but a loop that starts it.

A plain directory is the root file system of all containers: there is no snapshot, no mount, no
record, no supervisor, no event. ``Bare`` is a process of its own with its own CPU account, as the
daemons are, and answers a line of words on its stdin with one of JSON:

    python -m bench.bare RUNTIME DIRECTORY
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.report import percentile
from bench.targets import NAMESPACE, Account, end_containers, prefix
from cradled.linux import libc
from cradled.oci import spec as oci_spec

PR_SET_CHILD_SUBREAPER = 36
LONG = ("sleep", "100000")


# The process that drives


class Driver:
    """Starts the commands of a runtime and waits for them."""

    def __init__(self, runtime: str, directory: str) -> None:
        self.directory = directory
        self._command = [runtime, "--root", f"{directory}/state"]
        self._names = itertools.count(1)

    def life(self) -> dict[str, float]:
        """Milliseconds of each phase of a container that does nothing."""
        name, phases = self._bundle("true"), {}
        phases["task create"], pid = self._make(name, "create", "--bundle", self._path(name))
        phases["task start"] = self._timed("start", name)
        phases["exit seen"] = self._ended(pid)
        phases["task delete"] = self._timed("delete", name)
        shutil.rmtree(self._path(name))
        return phases

    def keep(self) -> str:
        """Start a container that stays; its name."""
        name = self._bundle(*LONG)
        self._make(name, "create", "--bundle", self._path(name))
        self._timed("start", name)
        return name

    def exec(self, name: str) -> dict[str, float]:
        """Milliseconds of a process that does nothing in a running container."""
        phases = {}
        phases["start"], pid = self._make(name, "exec", "--detach", last=("true",))
        phases["exit seen"] = self._ended(pid)
        return phases

    def drop(self, name: str) -> None:
        self._timed("delete", "--force", name)
        shutil.rmtree(self._path(name))

    def many(self, concurrency: int, count: int) -> float:
        """Seconds of so many lives, so many at a time."""
        with ThreadPoolExecutor(concurrency) as pool:
            began = time.perf_counter()
            list(pool.map(lambda _: self.life(), range(count)))
            return time.perf_counter() - began

    def burst(self, count: int) -> list[float]:
        """Milliseconds from the same moment until each of many was running."""
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()

            def one(_: int) -> tuple[str, float]:
                return self.keep(), (time.perf_counter() - began) * 1e3

            made = list(pool.map(one, range(count)))
        for name, _ in made:
            self.drop(name)
        return [took for _, took in made]

    def probe(self, names: list[str], seconds: int) -> tuple[list[float], float]:
        """Milliseconds of each exec, once a second in each of many; and the seconds it all took."""

        def one(number: int) -> list[float]:
            times, due = [], began + number / len(names)
            for _ in range(seconds):
                time.sleep(max(0.0, due - time.perf_counter()))
                due += 1
                times.append(sum(self.exec(names[number]).values()))
            return times

        with ThreadPoolExecutor(len(names)) as pool:
            began = time.perf_counter()
            found = list(itertools.chain(*pool.map(one, range(len(names)))))
            return found, time.perf_counter() - began

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def _bundle(self, *args: str) -> str:
        name = f"bare{os.getpid()}-{next(self._names)}"
        os.mkdir(self._path(name))
        spec = oci_spec.build(NAMESPACE, name, oci_spec.args(args))
        spec["root"]["path"] = f"{self.directory}/rootfs"
        Path(self._path(name), "config.json").write_text(json.dumps(spec))
        return name

    def _make(self, name: str, *words: str, last: tuple[str, ...] = ()) -> tuple[float, int]:
        """Milliseconds, and the pid of the process that was made."""
        file = f"{self._path(name)}/pid-{next(self._names)}"
        took = self._timed(*words, "--pid-file", file, name, *last)
        return took, int(Path(file).read_text())

    def _timed(self, *words: str) -> float:
        devices = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        ]
        command = [*self._command, *words]
        began = time.perf_counter()
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=devices)
        _, status = os.waitpid(pid, 0)
        if status:
            raise RuntimeError(f"status {status}: {' '.join(command)}")
        return (time.perf_counter() - began) * 1e3

    @staticmethod
    def _ended(pid: int) -> float:
        began = time.perf_counter()
        os.waitpid(pid, 0)
        return (time.perf_counter() - began) * 1e3


def drive(runtime: str, directory: str) -> None:
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # containers are ours to wait for
    driver = Driver(runtime, directory)
    for line in sys.stdin:
        request = json.loads(line)
        method: Callable[..., Any] = getattr(driver, request[0])
        print(json.dumps(method(*request[1:])), flush=True)


# Who asks


class Bare:
    """A runtime without a daemon; its figures stand in the column ``bare``."""

    name = "bare"

    def __init__(self, runtime: str, work: Path, image: tarfile.TarFile) -> None:
        self.directory = work / f"bare-{runtime}"
        (self.directory / "rootfs").mkdir(parents=True)
        image.extractall(self.directory / "rootfs", filter="fully_trusted")
        self._runtime = runtime
        self._account = Account()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        module = [sys.executable, "-m", "bench.bare", self._runtime, str(self.directory)]
        self._process = await asyncio.create_subprocess_exec(
            *prefix(self._runtime),
            *module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        self._account.take(self._process.pid)

    async def ask(self, *request: object) -> Any:
        """Have the driver do something. Raises RuntimeError when it died of it."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bare {self._runtime} died of {request}")
        return json.loads(line)

    def cpu(self) -> float:
        """CPU seconds, containers' own processes left out."""
        return self._account.seconds()

    async def destroy(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()
            end_containers(f"bare{self._process.pid}-")
        self._account.remove()
        shutil.rmtree(self.directory)


def spread(times: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return statistics.median(times), percentile(times, 99)


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2])
