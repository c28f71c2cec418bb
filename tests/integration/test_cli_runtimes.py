"""``cradle run --runtime``: another OCI runtime, another shim, and none that there is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from harness.cradle import Cradle
from harness.pairings import GO_SHIM

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs containers: needs root")

IMAGE = "busybox:test"


def test_another_oci_runtime(cradle: Cradle, tmp_path: Path) -> None:
    runtime = tmp_path / "my-runc"
    runtime.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\nexec runc "$@"\n')
    runtime.chmod(0o755)
    done = cradle.run("run", "--rm", "--runtime", str(runtime), IMAGE, "sh", "-c", "echo x; exit 4")
    assert (done.stdout, done.returncode) == ("x\n", 4)
    assert " create " in (tmp_path / "asked").read_text()


@pytest.mark.skipif(shutil.which(GO_SHIM) is None, reason="needs containerd's runc shim")
def test_another_shim(cradle: Cradle) -> None:
    shim = shutil.which(GO_SHIM) or ""
    cradle.ok("run", "-d", "--name", "box", "--runtime", shim, IMAGE, "sleep", "1000")
    (bundle,) = cradle.daemon.state.glob("io.containerd.runtime.v2.task/*/box")
    assert (bundle / "shim-binary-path").read_text() == shim
    assert cradle.ok("exec", "box", "echo", "here") == "here\n"


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ("no-such-runtime", 'exec: "no-such-runtime": executable file not found in $PATH'),
        ("/no/such/runtime", "fork/exec /no/such/runtime: no such file or directory"),
        ("io.containerd.absent.v9", "containerd-shim-absent-v9"),
        ("/no/containerd-shim-odd-v1", "invalid custom binary path: /no/containerd-shim-odd-v1"),
    ],
)
def test_what_is_not_there(cradle: Cradle, runtime: str, told: str) -> None:
    assert told in cradle.fails("run", "--rm", "--runtime", runtime, IMAGE, "true", status=125)
    assert cradle.ok("ps", "-a") == ""
