"""Pure. How a scope travels: as metadata of every call made on its behalf."""

from __future__ import annotations

from cradled.core.scope import Scope
from cradled.rpc.call import LEASE, NAMESPACE


def metadata(scope: Scope) -> tuple[tuple[str, str], ...]:
    """The metadata that names a namespace and, if there is one, a lease."""
    namespace = (NAMESPACE, scope.namespace)
    return (namespace, (LEASE, scope.lease)) if scope.lease else (namespace,)
