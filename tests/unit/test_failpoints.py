"""Failpoints: armed in this process by a callable, in others by a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cradled import failpoints

PROGRAM = """
from cradled import failpoints
failpoints.hit("other")
failpoints.hit("here")
print("passed")
"""


def run(directory: Path | None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != failpoints.VARIABLE}
    if directory is not None:
        env[failpoints.VARIABLE] = str(directory)
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_file_ends_one_process_at_its_point(tmp_path: Path) -> None:
    (tmp_path / "here").write_text(str(int(signal.SIGKILL)))
    first = run(tmp_path)
    assert (first.returncode, first.stdout) == (-signal.SIGKILL, "")
    (taken,) = tmp_path.iterdir()
    assert taken.name.startswith("here.")
    assert run(tmp_path).stdout == "passed\n"


def test_without_the_variable_no_file_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("9")
    assert run(None).stdout == "passed\n"


def test_a_stopped_process_goes_on(tmp_path: Path) -> None:
    (tmp_path / "here").write_text(str(int(signal.SIGSTOP)))
    env = {**os.environ, failpoints.VARIABLE: str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE
    ) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert [path.name for path in tmp_path.iterdir()] == [f"here.{process.pid}"]
        process.send_signal(signal.SIGCONT)
        assert process.communicate() == (b"passed\n", None)


def test_a_callable_is_called_while_it_is_armed() -> None:
    called: list[str] = []
    with failpoints.armed("here", lambda: called.append("here")):
        failpoints.hit("here")
        failpoints.hit("other")
    failpoints.hit("here")
    assert called == ["here"]


def test_an_error_at_a_point_disarms_it() -> None:
    def fail() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"), failpoints.armed("here", fail):
        failpoints.hit("here")
    failpoints.hit("here")
