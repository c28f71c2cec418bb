"""Blocking. A layer's bytes, hashed, compressed and sent off in a thread beside the one that
makes them; what ``cradled.archive.decompress`` undoes.

Hashing, compressing and writing release the GIL. At most ``QUEUE`` blocks wait.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from cradled.linux.fs import write_all

if TYPE_CHECKING:
    from typing import Self

BLOCK = 256 * 1024
QUEUE = 16
_GZIP_LEVEL = 3
_GZIP_WINDOW = 31  # 32 KiB, in the gzip format: neither name nor time in the header


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class LayerSink:
    """Takes a stream and writes it to ``fd``; ``kind`` is ``gzip``, ``zstd`` or nothing.

    A context manager: leaving it waits for all that was given, or drops it when the block raises.
    ``digest`` and ``size`` are then those of the uncompressed stream.
    """

    def __init__(self, fd: int, kind: str) -> None:
        self.size = 0
        self._fd = fd
        self._hash = hashlib.sha256()
        self._encoder = _encoder(kind)
        self._gathered: list[bytes] = []
        self._waiting = 0
        self._blocks: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = threading.Semaphore(QUEUE)
        self._error: BaseException | None = None
        self._dropped = False
        self._thread = threading.Thread(target=self._consume, name="deflate", daemon=True)

    @property
    def digest(self) -> str:
        """Digest of the uncompressed stream."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Take more of the stream. Raises what went wrong in the thread, once it has."""
        self._gathered.append(data)
        self._waiting += len(data)
        if self._waiting >= BLOCK:
            self._pass_on()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dropped = error is not None
        try:
            if error is None:
                self._pass_on()
        finally:
            self._blocks.put(None)
            self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _pass_on(self) -> None:
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._blocks.put(b"".join(self._gathered))
        self._gathered.clear()
        self._waiting = 0

    def _consume(self) -> None:
        while (block := self._blocks.get()) is not None:
            if self._error is None and not self._dropped:
                self._take(block)
            self._room.release()
        if self._error is None and not self._dropped:
            self._end()

    def _take(self, block: bytes) -> None:
        try:
            self._hash.update(block)
            self.size += len(block)
            write_all(self._fd, self._encoder.compress(block) if self._encoder else block)
        except BaseException as error:  # raised where the blocks are made
            self._error = error

    def _end(self) -> None:
        try:
            if self._encoder:
                write_all(self._fd, self._encoder.flush())
        except BaseException as error:
            self._error = error


def load() -> None:
    """Import the compressors, which otherwise are imported by the first layer that needs one."""
    _gzip()
    _zstd()


def _encoder(kind: str) -> _Encoder | None:
    makers = {"gzip": _gzip, "zstd": _zstd}
    return makers[kind]() if kind else None


def _gzip() -> _Encoder:
    from isal import isal_zlib

    encoder: _Encoder = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW)
    return encoder


def _zstd() -> _Encoder:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    encoder: _Encoder = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    return encoder
