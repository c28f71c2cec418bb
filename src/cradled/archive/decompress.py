"""Blocking. A layer's bytes, decompressed and hashed in a thread while the caller works on them.

``LayerStream`` reads a descriptor and yields blocks of the uncompressed stream. Reading, inflating
and hashing release the GIL, so they run beside the caller's own work on another core; at most
``QUEUE`` blocks wait. The formats are told apart by their first bytes: gzip (any number of
members), zstd (any number of frames), else the bytes as they are.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from cradled.archive.errors import CompressionError, Truncated

if TYPE_CHECKING:
    from typing import Self

READ = 256 * 1024
BLOCK = 256 * 1024  # stays in the core's cache between inflating, hashing and writing
QUEUE = 16
_MAX_HEADER = 1 << 20
_ZSTD_WINDOW_LOG = 27  # 128 MiB: what the zstd program accepts by default

Read = Callable[[int], bytes]


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def positional(fd: int, start: int = 0) -> Read:
    """Read a file from ``start`` on without moving the position its descriptor shares."""
    at = start

    def read(length: int) -> bytes:
        nonlocal at
        data = os.pread(fd, length, at)
        at += len(data)
        return data

    return read


def sequential(fd: int) -> Read:
    """Read a pipe or socket."""
    return lambda length: os.read(fd, length)


def compression(start: bytes) -> str:
    """``gzip``, ``zstd`` or nothing, by the first bytes of a stream."""
    if start[:3] == b"\x1f\x8b\x08":
        return "gzip"
    if start[:4] == b"\x28\xb5\x2f\xfd" or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        return "zstd"
    return ""


def uncompressed(read: Read, *, sniff: bool = True) -> Iterator[bytes]:
    """The uncompressed bytes behind ``read``; without ``sniff`` they are taken as they are."""
    start = read(READ)
    while sniff and 0 < len(start) < 4 and (more := read(READ)):
        start += more
    kind = compression(start) if sniff else ""
    return _decode(format_of(kind), start, read) if kind else _plain(start, read)


def load() -> None:
    """Import the decompressors, which otherwise are imported by the first layer that needs one."""
    _gzip()
    _zstd()


def _plain(data: bytes, read: Read) -> Iterator[bytes]:
    while data:
        yield data
        data = read(READ)


class Format(NamedTuple):
    """How to take a compressed stream apart: a decoder for each member (frame) of it."""

    kind: str
    decoder: Callable[[], _Decoder]
    failure: type[Exception]
    is_started: Callable[[bytes], bool]
    """Whether these bytes hold enough of a member's start for the decoder to begin with."""


def format_of(kind: str) -> Format:
    """For ``gzip`` or ``zstd``."""
    return _gzip() if kind == "gzip" else _zstd()


def _decode(form: Format, data: bytes, read: Read) -> Iterator[bytes]:
    """Members (frames) one after the other; anything else behind one is an error, even zeros."""
    while data:
        data = _whole_start(form, data, read)
        decoder = form.decoder()
        while True:
            try:
                block = decoder.decompress(data, BLOCK)
            except form.failure as error:
                raise CompressionError(f"{form.kind}: {error}") from None
            if block:
                yield block
            if decoder.eof:
                break
            data = b""
            if decoder.needs_input and not (data := read(READ)):
                raise Truncated(f"{form.kind} stream")
        data = decoder.unused_data or read(READ)


def _whole_start(form: Format, data: bytes, read: Read) -> bytes:
    """``data`` and as much more as makes up the start of a member."""
    while len(data) < 4 and (more := read(READ)):
        data += more
    if compression(data) != form.kind:
        raise CompressionError(f"{form.kind}: invalid header")
    while not form.is_started(data):
        more = read(READ)
        if not more:
            raise Truncated(f"{form.kind} header")
        data += more
        if len(data) > _MAX_HEADER:
            raise CompressionError(f"{form.kind}: invalid header")
    return data


def _gzip() -> Format:
    from isal import igzip_lib

    # IsalError is a class; the package's stubs call it an instance.
    failure = cast("type[Exception]", igzip_lib.IsalError)
    decoder = partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_GZIP)
    return Format("gzip", decoder, failure, _holds_gzip_header)


def _holds_gzip_header(data: bytes) -> bool:
    """Whether a header is there to its last byte (RFC 1952): cut in the middle of its optional
    fields, isal takes what follows for compressed data."""
    if len(data) < 10:
        return False
    flags, at = data[3], 10
    if flags & 4:  # extra field
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for text in (8, 16):  # name, comment
        if flags & text:
            at = data.find(b"\0", at) + 1
            if not at:
                return False
    if flags & 2:  # checksum
        at += 2
    return len(data) >= at


def _zstd() -> Format:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    decoder = partial(zstd.ZstdDecompressor, options=options)
    return Format("zstd", decoder, zstd.ZstdError, lambda data: True)


class LayerStream:
    """Blocks of a layer's uncompressed stream; ``digest`` and ``size`` of all of it at the end.

    A context manager: leaving it ends the thread, wherever the reading stands. What goes wrong in
    the thread is raised by the iteration. In nanoseconds: ``began`` and ``ended`` are when the
    thread did, by the monotonic clock; ``busy`` is its processor time, ``waited`` what readers
    waited for it.
    """

    def __init__(self, read: Read, *, sniff: bool = True) -> None:
        self.size = 0
        self.began = self.ended = self.busy = self.waited = 0
        self._hash = hashlib.sha256()
        self._read = read
        self._sniff = sniff
        self._blocks: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._room = threading.Semaphore(QUEUE)
        self._stopped = False
        self._end: BaseException | None = None  # StopIteration, or what went wrong
        self._thread = threading.Thread(target=self._produce, name="inflate", daemon=True)

    @property
    def digest(self) -> str:
        """Digest of what was yielded; of the whole stream once the iteration has ended."""
        return f"sha256:{self._hash.hexdigest()}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped = True
        self._room.release()
        self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._end is None:
            asked = time.monotonic_ns()
            block = self._blocks.get()
            self.waited += time.monotonic_ns() - asked
            self._room.release()
            if isinstance(block, bytes):
                return block
            self._end = block
        raise self._end

    def drain(self) -> None:
        """Read to the end, so that digest and size are those of the whole stream."""
        for _ in self:
            pass

    def _produce(self) -> None:
        end: BaseException = StopIteration()
        self.began = time.monotonic_ns()
        try:
            for block in _gathered(uncompressed(self._read, sniff=self._sniff)):
                self._hash.update(block)
                self.size += len(block)
                self._room.acquire()
                if self._stopped:
                    return
                self._blocks.put(block)
        except BaseException as error:  # raised again where the blocks are read
            end = error
        self.busy = time.thread_time_ns()
        self.ended = time.monotonic_ns()
        self._blocks.put(end)


def _gathered(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Join small blocks: some writers make a gzip member of every file."""
    small: list[bytes] = []
    waiting = 0
    for block in blocks:
        if len(block) >= BLOCK // 4 and not small:
            yield block
            continue
        small.append(block)
        waiting += len(block)
        if waiting >= BLOCK // 4:
            yield b"".join(small)
            small.clear()
            waiting = 0
    if small:
        yield b"".join(small)
