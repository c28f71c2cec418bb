"""Pure. How a scope travels: as metadata of every call made on its behalf."""

from __future__ import annotations

from cradled.core.scope import Scope
from cradled.rpc.call import LEASE, NAMESPACE


def metadata(scope: Scope) -> tuple[tuple[str, str], ...]:
    """The metadata that names a namespace and a lease, as far as there are any."""
    named = ((NAMESPACE, scope.namespace), (LEASE, scope.lease))
    return tuple(pair for pair in named if pair[1])
