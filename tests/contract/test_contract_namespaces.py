"""Namespaces (reference, services.md section 3)."""

from __future__ import annotations

from harness.contract import Case, Door, Refused, cases

from cradled.api import namespaces_pb2 as pb
from cradled.rpc.status import Code


@cases(
    Case(
        "one that is not there has no labels",
        pb.GetNamespaceRequest(name="absent"),
        pb.GetNamespaceResponse(namespace=pb.Namespace(name="absent")),
    ),
)
async def test_get(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Namespaces, namespace="").get)


@cases(
    Case(
        "a missing one",
        pb.DeleteNamespaceRequest(name="x"),
        Refused(Code.NOT_FOUND, 'namespace "x": not found'),
    ),
)
async def test_delete(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Namespaces, namespace="").delete)
