"""Async. Reading a tar archive that arrives piece by piece, compressed or not.

The archives that carry images have few entries and much data, so headers are parsed on the loop
and data is passed on in big pieces, never copied twice. Inflating happens in a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from cradled.aio import threads
from cradled.archive import decompress, tar
from cradled.archive.errors import ArchiveError
from cradled.errors import InvalidArgument

PIECE = 1 << 20
"""Bytes in which an entry's data is handed on."""

_BLOCK = tar.BLOCK
_SNIFFED = 4
_METADATA = frozenset(b"xgLK")
_ZERO = bytes(_BLOCK)


class Source:
    """Bytes that arrive in pieces of any size, taken in the lengths that are wanted."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0

    async def piece(self, most: int) -> bytes:
        """At least one byte, at most ``most``; none at the end."""
        if self._at == len(self._chunk):
            self._chunk, self._at = await self._receive(), 0
        start, chunk = self._at, self._chunk
        self._at = min(start + most, len(chunk))
        return chunk[start : self._at]

    async def take(self, length: int) -> bytes:
        """``length`` bytes; fewer only at the end."""
        pieces: list[bytes] = []
        while length and (piece := await self.piece(length)):
            pieces.append(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def peek(self, length: int) -> bytes:
        """The first ``length`` bytes, fewer at the end, without taking them."""
        self._chunk, self._at = self._chunk[self._at :], 0
        while len(self._chunk) < length and (more := await self._receive()):
            self._chunk += more
        return self._chunk[:length]

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> bytes:
        if piece := await self.piece(PIECE):
            return piece
        raise StopAsyncIteration

    async def _receive(self) -> bytes:
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""


class Archive:
    """Entries of a tar stream. ``next``, then ``pieces`` or ``read`` for what is in the entry.

    Errors in the archive raise InvalidArgument.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0
        self._padding = 0

    async def next(self) -> tar.Entry | None:
        """The next entry, None at the end of the archive; what was not read is passed over."""
        async for _ in self.pieces():
            pass
        await self._source.take(self._padding)
        header = await self._headers()
        if not header:
            return None
        try:
            entry = tar.TarReader((header,)).next()
        except ArchiveError as error:
            raise InvalidArgument(f"image archive: {error}") from error
        if entry is None:
            return None
        if entry.sparse is not None:
            raise InvalidArgument("image archive: a sparse file")
        has_data = entry.kind == tar.REGULAR
        self._left = entry.size if has_data else 0
        self._padding = -self._left % _BLOCK
        return entry

    async def pieces(self) -> AsyncIterator[bytes]:
        """What is left of the current entry's data, in pieces of ``PIECE``."""
        while self._left:
            piece = await self._source.take(min(self._left, PIECE))
            if not piece:
                raise InvalidArgument("image archive: unexpected EOF")
            self._left -= len(piece)
            yield piece

    async def read(self, limit: int) -> bytes:
        """All that is left of the current entry; more than ``limit`` bytes are refused."""
        if self._left > limit:
            raise InvalidArgument(f"image archive: a document of {self._left} bytes")
        return b"".join([piece async for piece in self.pieces()])

    async def drain(self) -> None:
        """Read what follows the archive's end."""
        async for _ in self._source:
            pass

    async def _headers(self) -> bytes:
        """The header block of an entry and what belongs to it before the data."""
        gathered = b""
        while True:
            block = await self._source.take(_BLOCK)
            if len(block) < _BLOCK or block == _ZERO:
                if block and block != _ZERO:
                    raise InvalidArgument("image archive: unexpected EOF")
                return b""
            gathered += block
            if block[156] not in _METADATA:
                return gathered
            size = _metadata_size(block)
            gathered += await self._source.take(size + -size % _BLOCK)


async def open_archive(chunks: AsyncIterator[bytes]) -> Archive:
    """The archive in a stream of bytes, whose compression its first bytes tell."""
    source = Source(chunks)
    kind = decompress.compression(await source.peek(_SNIFFED))
    if kind:
        source = Source(_inflated(source, kind))
    return Archive(source)


def _metadata_size(block: bytes) -> int:
    digits = block[124:136].strip(b" \0")
    if not digits.isdigit() or int(digits, 8) > tar.METADATA_LIMIT:
        raise InvalidArgument("image archive: an oversized header")
    return int(digits, 8)


async def _inflated(source: Source, kind: str) -> AsyncIterator[bytes]:
    """Members (frames) one after the other, as ``archive.decompress`` takes them."""
    form = decompress.format_of(kind)
    while data := await source.piece(PIECE):
        while data:
            data = await _whole_start(source, form, data)
            decoder = form.decoder()
            while True:
                try:
                    block = await threads.run("bulk", decoder.decompress, data, PIECE)
                except form.failure as error:
                    raise InvalidArgument(f"image archive: {kind}: {error}") from error
                if block:
                    yield block
                if decoder.eof:
                    break
                data = b""
                if decoder.needs_input and not (data := await source.piece(PIECE)):
                    raise InvalidArgument("image archive: unexpected EOF")
            data = decoder.unused_data


async def _whole_start(source: Source, form: decompress.Format, data: bytes) -> bytes:
    """``data`` and as much more as makes up the start of a member."""
    while len(data) < _SNIFFED or not form.is_started(data):
        more = await source.piece(PIECE) if len(data) < tar.METADATA_LIMIT else b""
        if not more:
            raise InvalidArgument(f"image archive: {form.kind}: broken header")
        data += more
    if decompress.compression(data) != form.kind:
        raise InvalidArgument(f"image archive: {form.kind}: invalid header")
    return data
