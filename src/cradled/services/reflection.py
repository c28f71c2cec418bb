"""Async. Server reflection: a client without our protos learns services and messages from us.

The files told of are those of ``cradled.api``: one a package, named ``cradled/<module>.proto``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from google.protobuf.descriptor import FileDescriptor

from cradled import api
from cradled.api import reflection_pb2 as pb
from cradled.api.pool import POOL, Service
from cradled.errors import InvalidArgument
from cradled.rpc.call import Call
from cradled.rpc.service import Encoded
from cradled.rpc.status import Code


class ReflectionService:
    """Tells of the services that ``services`` gives, and of every message of ``cradled.api``.

    Versions v1 and v1alpha of the protocol differ by the package's name only: it speaks both.
    """

    def __init__(self, services: Callable[[], Iterable[Service]]) -> None:
        self._services = services

    async def server_reflection_info(
        self, call: Call, requests: AsyncIterator[pb.ServerReflectionRequest]
    ) -> AsyncIterator[Encoded]:
        sent: set[str] = set()
        async for request in requests:
            response = self._answer(request, sent)
            response.valid_host = request.host
            response.original_request.MergeFromString(request.SerializeToString())
            yield Encoded(response.SerializeToString())

    def _answer(
        self, request: pb.ServerReflectionRequest, sent: set[str]
    ) -> pb.ServerReflectionResponse:
        """``sent`` are the files that this client has: dependencies are told only once."""
        kind = request.WhichOneof("message_request")
        if kind is None:
            raise InvalidArgument("invalid MessageRequest")
        value = getattr(request, kind)
        if kind == "list_services":
            return _list(self._services())
        if kind == "file_by_filename":
            return _files(POOL.FindFileByName, value, sent)
        if kind == "file_containing_symbol":
            return _files(_containing, value, sent)
        if kind == "file_containing_extension":
            return _unknown(f"{value.containing_type} extension {value.extension_number}")
        return _extensions(value)


def _list(services: Iterable[Service]) -> pb.ServerReflectionResponse:
    names = sorted(service.name for service in services)
    listed = pb.ListServiceResponse(service=[pb.ServiceResponse(name=name) for name in names])
    return pb.ServerReflectionResponse(list_services_response=listed)


def _files(
    find: Callable[[str], FileDescriptor], name: str, sent: set[str]
) -> pb.ServerReflectionResponse:
    file = _found(find, name)
    if file is None:
        return _unknown(name)
    files = pb.FileDescriptorResponse(file_descriptor_proto=_with_needed(file, sent))
    return pb.ServerReflectionResponse(file_descriptor_response=files)


def _extensions(type_name: str) -> pb.ServerReflectionResponse:
    """No message of ours is extended; one that is none is told apart from these."""
    if _found(POOL.FindMessageTypeByName, type_name) is None:
        return _unknown(type_name)
    none = pb.ExtensionNumberResponse(base_type_name=type_name)
    return pb.ServerReflectionResponse(all_extension_numbers_response=none)


def _found(find: Callable[[str], Any], name: str) -> Any | None:
    """What the pool has under a name, with all of our messages in it if need be."""
    try:
        return find(name)
    except KeyError:
        _load_everything()
    try:
        return find(name)
    except KeyError:
        return None


def _containing(symbol: str) -> Any:
    """The file of a message, an enum, a field, a service or a method."""
    try:
        return POOL.FindFileContainingSymbol(symbol)
    except KeyError:
        return POOL.FindMethodByName(symbol).containing_service.file


def _with_needed(file: FileDescriptor, sent: set[str]) -> Iterable[bytes]:
    """The file, and of what it depends on the files that were not sent yet."""
    sent.add(file.name)
    waiting = [file]
    while waiting:
        file = waiting.pop(0)
        yield file.serialized_pb
        for needed in file.dependencies:
            if needed.name not in sent:
                sent.add(needed.name)
                waiting.append(needed)


@functools.cache
def _load_everything() -> None:
    """The daemon imports only the messages it needs; a curious client may ask for any."""
    for module in pkgutil.iter_modules(api.__path__):
        importlib.import_module(f"{api.__name__}.{module.name}")


def _unknown(what: str) -> pb.ServerReflectionResponse:
    """An answer, not the end of the call: the client may ask on."""
    error = pb.ErrorResponse(error_code=Code.NOT_FOUND, error_message=f"not found: {what}")
    return pb.ServerReflectionResponse(error_response=error)
