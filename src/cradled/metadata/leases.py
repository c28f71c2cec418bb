"""Async. Leases, and how objects join the lease of the call that makes them.

A resource is a name: what it names need not exist.
"""

from __future__ import annotations

import base64
import builtins
import os
import time
from collections.abc import Sequence

from cradled import digest, identifiers
from cradled.core.leases import Lease, Resource
from cradled.core.scope import Scope
from cradled.core.values import Labels
from cradled.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented, quote
from cradled.metadata import graph
from cradled.metadata import labels as marks
from cradled.metadata.engine import Engine, Row, Transaction

_EXISTS = "SELECT 1 FROM leases WHERE namespace=? AND id=?"
_ADD = "INSERT OR IGNORE INTO lease_resources VALUES (?, ?, ?, ?)"
_DROP = "DELETE FROM lease_resources WHERE namespace=? AND lease=? AND type=? AND id=?"


def require(engine: Engine, scope: Scope) -> None:
    """Raise NotFound early when a call comes under a lease that is not there."""
    if scope.lease and engine.one(_EXISTS, (scope.namespace, scope.lease)) is None:
        raise NotFound("lease does not exist")


def exists(tx: Transaction, scope: Scope) -> bool:
    """Whether the call came under a lease that is there."""
    return bool(scope.lease) and tx.one(_EXISTS, (scope.namespace, scope.lease)) is not None


def join(tx: Transaction, scope: Scope, resource_type: str, resource_id: str) -> bool:
    """Add an object to the lease of the call, if it came with one; tells whether it did.

    Raises NotFound ``lease does not exist``.
    """
    if not scope.lease:
        return False
    if not exists(tx, scope):
        raise NotFound("lease does not exist")
    tx.execute(_ADD, (scope.namespace, scope.lease, resource_type, resource_id))
    tx.touch(scope.namespace, graph.resource_node(resource_type, resource_id))
    return True


def leave(tx: Transaction, scope: Scope, resource_type: str, resource_id: str) -> None:
    """Take an object out of the lease of the call."""
    if scope.lease:
        tx.execute(_DROP, (scope.namespace, scope.lease, resource_type, resource_id))


class Leases:
    """The leases of one namespace."""

    def __init__(self, engine: Engine, scope: Scope) -> None:
        self._engine = engine
        self._namespace = scope.namespace

    async def create(self, lease_id: str = "", labels: Labels | None = None, /) -> Lease:
        """Without an id one is made up. Raises AlreadyExists, InvalidArgument for a keyless label.

        Nothing else is asked of labels.
        """
        if labels and labels.get(""):
            identifiers.validate_label("", labels[""])
        kept = {key: value for key, value in (labels or {}).items() if value}
        lease = Lease(lease_id or _generate(), time.time_ns(), kept)
        row = (self._namespace, lease.id, lease.created_at, marks.dump(kept))

        def command(tx: Transaction) -> None:
            if not tx.execute("INSERT OR IGNORE INTO leases VALUES (?, ?, ?, ?)", row).rowcount:
                raise AlreadyExists(f"lease {quote(lease.id)}")
            tx.touch(self._namespace, graph.node(graph.LEASE, lease.id))
            tx.expires(graph.expiry(kept))

        await self._engine.run(command)
        return lease

    async def delete(self, lease_id: str, /) -> None:
        """Let go of all it holds. Raises NotFound."""

        def command(tx: Transaction) -> None:
            key = (self._namespace, lease_id)
            if not tx.execute("DELETE FROM leases WHERE namespace=? AND id=?", key).rowcount:
                raise NotFound(f"lease {quote(lease_id)}")
            tx.execute("DELETE FROM lease_resources WHERE namespace=? AND lease=?", key)
            tx.deleted()

        await self._engine.run(command)

    async def list(self, filters: Sequence[str] = (), /) -> builtins.list[Lease]:
        """Those that a filter selects, by id. Raises InvalidArgument for a bad filter."""
        selected = marks.parsed(filters)

        def make(row: Row) -> Lease | None:
            lease_id, created_at, labels = row
            if selected and not selected.match(marks.adaptor({"id": lease_id or None}, labels)):
                return None
            return Lease(lease_id, created_at, marks.load(labels))

        sql = "SELECT id, created_at, labels FROM leases WHERE namespace=? ORDER BY id"
        return await self._engine.scan(sql, (self._namespace,), make)

    async def add_resource(self, lease_id: str, resource: Resource, /) -> None:
        """Idempotent. Raises NotFound for the lease, InvalidArgument, Unimplemented for a type."""

        def command(tx: Transaction) -> None:
            self._require(tx, lease_id)
            _check(resource)
            tx.execute(_ADD, (self._namespace, lease_id, resource.type, resource.id))
            tx.touch(self._namespace, graph.resource_node(resource.type, resource.id))

        await self._engine.run(command)

    async def delete_resource(self, lease_id: str, resource: Resource, /) -> None:
        """Idempotent; errors as ``add_resource``."""

        def command(tx: Transaction) -> None:
            self._require(tx, lease_id)
            _check(resource)
            tx.execute(_DROP, (self._namespace, lease_id, resource.type, resource.id))
            tx.deleted()

        await self._engine.run(command)

    async def list_resources(self, lease_id: str, /) -> builtins.list[Resource]:
        """Content, images, ingests, then snapshots. Raises NotFound."""
        if self._engine.one(_EXISTS, (self._namespace, lease_id)) is None:
            raise NotFound(f"lease {quote(lease_id)}")
        return await self._engine.scan(
            "SELECT type, id FROM lease_resources WHERE namespace=? AND lease=? ORDER BY type, id",
            (self._namespace, lease_id),
            lambda row: Resource(id=row[1], type=row[0]),
        )

    def _require(self, tx: Transaction, lease_id: str) -> None:
        if tx.one(_EXISTS, (self._namespace, lease_id)) is None:
            raise NotFound(f"lease {quote(lease_id)}")


def _generate() -> str:
    suffix = base64.urlsafe_b64encode(os.urandom(3)).decode()
    return f"{time.time_ns() % 1_000_000_000}-{suffix}"


def _check(resource: Resource) -> None:
    kind, *rest = resource.type.split("/")
    if kind in ("content", "ingests", "images"):
        if rest:
            raise InvalidArgument(f"invalid resource type {resource.type}")
        if kind == "content" and (reason := digest.fault(resource.id)):
            raise InvalidArgument(f"invalid content resource id {resource.id}: {reason}")
    elif kind == "snapshots":
        if len(rest) != 1:
            raise InvalidArgument(f"invalid snapshot resource type {resource.type}")
    else:
        raise Unimplemented(f"resource type {resource.type} not supported yet")
