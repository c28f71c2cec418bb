"""Blocking. Copies of what a daemon knows, made while it works, and putting one back.

A backup is a tar file:

    backup.json                    {"form": 1, "date", "version", "files": {member: {"sha256"}}}
    metadata/meta.db               the metadata; see ``metadata.schema``
    snapshotters/<name>/metadata.db    which directory is which snapshot

Each database is copied in one state, whoever writes to it meanwhile; the metadata first, so that
what it names was there. Blobs and file systems are not in it: they do not change, and are found by
what is. Putting one back sets aside what is there, and has the next start take in what the backup
does not know (``rebuild``): what was made later is not lost, and not collected either.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
import time
from contextlib import closing

from cradled import damage
from cradled.damage import Damaged, Rebuild
from cradled.errors import Error, NotFound
from cradled.linux import fs
from cradled.repair import ground as grounds
from cradled.repair.ground import Ground
from cradled.version import VERSION

FORM = 1
_INDEX = "backup.json"
_LIMIT = 1 << 20  # bytes of an index


def write(ground: Ground, path: str) -> int:
    """Make a backup; returns its bytes. Raises Error, OSError; the file is whole or not there."""
    files = _files(ground)
    if not os.path.exists(ground.metadata):
        raise NotFound(f"metadata {ground.metadata}")
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(path))) as directory:
        copies: dict[str, str] = {}
        for member, source in files.items():
            if os.path.exists(source):
                copies[member] = f"{directory}/{len(copies)}"
                _copy(source, copies[member])
        made = f"{directory}/backup"
        _pack(made, copies)
        size = os.stat(made).st_size
        os.rename(made, path)
        fs.sync_directory(os.path.dirname(os.path.abspath(path)))
    return size


def restore(ground: Ground, path: str) -> list[str]:
    """Put the databases of a backup in place; returns their paths. No daemon may be running.

    Raises Error for a file that is no backup, before anything is changed.
    """
    files = _files(ground)
    os.makedirs(os.path.dirname(ground.metadata), mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(ground.metadata)) as directory:
        found = _unpack(path, directory)
        reason = f"a backup of {found.date} was put back"
        if "metadata/meta.db" not in found.members:
            raise Error(f"{path} has no metadata")
        done = []
        for member, copy in sorted(found.members.items(), reverse=True):  # the metadata last
            target = files.get(member)
            if target is not None and os.path.isdir(os.path.dirname(target)):
                damage.set_aside(target, reason)
                Rebuild.begin(target, reason)
                os.rename(copy, target)
                fs.sync_directory(os.path.dirname(target))
                done.append(target)
    return done


class _Found:
    def __init__(self, date: str, members: dict[str, str]) -> None:
        self.date = date
        self.members = members


def _files(ground: Ground) -> dict[str, str]:
    files = {"metadata/meta.db": ground.metadata}
    for name, root in ground.snapshotters.items():
        files[f"snapshotters/{name}/metadata.db"] = f"{root}/metadata.db"
    return files


def _copy(source: str, target: str) -> None:
    """One state of a database, in one file."""
    try:
        with closing(damage.reader(source)) as there, closing(sqlite3.connect(target)) as here:
            there.backup(here)
            here.execute("PRAGMA journal_mode=DELETE")
            grounds.check(here)
    except (Damaged, sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise Error(f"{source} is damaged: {error}; see `cradle fsck`") from error


def _pack(path: str, copies: dict[str, str]) -> None:
    index = {
        "form": FORM,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": VERSION,
        "files": {member: {"sha256": _digest(copy)} for member, copy in copies.items()},
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            data = json.dumps(index, indent=1).encode()
            info = tarfile.TarInfo(_INDEX)
            info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
            tar.addfile(info, io.BytesIO(data))
            for member, copy in copies.items():
                tar.add(copy, member)
        file.flush()
        os.fsync(file.fileno())


def _unpack(path: str, directory: str) -> _Found:
    """The members that the index names, checked. Raises Error."""
    try:
        with tarfile.open(path) as tar:
            first = tar.next()
            if first is None or first.name != _INDEX or first.size > _LIMIT:
                raise Error(f"{path} is no backup")
            index = json.loads(_extracted(tar, first).read())
            if index["form"] != FORM:
                raise Error(f"{path} has form {index['form']}; this version knows {FORM}")
            members = {}
            for number, (member, told) in enumerate(index["files"].items()):
                copy = f"{directory}/{number}"
                with open(copy, "xb") as file:
                    source = _extracted(tar, tar.getmember(member))
                    while chunk := source.read(1 << 20):
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                if _digest(copy) != told["sha256"]:
                    raise Error(f"{path} is damaged: {member} is not what it was")
                members[str(member)] = copy
            return _Found(str(index["date"]), members)
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(f"{path} is no backup: {error}") from error


def _extracted(tar: tarfile.TarFile, info: tarfile.TarInfo) -> io.BufferedReader:
    file = tar.extractfile(info)
    if file is None:
        raise Error(f"{info.name} in the backup is no file")
    return file  # type: ignore[return-value]


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
