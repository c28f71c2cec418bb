"""Version: what clients show as the server's version. It needs no namespace."""

from __future__ import annotations

from harness.contract import Case, Door, cases

from cradled.api import version_pb2 as pb
from cradled.api.wellknown_pb2 import Empty


@cases(Case("as it was built", Empty(), pb.VersionResponse(version="v2.3.4", revision="abc")))
async def test_version(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Version, namespace="").version)
