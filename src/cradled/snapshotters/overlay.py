"""Async. Snapshots as layers of an overlay (reference, storage.md section 4).

    snapshots/<id>/fs      0755: the upper directory, later a lower one of others
    snapshots/<id>/work    0711: only of active ones

Nothing is mounted here: mounts are handed out for others to make. Where the kernel maps the owners
of layers, a snapshot with the labels of a mapping is handed out mapped, and costs no copy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from cradled.core.mount import Mount
from cradled.core.snapshots import Kind, SnapshotInfo
from cradled.core.values import Labels
from cradled.errors import InvalidArgument
from cradled.snapshotters.directories import DirectorySnapshotter
from cradled.snapshotters.records import Record
from cradled.snapshotters.trees import Trees

UPPERDIR_LABEL = "containerd.io/snapshot/overlay.upperdir"
UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"


class OverlaySnapshotter(DirectorySnapshotter):
    """``mount_options`` are added to every overlay; ``upperdir_label`` has stat tell the path;
    ``slow_chown`` lets clients change the owners of all files where they cannot be mapped."""

    def __init__(
        self,
        root: str,
        *,
        mount_options: Sequence[str] = (),
        upperdir_label: bool = False,
        slow_chown: bool = False,
        sync_remove: bool = False,
        trees: Trees | None = None,
    ) -> None:
        super().__init__(root, sync_remove=sync_remove, trees=trees)
        self._mount_options = tuple(mount_options)
        self._upperdir_label = upperdir_label
        confined = in_user_namespace()
        self._maps_owners = not confined and _kernel() >= (5, 19)
        if not confined:
            self.capabilities += ("rebase",)
        if self._maps_owners:
            self.capabilities += ("remap-ids",)
        if not slow_chown:
            self.capabilities += ("only-remap-ids",)

    def fill(self, path: str, record: Record) -> None:
        os.mkdir(path, 0o700)
        fs = f"{path}/fs"
        os.mkdir(fs)
        os.chmod(fs, 0o755)
        if record.kind == Kind.ACTIVE:
            os.mkdir(f"{path}/work")
            os.chmod(f"{path}/work", 0o711)
        owner = self._owner(record)
        if owner != (os.geteuid(), os.getegid()):
            os.chown(fs, *owner)

    def content(self, id: int) -> str:
        return f"{self._snapshots}/{id}/fs"

    def info_of(self, record: Record) -> SnapshotInfo:
        info = record.info()
        if not self._upperdir_label:
            return info
        return replace(info, labels={**info.labels, UPPERDIR_LABEL: self.content(record.id)})

    def mounts_of(self, record: Record) -> list[Mount]:
        own = self.content(record.id)
        lowers = [self.content(id) for id in self._records.ancestors(record.parent)]
        if not lowers:  # it belongs to whom it was made for
            return [Mount("bind", own, ("ro" if record.kind == Kind.VIEW else "rw", "rbind"))]
        options = self._mapping(record.labels)
        if record.kind == Kind.VIEW and len(lowers) < 2:
            return [Mount("bind", lowers[0], (*options, "ro", "rbind"))]
        if record.kind == Kind.ACTIVE:
            work = f"{self._snapshots}/{record.id}/work"
            options += [f"workdir={work}", f"upperdir={own}"]
        options.append("lowerdir=" + ":".join(lowers))
        return [Mount("overlay", "overlay", (*options, *self._extra_options))]

    def _mapping(self, labels: Labels) -> list[str]:
        named = (("uidmap", UID_MAPPING), ("gidmap", GID_MAPPING))
        if not self._maps_owners:
            return []
        return [f"{word}={labels[label]}" for word, label in named if label in labels]

    @cached_property
    def _extra_options(self) -> tuple[str, ...]:
        extra = self._mount_options
        if in_user_namespace() and _supports_user_xattrs(self.root):
            extra += ("userxattr",)
        if os.path.exists("/sys/module/overlay/parameters/index"):
            extra += ("index=off",)
        return extra

    def _owner(self, record: Record) -> tuple[int, int]:
        """Owner of a new root directory: as mapped, or as the parent's."""
        uid, gid = os.geteuid(), os.getegid()
        if record.parent is not None:
            parent = os.stat(self.content(record.parent))
            uid, gid = parent.st_uid, parent.st_gid
        labels = record.labels
        return _mapped_root(labels, UID_MAPPING, uid), _mapped_root(labels, GID_MAPPING, gid)


def in_user_namespace() -> bool:
    """Whether this process's user IDs are not those of the machine."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def _kernel() -> tuple[int, ...]:
    """The first two numbers of the kernel's release."""
    release = os.uname().release.split("-")[0].split(".")
    return tuple(int(part) for part in release[:2])


def _supports_user_xattrs(path: str) -> bool:
    """overlay's ``userxattr`` needs Linux 5.11 and a file system with attributes for users."""
    if _kernel() < (5, 11):
        return False
    name = "user.overlay.probe"
    try:
        os.setxattr(path, name, b"")
    except OSError:
        return False
    with suppress(OSError):
        os.removexattr(path, name)
    return True


def _mapped_root(labels: Labels, name: str, default: int) -> int:
    """The ID outside of ID 0, by a label ``inside:outside:length[,...]``."""
    if name not in labels:
        return default
    for part in labels[name].split(","):
        try:
            inside, outside, length = (int(number) for number in part.split(":"))
        except ValueError:
            raise InvalidArgument(f'label {name} has a bad mapping "{part}"') from None
        if inside <= 0 < inside + length:
            return outside - inside
    raise InvalidArgument(f"label {name} does not map ID 0")
