"""Blocking. Unpacking a layer before the layers below it are there, so that all go at once.

``ApartUnpacker`` writes an overlay's upper directory and asks nothing of what lies below; what it
could only guess it leaves to ``settle``: the attributes of directories that the layer goes through
without listing them. What cannot be done at all without the layers below raises ``LowersNeeded``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import NoReturn

from cradled.archive.overlay import LowersNeeded, OverlayUnpacker
from cradled.linux.rooted import Directory


class ApartUnpacker(OverlayUnpacker):
    """Overlay rules for an empty upper directory over layers that are not known.

    ``open`` has, outermost first, the directories whose attributes ``settle`` has to find.
    """

    def __init__(self, root: str, *, devices: bool = True) -> None:
        super().__init__(root, devices=devices)
        self._below: set[bytes] = set()

    @property
    def open(self) -> list[bytes]:
        return [path for path in self.implied if path in self._below]

    def hide_all(self, directory: Directory) -> None:
        if not directory.path:
            raise LowersNeeded("an opaque root")
        super().hide_all(directory)

    def make_implied(self, parent: Directory, name: bytes) -> None:
        super().make_implied(parent, name)
        path = parent.below(name)
        if not any(path == hidden or path.startswith(hidden + b"/") for hidden in self._opaque):
            self._below.add(path)

    def source_missing(self, error: OSError) -> NoReturn:
        raise LowersNeeded("a hard link to a lower layer") from error


def settle(upper: str, lowers: Sequence[str], paths: Iterable[bytes]) -> None:
    """Give directories of a finished upper directory the attributes they have in ``lowers``.

    Raises LowersNeeded when one of them is a symbolic link there: then the layer's files belong
    elsewhere.
    """
    with closing(_Settler(upper, lowers)) as settler:
        for path in paths:
            settler.settle(path)
        settler.finish()


class _Settler(OverlayUnpacker):
    def settle(self, path: bytes) -> None:
        model = self._nearest_below(path)
        if model is None:
            return
        above, _, name = path.rpartition(b"/")
        try:
            parent = self.tree.directory(above)
            if parent.path == above:
                self._copy_attributes(model, parent, name)
        except OSError as error:
            # The layer itself took it away afterwards, or put something else there.
            if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                raise

    def finish(self) -> None:
        self._set_directory_times()
