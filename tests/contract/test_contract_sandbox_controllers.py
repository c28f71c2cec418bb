"""The sandbox controllers (reference, services.md section 14): the one of shims, and the same again
behind another server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.contract import Case, Door, Refused, Served, World, ask_all, router
from harness.fake_shim import FakeShim, FakeShims
from harness.records import BAD_IDENTIFIERS, exists, invalid, missing, sandbox

from cradled.api import events_pb2
from cradled.api import sandbox_pb2 as pb
from cradled.api.types_pb2 import Metric, Mount, Platform, Sandbox
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.convert.values import timestamp
from cradled.errors import Error, PermissionDenied
from cradled.proxies.sandboxes import ProxySandboxController
from cradled.rpc.inprocess import InProcess
from cradled.rpc.status import Code
from cradled.runtime.sandbox import ShimSandboxes
from cradled.runtime.shims import Shims
from cradled.services.sandboxes import SandboxControllerService

OPTIONS = AnyMessage(type_url="o", value=b"3")
POD = sandbox(
    "pod",
    spec=AnyMessage(type_url="s", value=b'{"hostname":"h"}'),
    runtime=Sandbox.Runtime(name="io.containerd.vm.v1", options=OPTIONS),
    sandboxer="shim",
)
REQUESTS = {
    "create": pb.ControllerCreateRequest,
    "start": pb.ControllerStartRequest,
    "platform": pb.ControllerPlatformRequest,
    "stop": pb.ControllerStopRequest,
    "wait": pb.ControllerWaitRequest,
    "status": pb.ControllerStatusRequest,
    "shutdown": pb.ControllerShutdownRequest,
    "metrics": pb.ControllerMetricsRequest,
    "update": pb.ControllerUpdateRequest,
}


@pytest.fixture
async def shims(directory: str) -> AsyncIterator[FakeShims]:
    shims = FakeShims(Path(directory))
    yield shims
    await shims.aclose()


@pytest.fixture
async def controller(shims: FakeShims, directory: str) -> AsyncIterator[ShimSandboxes]:
    where = Shims(f"{directory}/state", f"{directory}/root", shims)  # type: ignore[arg-type]
    controller = ShimSandboxes(where)
    yield controller
    await controller.aclose()


@pytest.fixture
def extra(world: World, controller: ShimSandboxes) -> Sequence[Served]:
    behind = SandboxControllerService(world.db, {"there": controller}, world.exchange)
    proxied = ProxySandboxController(InProcess(router([(pb.Controller, behind)])), "there")
    controllers: dict[str, Any] = {"shim": controller, "proxied": proxied}
    service = SandboxControllerService(world.db, controllers, world.exchange)
    return [(pb.Controller, service)]


@pytest.fixture(params=["shim", "proxied"])
def pods(request: pytest.FixtureRequest, door: Door, shims: FakeShims) -> Pods:
    return Pods(door, shims, request.param)


class Pods:
    """The controller behind a door by one of its names."""

    def __init__(self, door: Door, shims: FakeShims, name: str) -> None:
        self.door, self.shims, self.name = door, shims, name
        self.stub = door.stub(pb.Controller)

    async def ask(self, rpc: str, **fields: Any) -> Any:
        fields.setdefault("sandbox_id", "pod")
        request = REQUESTS[rpc](sandboxer=self.name, **fields)
        return await getattr(self.stub, rpc)(request)

    async def refused(self, rpc: str, refusal: Refused, **fields: Any) -> None:
        fields.setdefault("sandbox_id", "pod")
        request = REQUESTS[rpc](sandboxer=self.name, **fields)
        await Case(rpc, request, refusal).ask(getattr(self.stub, rpc))

    async def started(self) -> FakeShim:
        await self.ask("create", sandbox=POD)
        await self.ask("start")
        return self.shims.shims["pod"]

    def told(self) -> list[tuple[str, str, Any]]:
        """Each event once: a controller of another server has told it there."""
        told = self.door.told()
        return told if self.name == "shim" else told[::2]


def left(directory: str) -> list[str]:
    places = (Path(directory, "state", "ns"), Path(directory, "root", "ns"))
    found = [path.name for place in places if place.exists() for path in place.iterdir()]
    return [name for name in found if not name.startswith(".")]


async def gone(directory: str) -> None:
    async with asyncio.timeout(10):
        while left(directory):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_life(pods: Pods, directory: str) -> None:
    mount = Mount(type="bind", source="/a", options=["ro"])
    created = await pods.ask(
        "create", sandbox=POD, rootfs=[mount], options=AnyMessage(type_url="x", value=b"y"),
        netns_path="/net", annotations={"a": "b"},
    )  # fmt: skip
    assert created == pb.ControllerCreateResponse(sandbox_id="pod")
    shim = pods.shims.shims["pod"]
    asked = shim.pod.request
    assert (asked.sandbox_id, asked.bundle_path) == ("pod", f"{directory}/state/ns/pod")
    assert (list(asked.rootfs), asked.options.type_url) == ([mount], "x")
    assert (asked.netns_path, dict(asked.annotations)) == ("/net", {"a": "b"})
    assert Path(asked.bundle_path, "config.json").read_bytes() == POD.spec.value
    address = f"ttrpc+unix://{shim.path}"
    assert await pods.ask("start") == pb.ControllerStartResponse(
        sandbox_id="pod", pid=7, created_at=timestamp(8), address=address, version=3,
        spec=AnyMessage(type_url="spec", value=b"2"),
    )  # fmt: skip
    platform = Platform(os="linux", architecture="s390x")
    assert (await pods.ask("platform")).platform == platform
    status = pb.ControllerStatusResponse(
        sandbox_id="pod", pid=7, state="SANDBOX_READY", created_at=timestamp(8), address=address,
        version=3,
    )  # fmt: skip
    assert await pods.ask("status") == status
    status.info["much"] = "told"
    assert await pods.ask("status", verbose=True) == status
    measured = AnyMessage(type_url="stats", value=b"1")
    metric = Metric(id="pod", timestamp=timestamp(9), data=measured)
    assert (await pods.ask("metrics")).metrics == metric
    assert await pods.ask("update", sandbox=POD) == pb.ControllerUpdateResponse()
    waiting = asyncio.create_task(pods.ask("wait"))
    assert await pods.ask("stop", timeout_secs=5) == pb.ControllerStopResponse()
    ended = await waiting
    assert ended == pb.ControllerWaitResponse(exit_status=5, exited_at=timestamp(shim.pod.end[1]))
    assert await pods.ask("shutdown") == pb.ControllerShutdownResponse()
    assert pods.told() == [
        ("ns", "/sandboxes/create", events_pb2.SandboxCreate(sandbox_id="pod")),
        ("ns", "/sandboxes/start", events_pb2.SandboxStart(sandbox_id="pod")),
        (
            "ns",
            "/sandboxes/exit",
            events_pb2.SandboxExit(sandbox_id="pod", exit_status=5, exited_at=ended.exited_at),
        ),
    ]
    assert left(directory) == []
    assert not Path(shim.path).exists()


async def test_a_record_in_the_store_will_do(pods: Pods) -> None:
    store = pods.door.stub(pb.Store)
    await pods.refused("create", missing("no sandbox buckets"))
    await store.create(pb.StoreCreateRequest(sandbox=POD))
    await pods.ask("create")
    assert pods.shims.shims["pod"].pod.request.sandbox_id == "pod"


async def test_controllers_have_names(pods: Pods) -> None:
    for rpc, request in REQUESTS.items():
        unnamed = Case(rpc, request(), invalid("sandbox controller name can not be empty"))
        unknown = Case(rpc, request(sandboxer="x"), missing('sandbox controller "x"'))
        await ask_all(getattr(pods.stub, rpc), [unnamed, unknown])


async def test_one_that_is_not_there(pods: Pods) -> None:
    for rpc in ("start", "platform", "wait", "metrics"):
        await pods.refused(rpc, missing('sandbox "pod"'))
    for rpc in ("stop", "shutdown"):
        await pods.ask(rpc)
    status = await pods.ask("status")
    assert status.exited_at.seconds > 0
    assert status == pb.ControllerStatusResponse(sandbox_id="pod", exited_at=status.exited_at)
    assert pods.told() == []


async def test_creation_refused(pods: Pods, directory: str) -> None:
    await pods.ask("create", sandbox=POD)
    await pods.refused("create", exists('sandbox "pod"'), sandbox=POD)
    for _, id, text in BAD_IDENTIFIERS:
        await pods.refused("create", invalid(text), sandbox=sandbox(id))
    unknown = sandbox("b", runtime=Sandbox.Runtime(name="unknown"))
    await pods.refused("create", Refused(Code.UNKNOWN, "invalid runtime name unknown"),
                       sandbox=unknown)  # fmt: skip
    assert left(directory) == ["pod", "pod"]


@pytest.mark.parametrize("step", ["shim", "create_sandbox", "start_sandbox"])
async def test_a_failure_leaves_nothing(pods: Pods, directory: str, step: str) -> None:
    async def fail() -> None:
        raise PermissionDenied("not you")

    texts = {
        "shim": "failed to start new shim for sandbox pod: no shim today",
        "create_sandbox": "failed to create sandbox pod: not you",
        "start_sandbox": "failed to start sandbox pod: not you",
    }
    code = Code.UNAVAILABLE if step == "shim" else Code.PERMISSION_DENIED
    suffix = ": unavailable" if step == "shim" else ": permission denied"
    refusal = Refused(code, texts[step] + suffix)
    pods.shims.broken = step == "shim"
    pods.shims.script[step] = fail
    if step == "start_sandbox":
        await pods.ask("create", sandbox=POD)
        await pods.refused("start", refusal)
    else:
        await pods.refused("create", refusal, sandbox=POD)
    await gone(directory)
    if step != "shim":
        assert pods.shims.shims["pod"].calls[-2:] == ["shutdown_sandbox", "shutdown"]
    assert [topic for _, topic, _ in pods.told()] == (
        ["/sandboxes/create"] if step == "start_sandbox" else []
    )
    pods.shims.broken = False
    pods.shims.script.clear()
    await pods.started()


async def test_a_shim_that_dies_takes_its_sandbox_along(pods: Pods, directory: str) -> None:
    shim = await pods.started()
    waiting = asyncio.create_task(pods.ask("wait"))
    async with asyncio.timeout(10):
        while "wait_sandbox" not in shim.calls:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await shim.die()
    with pytest.raises(Error, match=r"^ttrpc: closed$"):
        await waiting
    await gone(directory)
    assert pods.shims.deleted == ["pod"]
    assert (await pods.ask("status")).state == ""
    await pods.ask("stop")
    await pods.ask("shutdown")


async def test_a_shutdown_that_fails_keeps_the_sandbox(pods: Pods) -> None:
    async def fail() -> None:
        raise PermissionDenied("busy")

    shim = await pods.started()
    shim.script["shutdown_sandbox"] = shim.script["stop_sandbox"] = fail
    for rpc, what in (("stop", "stop"), ("shutdown", "shutdown")):
        text = f"failed to {what} sandbox pod: busy: permission denied"
        await pods.refused(rpc, Refused(Code.PERMISSION_DENIED, text))
    assert (await pods.ask("status")).state == "SANDBOX_READY"
