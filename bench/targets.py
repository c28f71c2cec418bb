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
from cradled.linux import cgroup
from cradled.rpc import grpc_client
from cradled.rpc.stub import Stub

MARK = "CRADLED_BENCH_MARK"
NAMESPACE = "bench"
UNIFIED = Path("/sys/fs/cgroup/unified")


def prefix(runtime: str) -> tuple[str, ...]:
    """What to put before a command that is to run containers with this OCI runtime.

    Debian 12's crun takes a hybrid cgroup hierarchy for one that it does not know.
    """
    if os.path.basename(runtime) != "crun" or not UNIFIED.is_dir():
        return ()
    return ("unshare", "-m", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh")


class Account:
    """CPU time of processes and all they start; containers, in cgroups of their own, left out."""

    def __init__(self) -> None:
        self._directory = Path("/sys/fs/cgroup/cpuacct") / f"bench-{secrets.token_hex(8)}"

    def take(self, pid: int) -> None:
        try:
            self._directory.mkdir(exist_ok=True)
            (self._directory / "cgroup.procs").write_text(str(pid))
        except OSError:
            pass  # no v1 accounting here: seconds() says 0

    def seconds(self) -> float:
        try:
            return int((self._directory / "cpuacct.usage").read_text()) / 1e9
        except OSError:
            return 0.0

    def remove(self, patience: float = 10.0) -> None:
        """Remove it, once those in it that were killed are gone."""
        until = time.monotonic() + patience
        while self._directory.is_dir() and time.monotonic() < until:
            try:
                self._directory.rmdir()
            except OSError:
                time.sleep(0.01)


def end_containers(start: str) -> None:
    """Kill what is left of containers whose names start like this, as after a run that failed."""
    for directory in Path("/sys/fs/cgroup").glob(f"*/{NAMESPACE}/{start}*"):
        cgroup.kill(str(directory))
        until = time.monotonic() + 5
        while directory.is_dir() and time.monotonic() < until:
            cgroup.remove(str(directory))
            time.sleep(0.005)


def forget_containers() -> None:
    """Remove the cgroup that the containers' cgroups were made in."""
    for directory in Path("/sys/fs/cgroup").glob(f"*/{NAMESPACE}"):
        try:
            directory.rmdir()
        except OSError:
            pass
    hidden = prefix("crun")
    if hidden:  # crun makes a directory per container where the hierarchy was that it must not see
        subprocess.run([*hidden, "rm", "-rf", f"{UNIFIED}/{NAMESPACE}"], check=True)


class Target:
    """One daemon (``cradled`` or ``containerd``) in its own directory and CPU account.

    ``runtime`` is the OCI runtime of its containers; ``grouping`` the configured grouping of our
    shims.
    """

    def __init__(self, name: str, work: Path, runtime: str = "runc", grouping: str = "") -> None:
        self.name, self.runtime, self.grouping = name, runtime, grouping
        self.mark = secrets.token_hex(8)
        self.directory = work / f"{name}-{self.mark[:6]}"
        self.directory.mkdir(parents=True)
        self.root, self.state = self.directory / "root", self.directory / "state"
        self.socket = self.directory / "d.sock"
        self.account = Account()
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: grpc_client.GrpcChannel | None = None

    def command(self) -> list[str]:
        config = self.directory / "config.toml"
        if self.name == "containerd":
            config.write_text(
                f'version = 2\nroot = "{self.root}"\nstate = "{self.state}"\n'
                f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                f'[grpc]\n  address = "{self.socket}"\n'
            )
            return [*prefix(self.runtime), "containerd", "-c", str(config)]
        command = [*prefix(self.runtime), str(Path(sys.executable).parent / "cradled")]
        if self.grouping:
            config.write_text(
                'version = 3\n[plugins."io.containerd.shim.v1.manager"]\n'
                f'  grouping = "{self.grouping}"\n'
            )
            command += ["--config", str(config)]
        command += ["--root", str(self.root), "--state", str(self.state)]
        return [*command, "--address", str(self.socket)]

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
        self.account.take(self.process.pid)
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

    def cpu(self) -> float:
        """CPU seconds of the daemon and all it started, containers' own processes left out."""
        return self.account.seconds()

    def stub(self, service: object, lease: str = "") -> Stub:
        assert self.channel is not None
        metadata = [("containerd-namespace", NAMESPACE)]
        if lease:
            metadata.append(("containerd-lease", lease))
        return Stub(self.channel, service, metadata=metadata)  # type: ignore[arg-type]

    def container(self, name: object) -> str:
        """An id for a container of this daemon."""
        return f"b{self.mark[:6]}-{name}"

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
        end_containers(self.container(""))
        self._unmount()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.account.remove()

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
