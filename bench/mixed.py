"""Sixteen clients at work while ``ctr`` imports a big image: what each call takes then.

Every client has a connection of its own and calls on, a few milliseconds between two calls: it gets
and lists containers and images, creates a container with a snapshot and deletes both; one in four
listens to all events. The calls wait for the import's work as they would on a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

from bench.container import SPEC_URL
from bench.lists import SPEC
from bench.report import interleaved
from bench.targets import NAMESPACE, Target
from bench.workloads import Bench, ensure_namespace, import_command
from cradled.api import (
    containers_pb2,
    events_service_pb2,
    images_pb2,
    snapshots_pb2,
    tasks_pb2,
    wellknown_pb2,
)
from cradled.api.pool import Service
from cradled.rpc import grpc_client
from cradled.rpc.grpc_client import GrpcChannel
from cradled.rpc.stub import Stub

CLIENTS = 16
PAUSE = 0.005
_names = itertools.count()
Times = dict[str, list[float]]


async def mixed(bench: Bench) -> None:
    """The image is imported afresh each time, into directories that saw none before."""
    if bench.image is None:
        return
    for number, name in interleaved(bench.names, max(2, bench.rounds // 8)):
        target = Target(name, bench.work)
        bench.targets[target.mark] = target
        await target.start()
        await ensure_namespace(target)
        times: Times = defaultdict(list)
        seconds = await beside_import(target, import_command(target, bench.image, "ctr"), times)
        await target.kill()
        if number < 0:
            continue
        everything = sorted(itertools.chain(*times.values()))
        report = bench.report
        for percent in (50, 99):
            value = everything[len(everything) * percent // 100]
            report.add(f"mixed: all calls, p{percent}", "ms", name, value * 1e3)
        for call, values in sorted(times.items()):
            p99 = statistics.quantiles(values, n=100)[98]
            report.add(f"mixed: {call}, p99", "ms", name, p99 * 1e3)
        report.add("mixed: calls", "1/s", name, len(everything) / seconds)
        report.add("mixed: the import beside them", "s", name, seconds)


async def beside_import(target: Target, command: list[str], times: Times) -> float:
    """Run clients until an import has ended; returns its seconds."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for number in range(CLIENTS):
            channel = await grpc_client.connect(str(target.socket))
            await stack.enter_async_context(channel)
            clients.append(asyncio.ensure_future(Client(channel, times).work(number % 4 == 0)))
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        ended = asyncio.ensure_future(process.wait())
        done, _ = await asyncio.wait([ended, *clients], return_when=asyncio.FIRST_COMPLETED)
        seconds = time.perf_counter() - began
        for client in clients:
            client.cancel()
        results = await asyncio.gather(*clients, return_exceptions=True)
        for result in results:
            if not isinstance(result, asyncio.CancelledError):
                raise RuntimeError("a client failed") from result
        if ended not in done or ended.result():
            raise RuntimeError("the import failed")
    return seconds


class Client:
    """One of those who do something else."""

    def __init__(self, channel: GrpcChannel, times: Times) -> None:
        self._channel = channel
        self._times = times

    async def work(self, listens: bool) -> None:
        if listens:
            listening = asyncio.ensure_future(self._listen())
        try:
            while True:
                await self._round()
        finally:
            if listens:
                listening.cancel()

    async def _round(self) -> None:
        name = f"mixed-{next(_names)}"
        containers = self._stub(containers_pb2.Containers)
        snapshots = self._stub(snapshots_pb2.Snapshots)
        images = self._stub(images_pb2.Images)
        tasks = self._stub(tasks_pb2.Tasks)
        container = containers_pb2.Container(
            id=name,
            runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
            spec=wellknown_pb2.Any(type_url=SPEC_URL, value=SPEC),
        )
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter="overlayfs", key=name, labels={"containerd.io/gc.root": "1"}
        )
        await self._call("Snapshots.Prepare", snapshots.prepare, request)
        create = containers_pb2.CreateContainerRequest(container=container)
        await self._call("Containers.Create", containers.create, create)
        for _ in range(4):
            get = containers_pb2.GetContainerRequest(id=name)
            await self._call("Containers.Get", containers.get, get)
            list_ = containers_pb2.ListContainersRequest(filters=[f"id=={name}"])
            await self._call("Containers.List", containers.list, list_)
            await self._call("Images.List", images.list, images_pb2.ListImagesRequest())
            await self._call("Tasks.List", tasks.list, tasks_pb2.ListTasksRequest())
        delete = containers_pb2.DeleteContainerRequest(id=name)
        await self._call("Containers.Delete", containers.delete, delete)
        remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=name)
        await self._call("Snapshots.Remove", snapshots.remove, remove)

    async def _call(
        self, name: str, call: Callable[[object], Awaitable[object]], request: object
    ) -> None:
        await asyncio.sleep(PAUSE)
        began = time.perf_counter()
        await call(request)
        self._times[name].append(time.perf_counter() - began)

    async def _listen(self) -> None:
        request = events_service_pb2.SubscribeRequest()
        async for _ in self._stub(events_service_pb2.Events).subscribe(request):
            pass

    def _stub(self, service: Service) -> Stub:
        return Stub(self._channel, service, metadata=[("containerd-namespace", NAMESPACE)])
