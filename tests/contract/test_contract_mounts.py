"""Mounts (reference, services.md section 15): what is answered while no special type is handled."""

from __future__ import annotations

from harness.contract import Case, Door, Refused, answered, cases
from harness.records import NO_NAMESPACE, missing

from cradled.api import mounts_pb2 as pb
from cradled.api.types_pb2 import Mount
from cradled.rpc.status import Code

PLAIN = [Mount(type="bind", source="/etc", options=["rbind", "ro"])]
UNIMPLEMENTED = Refused(Code.UNIMPLEMENTED, "not implemented")


@cases(
    Case("plain mounts", pb.ActivateRequest(name="n", mounts=PLAIN), UNIMPLEMENTED),
    Case("nothing", pb.ActivateRequest(name="n"), UNIMPLEMENTED),
)
async def test_activate(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Mounts).activate)


async def test_nothing_is_active(door: Door) -> None:
    mounts = door.stub(pb.Mounts)
    await Case("", pb.InfoRequest(name="n"), missing('mount "n"')).ask(mounts.info)
    await Case("", pb.DeactivateRequest(name="n"), missing('mount "n"')).ask(mounts.deactivate)
    await Case("", pb.ListRequest(), []).ask(mounts.list)


async def test_a_namespace_is_needed(door: Door) -> None:
    mounts = door.stub(pb.Mounts, "")
    for rpc, request in (
        (mounts.activate, pb.ActivateRequest(name="n")),
        (mounts.deactivate, pb.DeactivateRequest(name="n")),
        (mounts.info, pb.InfoRequest(name="n")),
        (mounts.list, pb.ListRequest()),
    ):
        assert NO_NAMESPACE.fits(await answered(rpc, request), exact=False)
