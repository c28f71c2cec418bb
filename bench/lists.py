"""Lists of few and of many records: how long a reply takes, and what it costs the daemon.

The replies are taken as bytes. What a client makes of them would be the same for every daemon, and
most of the time.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from typing import Any

from bench.container import SPEC_URL
from bench.report import Report, interleaved
from bench.targets import NAMESPACE, Target
from bench.workloads import Bench
from cradled.api import containers_pb2, images_pb2, types_pb2, wellknown_pb2
from cradled.api.pool import Method

FEW, MANY = 10, 1000
CALLS = 20
SPEC = b'{"ociVersion":"1.0.2"}'.ljust(3000)
METADATA = [("containerd-namespace", NAMESPACE)]


class Bytes:
    """Stands for the class of a response that is not to be parsed."""

    FromString = staticmethod(bytes)


async def lists(bench: Bench) -> None:
    """Containers and images, few and many, all of them and those a filter lets through."""
    await bench.up(image=False)
    try:
        for count in (FEW, MANY):
            for target in bench.targets.values():
                await fill(target, count)
            for number, name in interleaved(bench.targets, max(3, bench.rounds // 4)):
                kept = bench.report if number >= 0 else None
                await measure(bench.targets[name], count, kept)
    finally:
        await bench.down()


async def fill(target: Target, count: int) -> None:
    """Have so many containers and images."""
    containers = target.stub(containers_pb2.Containers)
    images = target.stub(images_pb2.Images)
    have = len((await images.list(images_pb2.ListImagesRequest())).images)
    missing = iter(range(have, count))

    async def make() -> None:
        for number in missing:
            labels = {"app": f"app{number % 100}", "purpose": "bench"}
            spec = wellknown_pb2.Any(type_url=SPEC_URL, value=SPEC)
            container = containers_pb2.Container(
                id=f"c{number:04}",
                image="docker.io/library/bench:latest",
                runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
                labels=labels,
                spec=spec,
            )
            await containers.create(containers_pb2.CreateContainerRequest(container=container))
            what = types_pb2.Descriptor(
                media_type="application/vnd.oci.image.manifest.v1+json",
                digest=f"sha256:{number:064x}",
                size=1,
            )
            image = images_pb2.Image(name=f"bench/{number:04}:latest", labels=labels, target=what)
            await images.create(images_pb2.CreateImageRequest(image=image))

    await asyncio.gather(*(make() for _ in range(16)))


async def measure(target: Target, count: int, report: Report | None) -> None:
    filters = ['labels."app"==app7']
    calls: dict[str, tuple[Method, Any]] = {
        f"Containers.List of {count}": (
            containers_pb2.Containers.methods["List"],
            containers_pb2.ListContainersRequest(),
        ),
        f"Containers.List, a filter on {count}": (
            containers_pb2.Containers.methods["List"],
            containers_pb2.ListContainersRequest(filters=filters),
        ),
        f"Images.List of {count}": (
            images_pb2.Images.methods["List"],
            images_pb2.ListImagesRequest(),
        ),
    }
    for figure, (method, request) in calls.items():
        times = []
        cpu = target.cpu()
        for _ in itertools.repeat(None, CALLS):
            began = time.perf_counter()
            assert target.channel is not None
            raw = method._replace(response=Bytes)
            await target.channel.call(raw, request, metadata=METADATA)
            times.append(time.perf_counter() - began)
        used = target.cpu() - cpu
        if report is not None:
            report.add(f"lists: {figure}", "ms", target.name, statistics.median(times) * 1e3)
            report.add(f"lists: {figure}, CPU", "ms", target.name, used / CALLS * 1e3)
