"""What a program prints, kept in memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from cradled.linux import capture


@pytest.fixture
def memory() -> Iterator[int]:
    fd = capture.memory()
    yield fd
    os.close(fd)


def test_what_was_written_is_read(memory: int) -> None:
    assert capture.printed(memory) == b""
    subprocess.run(["sh", "-c", "echo one; echo two >&2"], stdout=memory, stderr=memory, check=True)
    assert capture.printed(memory) == b"one\ntwo\n"


def test_it_does_not_grow_for_ever(memory: int) -> None:
    done = subprocess.run(["yes"], stdout=memory, stderr=subprocess.PIPE, check=False, timeout=20)
    assert done.returncode == 1
    printed = capture.printed(memory)
    assert capture.SIZE // 2 < len(printed) <= capture.SIZE
    assert set(printed) == set(b"y\n")
    assert os.fstat(memory).st_size == capture.SIZE


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", ""),
        (b" a\n\tb \r\n", "a b"),
        (b"\x1b[31mred\x07", "\ufffd[31mred\ufffd"),
        (b"\xff", "\ufffd"),
        ("ü".encode(), "ü"),
        (b"x" * 5000, "x" * 4096),
    ],
)
def test_one_line(text: bytes, line: str) -> None:
    assert capture.line(text) == line
