"""Fuzzing: how many examples, and the cases that are kept.

``tests/fuzz/corpus/<parser>/`` holds a file for each case that was constructed or found; every run
replays them all. A case that hypothesis finds is worth a file once its fault is mended. In the
environment ``FUZZ_EXAMPLES`` asks for more examples than a test's own number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1] / "fuzz" / "corpus"


def fuzz(count: int) -> Any:
    """Settings of a fuzzer of ``count`` examples."""
    more = int(os.environ.get("FUZZ_EXAMPLES", "0"))
    return settings(max_examples=max(count, more), deadline=None)


def cases(parser: str) -> list[Path]:
    """The files of a parser's corpus, of which there are some."""
    found = sorted((ROOT / parser).iterdir())
    assert found
    return found


def replay(parser: str) -> Callable[..., Any]:
    """Give a test, as ``data``, the bytes of each file of a corpus."""
    params = [pytest.param(path.read_bytes(), id=path.stem) for path in cases(parser)]
    return pytest.mark.parametrize("data", params)
