"""What the daemon has loaded before its first request: time and memory that everybody pays for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOOT = """
import os, signal, sys
from cradled.daemon import notify

def report(*states):
    if "READY=1" in states:
        print(*sorted(sys.modules))
        os.kill(os.getpid(), signal.SIGTERM)

notify.notify = report
from cradled.daemon.__main__ import main
sys.exit(main())
"""

FOREIGN = set(
    """
    abc array ast asyncio atexit base64 binascii bisect builtins calendar codecs collections
    concurrent contextlib contextvars copy copyreg cython_runtime dataclasses datetime dis encodings
    enum errno faulthandler fcntl functools gc genericpath google hashlib heapq importlib inspect io
    itertools json keyword linecache locale logging marshal math numbers opcode operator os pickle
    posix posixpath queue re reprlib resource select selectors signal site socket sqlite3 ssl stat
    string struct subprocess sys textwrap threading time token tokenize traceback types typing
    uvloop warnings weakref zipimport zlib
    """.split()  # noqa: SIM905 - a list to read
)
"""Modules of others, without those that begin with an underscore."""

OF_THE_SYSTEM = {"sitecustomize", "usercustomize"}
"""What a distribution has every interpreter import."""

ROOMS_OF_FIRST_USE = (
    "cradled.archive",
    "cradled.cli",
    "cradled.client",
    "cradled.oci",
    "cradled.proxies",
    "cradled.services",
    "cradled.transfer",
    "cradled.differs",
    "cradled.shim",
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    directory = tmp_path_factory.mktemp("boot")
    flags = [f"--root={directory}/r", f"--state={directory}/s", f"--address={directory}/a"]
    done = subprocess.run(
        [sys.executable, "-c", BOOT, *flags], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_nothing_foreign_has_crept_in(loaded: set[str]) -> None:
    tops = {name.partition(".")[0] for name in loaded}
    tops = {name for name in tops if not name.startswith("_") and name != "cradled"}
    installed = {path.stem for path in Path(sys.prefix).rglob("*.pth")}
    assert tops - FOREIGN - OF_THE_SYSTEM - installed == set()


def test_rooms_of_first_use_are_not_loaded(loaded: set[str]) -> None:
    early = {name for name in loaded if name.startswith(tuple(f"{r}." for r in ROOMS_OF_FIRST_USE))}
    assert early == set()
