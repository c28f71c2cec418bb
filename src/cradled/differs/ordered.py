"""Async. Several differs as one: each is asked in turn until one knows how."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from cradled.core.content import ContentStore, Reader
from cradled.core.diff import Applier, Comparer, DiffOptions
from cradled.core.mount import Mount
from cradled.core.scope import Scope, bound
from cradled.core.values import AnyValue, Descriptor
from cradled.errors import Unimplemented


class Differ(Applier, Comparer, Protocol):
    """What can do both."""


class OrderedDiffers:
    """Implements core.diff.Applier and core.diff.Comparer. A differ that raises Unimplemented
    passes the request on to the next; the last one's error is told. ``sync_fs``: always make what
    was applied durable."""

    def __init__(self, differs: Sequence[Differ], *, sync_fs: bool = False) -> None:
        self._differs = differs
        self._sync_fs = sync_fs

    @property
    def first(self) -> Differ | None:
        """The one that is asked first."""
        return self._differs[0] if self._differs else None

    def bind(self, scope: Scope, /) -> OrderedDiffers:
        """The same on behalf of a namespace."""
        differs = [bound(differ, scope) for differ in self._differs]
        return OrderedDiffers(differs, sync_fs=self._sync_fs)

    async def apply(
        self,
        layer: Descriptor,
        blob: Reader,
        mounts: Sequence[Mount],
        /,
        *,
        payloads: Mapping[str, AnyValue] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        sync = sync_fs or self._sync_fs
        return await self._first(
            lambda differ: differ.apply(layer, blob, mounts, payloads=payloads, sync_fs=sync)
        )

    async def compare(
        self,
        left: Sequence[Mount],
        right: Sequence[Mount],
        content: ContentStore,
        options: DiffOptions,
        /,
    ) -> Descriptor:
        return await self._first(lambda differ: differ.compare(left, right, content, options))

    async def _first(self, ask: Callable[[Differ], Awaitable[Descriptor]]) -> Descriptor:
        refusal = Unimplemented("no differ")
        for differ in self._differs:
            try:
                return await ask(differ)
            except Unimplemented as error:
                refusal = error
        raise refusal
