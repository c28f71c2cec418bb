"""Buffers that are freed are there for the next ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cradled.linux import libc

PROGRAM = """
import resource
from cradled.linux import memory
{call}
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use(): return len([bytearray(1 << 20) for _ in range(4)])
use()
before = faults()
for _ in range(50): use()
print(faults() - before)
"""


def faults(call: str) -> int:
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not hasattr(libc.load(), "mallopt"), reason="a C library without mallopt")
def test_freed_pages_are_used_again() -> None:
    assert faults("memory.own_process(); memory.reuse_buffers()") < 512


def test_a_process_of_others_is_left_as_it_is() -> None:
    assert faults("memory.reuse_buffers()") > 10_000
