"""Async. Checkpoints: where a request wants one written or read, and blobs made of them.

A checkpoint is a directory that criu writes and reads. A client may name one; otherwise it is kept
as two blobs of the content store, a tar of the directory and the spec. A directory unpacked from
such a blob lies in the task's work directory until the task has started from it.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from cradled.aio import threads
from cradled.api import runc_options_pb2 as pb
from cradled.convert.values import any_to_proto
from cradled.core.content import ContentStore
from cradled.core.diff import Applier, Comparer, DiffOptions
from cradled.core.mount import Mount
from cradled.core.scope import Scope, bound
from cradled.core.tasks import CreateTask
from cradled.core.values import AnyValue, Descriptor
from cradled.errors import AlreadyExists, Error, InvalidArgument, quote

CRIU_TAR = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
SPEC = "application/vnd.containerd.container.checkpoint.config.v1+proto"
RESTORE_FROM_PATH = "RestoreFromPath"
"""Annotation of a checkpoint's descriptor: the directory itself; the task is started at once."""

_TAR = "application/vnd.oci.image.layer.v1.tar"  # by what name differs know a plain tar
_RUNC = "io.containerd.runc"


class Restore(NamedTuple):
    """What a task starts from: a directory, or a blob to be unpacked to one; neither: anew."""

    path: str = ""
    blob: Descriptor | None = None
    at_once: bool = False


class Differ(Applier, Comparer, Protocol):
    """What packs and unpacks."""


class Checkpoints:
    """``content`` is what holds a scope's blobs."""

    def __init__(self, differ: Differ, content: Callable[[Scope], ContentStore]) -> None:
        self._differ = differ
        self._content = content

    async def unpack(self, scope: Scope, blob: Descriptor, directory: str) -> None:
        """Unpack a blob into a new directory. Raises NotFound, Error for a bad archive."""
        reader = await self._content(scope).open(blob.digest)
        try:
            await threads.run("fs", os.mkdir, directory, 0o700)
            tar = Descriptor(_TAR, blob.digest, blob.size)
            await bound(self._differ, scope).apply(tar, reader, _at(directory, "rw"))
        finally:
            reader.close()

    async def pack(self, scope: Scope, directory: str, spec: AnyValue | None) -> list[Descriptor]:
        """Make blobs of a directory and of a spec, without labels: a lease has to keep them."""
        content = self._content(scope)
        differ = bound(self._differ, scope)
        made = await differ.compare((), _at(directory, "ro"), content, DiffOptions(_TAR))
        message = any_to_proto(spec if spec is not None else AnyValue(""))
        kept = await _write(content, SPEC, message.SerializeToString())
        return [Descriptor(CRIU_TAR, made.digest, made.size), kept]


def restore_of(request: CreateTask, runtime: str) -> Restore:
    """What a request wants its task to start from.

    Raises Error for options or a blob of a wrong type.
    """
    options = _decoded(request.options, pb.Options, runtime, "create")
    path = "" if options is None else options.criu_image_path
    checkpoint = request.checkpoint
    if path or checkpoint is None:
        return Restore(path)
    given = checkpoint.annotations.get(RESTORE_FROM_PATH, "")
    if given:
        return Restore(given, at_once=True)
    if checkpoint.media_type != CRIU_TAR:
        raise Error(f"unsupported checkpoint type {quote(checkpoint.media_type)}")
    return Restore(blob=checkpoint)


def image_path(options: AnyValue | None, runtime: str) -> str:
    """Where a checkpoint is to be written; empty where it is to become blobs. Raises Error."""
    found = _decoded(options, pb.CheckpointOptions, runtime, "checkpoint")
    return "" if found is None else str(found.image_path)


def _decoded(options: AnyValue | None, kind: Any, runtime: str, what: str) -> Any:
    """Options of runc's kind of runtimes; None for those of others, which only they read."""
    if options is None or not options.type_url:
        return None
    if options.type_url.rpartition("/")[2] != kind.DESCRIPTOR.full_name:
        if runtime.startswith(_RUNC):
            raise Error(f"invalid task {what} option for {runtime}")
        return None
    try:
        return kind.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"task {what} options: {error}") from None


def _at(directory: str, how: str) -> Sequence[Mount]:
    return (Mount("bind", directory, ("rbind", how)),)


async def _write(content: ContentStore, media_type: str, data: bytes) -> Descriptor:
    """A small blob; one that is there already will do."""
    random = base64.urlsafe_b64encode(os.urandom(3)).decode()
    writer = await content.writer(f"{time.time_ns()}-{random}")
    try:
        await writer.write(data)
        digest = writer.digest()
        with suppress(AlreadyExists):
            await writer.commit(len(data), digest, {})
    finally:
        await writer.close()
    return Descriptor(media_type, digest, len(data))
