"""Containers that write as fast as they can, and a neighbour in the same shim that answers.

Three containers of a pod share a shim: one idles, one echoes what it is sent, one writes into a
FIFO that ``dd`` reads, or into a log file. What is measured is how much gets through, what the shim
pays for it, and how long an echo takes meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.container import Life, record
from bench.report import interleaved
from bench.targets import Target, pss_of
from bench.workloads import Bench
from cradled.api import containers_pb2, snapshots_pb2, tasks_pb2

POD = "io.kubernetes.cri.sandbox-id"
PATIENCE = 60.0
PAUSE = 0.002
IDLE_ECHOES = 200
KIB, GB = 1 << 10, 1e9


@dataclass(frozen=True)
class Flow:
    """What the writer writes, and where to."""

    name: str
    block: int
    blocks: int
    file: bool = False

    @property
    def gigabytes(self) -> float:
        return self.block * self.blocks / GB


FLOWS = (
    Flow("64 KiB writes to a FIFO", 64 * KIB, 32000),
    Flow("4 KiB writes to a FIFO", 4 * KIB, 128000),
    Flow("64 KiB writes to a file", 64 * KIB, 16000, file=True),
)


async def stdio(bench: Bench) -> None:
    """Throughput of a stream, its price, and the echo of a neighbour."""
    await bench.up()
    for number, name in interleaved(bench.targets, max(3, bench.rounds // 6)):
        pod = Pod(bench.targets[name], bench.chains[name], bench.work / f"fifos-{name}-{number}")
        figures = await pod.run()
        for figure, (unit, value) in figures.items():
            if number >= 0:
                bench.report.add(f"stdio: {figure}", unit, name, value)


class Member(Life):
    """A container of a pod, with FIFOs for its streams or a file for its output."""

    def __init__(self, pod: Pod, script: str, *, file: Path | None = None) -> None:
        super().__init__(pod.target, pod.chain, ["sh", "-c", script])
        self.pod = pod
        self.fifos = {
            part: pod.directory / f"{self.name}-{part}" for part in ("stdin", "stdout", "stderr")
        }
        self.out = f"file://{file}" if file else str(self.fifos["stdout"])
        self.err = f"file://{file}" if file else str(self.fifos["stderr"])
        self.fds: dict[str, int] = {}

    async def start(self) -> None:
        for part, path in self.fifos.items():
            os.mkfifo(path, 0o700)
            if part != "stdin":
                self.fds[part] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        prepared = await self.snapshots.prepare(
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter="overlayfs",
                key=self.name,
                parent=self.chain,
                labels={"containerd.io/gc.root": "bench"},
            )
        )
        container = record(self.target, self.name, self.chain, self.args)
        spec = json.loads(container.spec.value)
        spec.setdefault("annotations", {})[POD] = self.pod.name or self.name
        container.spec.value = json.dumps(spec).encode()
        await self.containers.create(containers_pb2.CreateContainerRequest(container=container))
        create = tasks_pb2.CreateTaskRequest(
            container_id=self.name,
            rootfs=prepared.mounts,
            stdin=str(self.fifos["stdin"]),
            stdout=self.out,
            stderr=self.err,
        )
        self.pid = (await self.tasks.create(create)).pid
        self.fds["stdin"] = os.open(self.fifos["stdin"], os.O_WRONLY)
        await self.tasks.start(tasks_pb2.StartRequest(container_id=self.name))

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        for path in self.fifos.values():
            path.unlink()


class Pod:
    """Containers that share a shim."""

    def __init__(self, target: Target, chain: str, directory: Path) -> None:
        self.target, self.chain, self.directory = target, chain, directory
        self.name = ""
        directory.mkdir()

    async def run(self) -> dict[str, tuple[str, float]]:
        sandbox = Member(self, "exec sleep 100000")
        await sandbox.start()
        self.name = sandbox.name
        echo = Member(self, "exec cat")
        await echo.start()
        shim = parent(sandbox.pid)
        assert shim == parent(echo.pid), "the pod's containers share no shim"
        figures: dict[str, tuple[str, float]] = {}
        idle = [one_echo(echo) for _ in range(IDLE_ECHOES)]
        figures["echo, nobody writes, p50"] = ("ms", statistics.median(idle) * 1e3)
        for flow in FLOWS:
            figures |= {
                f"{flow.name}: {key}": value
                for key, value in (await self.flow(flow, echo, shim)).items()
            }
        for member in (echo, sandbox):
            await member.kill()
            member.close()
        return figures

    async def flow(self, flow: Flow, echo: Member, shim: int) -> dict[str, tuple[str, float]]:
        """Have a container write, and echo meanwhile."""
        file = self.directory / "log" if flow.file else None
        script = f"read x; exec dd if=/dev/zero bs={flow.block} count={flow.blocks}"
        writer = Member(self, script, file=file)
        await writer.start()
        command = ["dd", f"if={writer.fifos['stdout']}", "of=/dev/null", "bs=1M"]
        reader = None if file else subprocess.Popen(command, stderr=subprocess.DEVNULL)
        ended = asyncio.ensure_future(writer.wait())
        before, cpu, began = pss_of(shim), cpu_of(shim), time.perf_counter()
        os.write(writer.fds["stdin"], b"\n")
        echoes = []
        while not ended.done():
            echoes.append(one_echo(echo))
            await asyncio.sleep(PAUSE)
        if reader is not None:
            os.close(writer.fds.pop("stdout"))
            await asyncio.to_thread(reader.wait, PATIENCE)
        seconds = time.perf_counter() - began
        await writer.remove()
        writer.close()
        if file:
            assert file.stat().st_size >= flow.gigabytes * GB
            file.unlink()
        return {
            "rate": ("MB/s", flow.gigabytes * 1e3 / seconds),
            "shim's CPU each GB": ("s", (cpu_of(shim) - cpu) / flow.gigabytes),
            "shim's growth": ("KiB", pss_of(shim) - before),
            "echo, p50": ("ms", statistics.median(echoes) * 1e3),
            "echo, p99": ("ms", statistics.quantiles(echoes, n=100)[98] * 1e3),
        }


def one_echo(member: Member) -> float:
    """Seconds from a write until it has come back."""
    began = time.perf_counter()
    os.write(member.fds["stdin"], b"ping\n")
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([member.fds["stdout"]], [], [], PATIENCE)
        assert ready, "no echo"
        data += os.read(member.fds["stdout"], 100)
    return time.perf_counter() - began


def fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent(pid: int) -> int:
    return int(fields(pid)[1])


def cpu_of(pid: int) -> float:
    """Seconds of all threads."""
    return sum(map(int, fields(pid)[11:13])) / os.sysconf("SC_CLK_TCK")
