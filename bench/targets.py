"""The daemons under measure: started afresh, observed from outside, removed without a trace."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cradled.api import version_pb2, wellknown_pb2
from cradled.errors import Error
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub

MARK = "CRADLED_BENCH_MARK"
NAMESPACE = "bench"


class Target:
    """One daemon (``cradled`` or ``containerd``) in its own directory and CPU accounting group."""

    def __init__(self, name: str, work: Path, runtime: str = "runc") -> None:
        self.name, self.runtime = name, runtime
        self.mark = secrets.token_hex(8)
        self.directory = work / f"{name}-{self.mark[:6]}"
        self.directory.mkdir(parents=True)
        self.root, self.state = self.directory / "root", self.directory / "state"
        self.socket = self.directory / "d.sock"
        self.cgroup = Path("/sys/fs/cgroup/cpuacct") / f"bench-{self.mark}"
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: grpc_client.GrpcChannel | None = None

    def command(self) -> list[str]:
        if self.name == "containerd":
            config = self.directory / "config.toml"
            config.write_text(
                f'version = 2\nroot = "{self.root}"\nstate = "{self.state}"\n'
                f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                f'[grpc]\n  address = "{self.socket}"\n'
            )
            return ["containerd", "-c", str(config)]
        return [
            str(Path(sys.executable).parent / "cradled"),
            "--root",
            str(self.root),
            "--state",
            str(self.state),
            "--address",
            str(self.socket),
        ]

    async def start(self) -> float:
        """Seconds from exec to the first answer of Version."""
        began = time.perf_counter()
        with open(self.directory / "log", "ab") as log:
            env = {**os.environ, MARK: self.mark}
            self.process = subprocess.Popen(
                self.command(),
                env=env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._account()
        while True:
            try:
                channel = await grpc_client.connect(str(self.socket))
                await Stub(channel, version_pb2.Version).version(wellknown_pb2.Empty(), timeout=10)
            except (OSError, Error):
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} died, see {self.directory}/log") from None
                await asyncio.sleep(0.001)
            else:
                self.channel = channel
                return time.perf_counter() - began

    def _account(self) -> None:
        try:
            self.cgroup.mkdir(exist_ok=True)
            (self.cgroup / "cgroup.procs").write_text(str(self.process.pid if self.process else 0))
        except OSError:
            pass  # no v1 accounting here: cpu() says 0

    def cpu(self) -> float:
        """CPU seconds of the daemon and all it started, containers' own processes left out."""
        try:
            return int((self.cgroup / "cpuacct.usage").read_text()) / 1e9
        except OSError:
            return 0.0

    def stub(self, service: object, lease: str = "") -> Stub:
        assert self.channel is not None
        metadata = [("containerd-namespace", NAMESPACE)]
        if lease:
            metadata.append(("containerd-lease", lease))
        return Stub(self.channel, service, metadata=metadata)  # type: ignore[arg-type]

    def processes(self) -> list[int]:
        """The daemon and its helpers, found by the mark they inherit."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    if needle in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        found.append(int(entry))
                except OSError:
                    continue
        return found

    def pss(self, without: set[int] | None = None) -> float:
        """MiB of proportional set size, summed over daemon and helpers."""
        return sum(pss_of(pid) for pid in self.processes() if pid not in (without or set())) / 1024

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.channel is not None:
            await self.channel.aclose()
            self.channel = None

    async def destroy(self) -> None:
        if self.channel is not None:
            await self.channel.aclose()
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._unmount()
        shutil.rmtree(self.directory, ignore_errors=True)
        try:
            self.cgroup.rmdir()
        except OSError:
            pass

    def _unmount(self) -> None:
        with open("/proc/self/mountinfo") as lines:
            points = [line.split()[4] for line in lines]
        for point in reversed([p for p in points if p.startswith(str(self.directory) + "/")]):
            subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)


def pss_of(pid: int) -> int:
    """KiB of a process; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
