"""What is written for operators is true: the page about configuration, the unit for systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from harness.program import PROGRAM, call

from cradled.daemon.config import TIMEOUTS

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/howto/configure.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_are_without_fault(tmp_path: Path, number: int) -> None:
    (tmp_path / "c.toml").write_text(EXAMPLES[number])
    checked = call(tmp_path, "--strict", "config", "check", "c.toml")
    assert (checked.returncode, checked.stdout) == (0, "")


def test_timeouts_that_have_an_effect_are_all_there() -> None:
    inert = {"io.containerd.timeout.bolt.open", "io.containerd.timeout.cri.defercleanup"}
    for name, value in TIMEOUTS.items():
        assert (f'"{name}" = "{value}"' in PAGE) == (name not in inert)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = (REPOSITORY / "contrib/cradled.service").read_text()
    (tmp_path / "cradled.service").write_text(unit.replace("/usr/local/bin/cradled", PROGRAM))
    command = ["systemd-analyze", "verify", str(tmp_path / "cradled.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "cradled.service" in done.stderr) == (0, False), done.stderr
