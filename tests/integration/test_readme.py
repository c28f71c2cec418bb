"""The README's program runs as it stands there, but for its paths."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import leaks
from harness.images import busybox_image

README = Path(__file__).resolve().parents[2] / "README.md"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs a container: needs root")


def test_eight_lines(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    name = "docker.io/library/busybox:latest"
    busybox_image(name).write_oci_layout(tmp_path / "busybox.tar")
    program = program.replace("/var/lib/mine", f"{tmp_path}/root")
    program = program.replace("/run/mine", f"{tmp_path}/state")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0 hello\n\n", "")
    leaks.assert_settled("readme", str(tmp_path))
