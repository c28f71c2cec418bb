"""Pure. Services that are made, and their modules imported, by the first call that needs them.

The first call of a service pays for its import, the start of the daemon does not: what nobody asks
for costs neither time nor memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cradled.api.pool import Service
from cradled.errors import Unimplemented
from cradled.plugin.types import Late
from cradled.rpc.call import Call
from cradled.rpc.service import Router, snake_case


def add(router: Router, service: Service, implementation: object) -> None:
    """As ``router.add``, for an implementation that may be ``Late``."""
    if isinstance(implementation, Late):
        implementation = _LateService(service, implementation)
    router.add(service, implementation)


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
