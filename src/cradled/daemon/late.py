"""Pure. Services that are made, and their modules imported, by the first call that needs them.

The first call of a service pays for its import, the start of the daemon does not: what nobody asks
for costs neither time nor memory. Of services that hardly anybody calls, not even the messages are
there before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from cradled.api.pool import Method, Service
from cradled.errors import Unimplemented
from cradled.plugin.types import Late
from cradled.rpc.call import Call
from cradled.rpc.service import Router, snake_case


def add(router: Router, service: Service, implementation: object) -> None:
    """As ``router.add``, for an implementation that may be ``Late``."""
    if isinstance(implementation, Late):
        implementation = _LateService(service, implementation)
    router.add(service, implementation)


def reflection(version: str, module: str) -> Service:
    """The table of a version of server reflection, which few ask for, without its messages."""
    rpc = _method(
        module,
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        ("ServerReflectionRequest", "ServerReflectionResponse"),
        (True, True),
    )
    return _service(rpc)


def journal() -> Service:
    """The table of ``cradled.v1.Journal``, likewise."""
    return _service(
        _method("cradled_pb2", "/cradled.v1.Journal/Follow", ("FollowRequest", "Entry"), _STREAM)
    )


def daemon() -> Service:
    """The table of ``cradled.v1.Daemon``, likewise."""
    path, module = "/cradled.v1.Daemon/", "cradled_pb2"
    return _service(
        _method(module, f"{path}Upgrade", ("UpgradeRequest", "UpgradeResponse")),
        _method(module, f"{path}Outcome", ("OutcomeRequest", "OutcomeResponse")),
    )


_STREAM = (False, True)


def _method(
    module: str, path: str, messages: tuple[str, str], streaming: tuple[bool, bool] = (False, False)
) -> Method:
    request, response = (_LateMessage(module, name) for name in messages)
    return Method(path.rpartition("/")[2], path, request, response, *streaming)


def _service(*methods: Method) -> Service:
    name = methods[0].path.split("/")[1]
    return Service(name, {method.name: method for method in methods})


class _LateMessage(NamedTuple):
    """Stands for the class of a message; its module is imported when the first one comes."""

    module: str
    name: str

    def __getattr__(self, attribute: str) -> Any:
        module = importlib.import_module(f"cradled.api.{self.module}")
        return getattr(getattr(module, self.name), attribute)


class _LateService:
    """Has a handler for each method of the service; each looks for the real one when called."""

    def __init__(self, service: Service, late: Late) -> None:
        for name in service.methods:
            setattr(self, snake_case(name), _handler(late, name))


def _handler(late: Late, name: str) -> Callable[[Call, Any], Any]:
    attribute = snake_case(name)

    def handler(call: Call, request: Any) -> Any:
        found = getattr(late.get(), attribute, None)
        if found is None:
            raise Unimplemented(f"method {name} not implemented", verbatim=True)
        return found(call, request)

    return handler
