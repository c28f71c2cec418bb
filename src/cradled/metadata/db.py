"""Async. The metadata database: who owns what, over backends that know no owners.

``Database.open`` takes a directory's file and the backends; ``scoped`` gives the stores as one
namespace sees them. Stores are made anew for each call, they hold nothing but references.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cradled import damage, identifiers
from cradled.aio import threads
from cradled.core.content import ContentStore
from cradled.core.events import Publisher
from cradled.core.scope import Scope, is_remote
from cradled.core.snapshots import Snapshotter
from cradled.damage import Damaged
from cradled.errors import InvalidArgument
from cradled.metadata import containers, content, snapshots
from cradled.metadata.backend_names import BackendNames
from cradled.metadata.containers import Containers
from cradled.metadata.content import Content
from cradled.metadata.engine import Engine
from cradled.metadata.gc import Collection
from cradled.metadata.images import Images
from cradled.metadata.janitor import Janitor
from cradled.metadata.leases import Leases
from cradled.metadata.namespaces import Namespaces
from cradled.metadata.snapshots import Snapshots

if TYPE_CHECKING:
    from cradled.metadata.sandboxes import Sandboxes

_log = logging.getLogger(__name__)


class Database:
    """All metadata of one daemon. Made by ``open``; ``aclose`` when done."""

    def __init__(
        self,
        engine: Engine,
        backend: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        isolated: bool,
    ) -> None:
        self.engine = engine
        self.rebuild: damage.Rebuild | None = None
        """What is to be taken in, because the file that knew it is damaged or gone."""
        self.janitor = Janitor(engine, backend, snapshotters)
        self.namespaces = Namespaces(engine, self.janitor)
        names = BackendNames(engine)
        self._content = content.Common(engine, backend, self.janitor, names, isolated)
        self._snapshotters = {
            name: snapshots.Common(name, snapshotter, engine, self.janitor, names)
            for name, snapshotter in snapshotters.items()
        }
        self._sweeper = asyncio.create_task(self.janitor.run(), name="metadata-janitor")

    @classmethod
    async def open(
        cls,
        path: str,
        /,
        *,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        publisher: Publisher | None = None,
        isolated: bool = False,
        durable: bool = True,
    ) -> Database:
        """Open or create the file, and carry on what a crash interrupted.

        ``isolated``: a namespace gets a blob that another has only by sending all its bytes.
        Not ``durable``: a power failure may take what was done last, or the whole file.
        A damaged file is set aside and a new one begun (``damage``); ``repair.rebuild`` then takes
        in what is known otherwise. Raises FailedPrecondition for a file that a newer version wrote.
        """
        is_new = not (os.path.exists(path) and os.stat(path).st_size)
        try:
            engine = Engine(path, publisher, durable=durable)
        except Damaged as error:
            rebuild = damage.set_aside(path, str(error))
            _log.error("%s is damaged: %s; now %s", path, error, rebuild.damaged[-1])
            engine = Engine(path, publisher, durable=durable)
        db = cls(engine, content, snapshotters, isolated)
        try:
            if is_new and await _is_used(content, snapshotters.values()):
                damage.Rebuild.begin(path, damage.MISSING)
            db.rebuild = damage.Rebuild.load(path)
            for common in db._snapshotters.values():
                await snapshots.recover(common)
        except BaseException:
            await db.aclose()
            raise
        return db

    def scoped(self, scope: Scope, /) -> ScopedDatabase:
        """The stores as this namespace sees them, what is made joining the scope's lease."""
        return ScopedDatabase(self, scope)

    async def any_container_with(self, label: str, /) -> bool:
        """Whether a container of any namespace has a label."""
        text = containers.as_stored(label)
        sql = "SELECT labels FROM containers"
        return bool(await self.engine.scan(sql, (), lambda row: True if text in row[0] else None))

    def collection(self) -> Collection:
        """A new garbage collection (see ``gc.scheduler``)."""
        return Collection(self.engine, self.janitor)

    def content_of(self, scope: Scope) -> Content:
        """For ``ScopedDatabase``."""
        return Content(self._content, scope)

    def snapshots_of(self, scope: Scope, name: str) -> Snapshots:
        """For ``ScopedDatabase``."""
        common = self._snapshotters.get(name)
        if common is None:
            raise InvalidArgument(f"snapshotter not loaded: {name}")
        return Snapshots(common, scope)

    async def aclose(self) -> None:
        """Finish the writes that wait and close the file. Idempotent."""
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        await self.engine.aclose()
        if self.engine.has_changed:
            await threads.run("fs", damage.keep_copy, self.engine.path)


class ScopedDatabase:
    """One namespace's stores."""

    def __init__(self, db: Database, scope: Scope) -> None:
        identifiers.validate(scope.namespace)
        self._db = db
        self.scope = scope

    @property
    def containers(self) -> Containers:
        return Containers(self._db.engine, self.scope)

    @property
    def images(self) -> Images:
        return Images(self._db.engine, self.scope)

    @property
    def content(self) -> Content:
        return self._db.content_of(self.scope)

    @property
    def leases(self) -> Leases:
        return Leases(self._db.engine, self.scope)

    @property
    def sandboxes(self) -> Sandboxes:
        from cradled.metadata.sandboxes import Sandboxes  # most daemons never have one

        return Sandboxes(self._db.engine, self.scope)

    def snapshots(self, name: str, /) -> Snapshots:
        """Raises InvalidArgument ``snapshotter not loaded: x``."""
        return self._db.snapshots_of(self.scope, name)


async def _is_used(content: ContentStore, snapshotters: Iterable[Snapshotter]) -> bool:
    """Whether the stores of this process have anything."""
    async for _ in content.walk():
        return True
    for snapshotter in snapshotters:
        if not is_remote(snapshotter):
            async for _ in snapshotter.walk():
                return True
    return False
