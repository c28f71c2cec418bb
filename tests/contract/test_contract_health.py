"""Health (reference, services.md section 16). It needs no namespace."""

from __future__ import annotations

from harness.contract import Case, Door, Refused, cases

from cradled.api import health_pb2 as pb
from cradled.rpc.status import Code

SERVING = pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)
NOT_SERVING = pb.HealthCheckResponse(status=pb.HealthCheckResponse.NOT_SERVING)
SERVICE_UNKNOWN = pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN)

WHOLE = pb.HealthCheckRequest()
UNKNOWN = pb.HealthCheckRequest(service="containerd.services.containers.v1.Containers")


@cases(
    Case("the daemon", WHOLE, SERVING),
    Case("one of its services", UNKNOWN, Refused(Code.NOT_FOUND, "unknown service")),
)
async def test_check(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Health, "").check)


@cases(Case("all", pb.HealthListRequest(), pb.HealthListResponse(statuses={"": SERVING})))
async def test_list(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Health, "").list)


@cases(
    Case("check", WHOLE, NOT_SERVING),
    Case("list", pb.HealthListRequest(), pb.HealthListResponse(statuses={"": NOT_SERVING})),
    Case("watch", WHOLE, [NOT_SERVING]),
)
async def test_while_the_daemon_stops(door: Door, case: Case) -> None:
    door.world.health.stop()
    await case.ask(getattr(door.stub(pb.Health, ""), case.what))


@cases(
    Case("the daemon", WHOLE, [SERVING, NOT_SERVING]),
    Case("one of its services", UNKNOWN, [SERVICE_UNKNOWN]),
)
async def test_watch(door: Door, case: Case) -> None:
    """The status at once; then each change, until there is nothing left to come."""
    seen = []
    async for response in door.stub(pb.Health, "").watch(case.request):
        seen.append(response)
        if len(seen) == 1:
            door.world.health.stop()
    assert seen == case.answer


async def test_a_watcher_may_leave(door: Door) -> None:
    method = pb.Health.methods["Watch"]
    async with door.transport.open(method) as stream:
        await stream.send(WHOLE)
        await stream.done()
        assert await stream.recv() == SERVING
    await Case("", WHOLE, SERVING).ask(door.stub(pb.Health, "").check)
