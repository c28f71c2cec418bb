"""Server reflection: both versions of it. It needs no namespace."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from harness.contract import REFLECTION, Case, Door, Refused, Rpc, cases

from cradled.api import reflection_pb2 as pb
from cradled.rpc.status import Code


@pytest.fixture(params=REFLECTION, ids=["v1", "v1alpha"])
def info(request: pytest.FixtureRequest, door: Door) -> Any:
    """Asks several requests in one call; the answers as messages of v1."""
    stub = door.stub(request.param.ServerReflection, "")

    def ask() -> _Stream:
        return _Stream(stub.server_reflection_info(), request.param.ServerReflectionRequest)

    return Rpc(ask, exact=door.name == "inprocess")


class _Stream:
    """A stream of either version that takes and gives messages of v1."""

    def __init__(self, stream: Any, request: Any) -> None:
        self._stream = stream
        self._request = request

    async def __aenter__(self) -> _Stream:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._stream.__aexit__(*exc)

    async def send(self, message: pb.ServerReflectionRequest) -> None:
        await self._stream.send(self._request.FromString(message.SerializeToString()))

    async def done(self) -> None:
        await self._stream.done()

    async def __aiter__(self) -> Any:
        async for response in self._stream:
            yield pb.ServerReflectionResponse.FromString(response.SerializeToString())


def files(response: pb.ServerReflectionResponse) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    parsed = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in response.file_descriptor_response.file_descriptor_proto
    ]
    return {file.name: file for file in parsed}


async def test_services(info: Rpc) -> None:
    request = pb.ServerReflectionRequest(host="h", list_services="*")
    [answer] = await Case("", [request], lambda _: True).ask(info)
    names = [service.name for service in answer.list_services_response.service]
    assert names == sorted(names)
    assert set(names) > {
        "containerd.services.containers.v1.Containers",
        "containerd.services.sandbox.v1.Store",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert (answer.valid_host, answer.original_request) == ("h", request)


FILE = "cradled/containers.proto"
SYMBOLS = [
    ("a service", "containerd.services.containers.v1.Containers", FILE),
    ("a method", "containerd.services.containers.v1.Containers.Get", FILE),
    ("a message", "containerd.services.containers.v1.Container", FILE),
    ("a message in another", "containerd.services.containers.v1.Container.Runtime", FILE),
    ("a field", "containerd.services.containers.v1.Container.labels", FILE),
    ("an enum", "containerd.v1.types.Status", "cradled/task_types.proto"),
    ("a message nobody serves", "containerd.runc.v1.Options", "cradled/runc_options.proto"),
    ("one of protobuf's own", "google.protobuf.Any", "cradled/wellknown.proto"),
    ("reflection", "grpc.reflection.v1.ServerReflection", "cradled/reflection.proto"),
]


@cases(
    *(
        Case(what, pb.ServerReflectionRequest(file_containing_symbol=symbol), file)
        for what, symbol, file in SYMBOLS
    ),
    Case("a file", pb.ServerReflectionRequest(file_by_filename=FILE), FILE),
)
async def test_files(info: Rpc, case: Case) -> None:
    """The file comes first, what it needs after it: enough to use it."""
    [answer] = await Case("", [case.request], lambda _: True).ask(info)
    found = files(answer)
    assert next(iter(found)) == case.answer
    pool = descriptor_pool.DescriptorPool()
    for file in reversed(found.values()):
        pool.Add(file)
    assert pool.FindFileByName(case.answer)


@cases(
    Case(
        "a symbol",
        pb.ServerReflectionRequest(file_containing_symbol="containerd.Nothing"),
        pb.ErrorResponse(error_code=5, error_message="not found: containerd.Nothing"),
    ),
    Case(
        "no symbol",
        pb.ServerReflectionRequest(file_containing_symbol=""),
        pb.ErrorResponse(error_code=5, error_message="not found: "),
    ),
    Case(
        "a file",
        pb.ServerReflectionRequest(file_by_filename="nothing.proto"),
        pb.ErrorResponse(error_code=5, error_message="not found: nothing.proto"),
    ),
    Case(
        "an extension",
        pb.ServerReflectionRequest(
            file_containing_extension=pb.ExtensionRequest(
                containing_type="google.protobuf.Any", extension_number=7
            )
        ),
        pb.ErrorResponse(error_code=5, error_message="not found: google.protobuf.Any extension 7"),
    ),
    Case(
        "the extensions of no type",
        pb.ServerReflectionRequest(all_extension_numbers_of_type="containerd.Nothing"),
        pb.ErrorResponse(error_code=5, error_message="not found: containerd.Nothing"),
    ),
)
async def test_what_is_not_there(info: Rpc, case: Case) -> None:
    """An error is an answer: the call goes on."""
    again = pb.ServerReflectionRequest(file_by_filename=FILE)
    first, second = await Case("", [case.request, again], lambda _: True).ask(info)
    assert first.error_response == case.answer
    assert first.original_request == case.request
    assert next(iter(files(second))) == FILE


async def test_a_type_without_extensions(info: Rpc) -> None:
    request = pb.ServerReflectionRequest(all_extension_numbers_of_type="google.protobuf.Any")
    [answer] = await Case("", [request], lambda _: True).ask(info)
    none = pb.ExtensionNumberResponse(base_type_name="google.protobuf.Any")
    assert answer.all_extension_numbers_response == none
    assert answer.WhichOneof("message_response") == "all_extension_numbers_response"


async def test_dependencies_are_told_once(info: Rpc) -> None:
    """What was asked for is always told; what came along before is not told again."""
    names = ("cradled/containers.proto", "cradled/images.proto", "cradled/containers.proto")
    requests = [pb.ServerReflectionRequest(file_by_filename=name) for name in names]
    answers = await Case("", requests, lambda _: True).ask(info)
    assert [list(files(answer)) for answer in answers] == [
        ["cradled/containers.proto", "cradled/wellknown.proto"],
        ["cradled/images.proto", "cradled/types.proto"],
        ["cradled/containers.proto"],
    ]


@cases(
    Case(
        "nothing",
        [pb.ServerReflectionRequest(host="h")],
        Refused(Code.INVALID_ARGUMENT, "invalid MessageRequest: invalid argument"),
    ),
    Case("no request at all", [], []),
)
async def test_nothing_asked(info: Rpc, case: Case) -> None:
    await case.ask(info)
