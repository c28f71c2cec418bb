"""gVisor's ``runsc`` as OCI runtime below our shim: a container that is not made of host processes.

What was found with the one of Debian 13 (2024-07-29), on a kernel of 6.18:

- The platforms systrap (its default) and ptrace work; kvm hangs where there is no nested
  virtualisation, and is left out.
- Its own network (``-network=sandbox``) is refused in a new network namespace too: it takes every
  one that has ``/proc/sys/net/core/dev_weight`` for the host's, and newer kernels show that in all.
  With ``-network=none`` and ``-network=host`` it runs.
- Cgroups work, hybrid hierarchies too; ``-ignore-cgroups`` is not needed.
- ``-rootless`` is refused by runsc itself: ``Rootless mode not supported with "create"``.
- It signals nothing that is created and not started, not for the original's shim either.
- Its flags have to be in a wrapper: its own shim takes them from a file that options of another
  type name (``runtimeoptions.v1.Options``), which runc's kind of shims, ours too, refuse.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness import newer
from harness.daemon import Daemon, rows, target, wait_until

IMAGE = "docker.io/library/busybox:test"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def runsc() -> Path:
    try:
        return newer.program("runsc")
    except newer.Unavailable as error:
        pytest.skip(str(error))


def wrapper(runsc: Path, directory: Path, *flags: str) -> str:
    """The runtime with flags of its own."""
    path = directory / "runsc"
    path.write_text(f'#!/bin/sh\nexec {runsc} {" ".join(flags)} "$@"\n')
    path.chmod(0o755)
    return str(path)


def statuses(daemon: Daemon) -> dict[str, str]:
    return {row[0]: row[2] for row in rows(daemon.ctr("tasks", "ls"))}


@pytest.mark.parametrize("platform", ["systrap", "ptrace"])
@pytest.mark.parametrize("network", ["none", "host"])
def test_a_container(
    daemon: Daemon, runsc: Path, tmp_path: Path, platform: str, network: str
) -> None:
    binary = wrapper(runsc, tmp_path, f"-platform={platform}", f"-network={network}")
    script = "uname -r; echo err >&2; head -n 1; exit 7"
    words = ("run", "--rm", "--runc-binary", binary, IMAGE, "c1", "sh", "-c", script)
    done = daemon.try_ctr(*words, input=b"in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("4.4.0\nin\n", "err\n", 7)
    assert os.uname().release != "4.4.0"


def test_a_life(daemon: Daemon, runsc: Path, tmp_path: Path) -> None:
    binary = wrapper(runsc, tmp_path, "-network=none")
    limit = ("--memory-limit", str(256 << 20))
    daemon.ctr("run", "-d", "--null-io", *limit, "--runc-binary", binary, IMAGE, "c1",
               "sh", "-c", "sleep 1000 & wait")  # fmt: skip
    out = daemon.ctr("tasks", "exec", "--exec-id", "e1", "c1", "sh", "-c", "uname -r; id -u")
    assert out == "4.4.0\n0\n"
    done = daemon.try_ctr("tasks", "exec", "--exec-id", "e2", "c1", "no-such-program")
    assert 'error finding executable "no-such-program"' in done.stderr
    wait_until(lambda: len(rows(daemon.ctr("tasks", "ps", "c1"))) == 2, "two processes")
    daemon.ctr("tasks", "pause", "c1")
    assert statuses(daemon) == {"c1": "PAUSED"}
    daemon.ctr("tasks", "resume", "c1")
    metrics = json.loads(daemon.ctr("tasks", "metrics", "--format", "json", "c1"))
    assert int(metrics["memory"]["usage"]["limit"]) == 256 << 20
    daemon.ctr("tasks", "kill", "-a", "-s", "KILL", "c1")
    wait_until(lambda: statuses(daemon) == {"c1": "STOPPED"}, "ended")
    assert "exit code 137" in daemon.try_ctr("tasks", "rm", "c1").stderr


@pytest.mark.skipif(target() == "containerd", reason="the original cannot")
def test_what_fails_to_start_can_be_removed(daemon: Daemon, runsc: Path, tmp_path: Path) -> None:
    binary = wrapper(runsc, tmp_path, "-network=none")
    done = daemon.try_ctr("run", "--runc-binary", binary, IMAGE, "c1", "no-such-program")
    assert 'error finding executable "no-such-program"' in done.stderr
    assert statuses(daemon) == {"c1": "CREATED"}
    daemon.ctr("tasks", "kill", "-s", "KILL", "c1")
    wait_until(lambda: statuses(daemon) == {"c1": "STOPPED"}, "ended")
    daemon.try_ctr("tasks", "rm", "c1")
    assert statuses(daemon) == {}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("-rootless -network=none", 'Rootless mode not supported with "create"'),
        ("-platform=none", "unknown platform: none"),
    ],
)
def test_its_refusals(daemon: Daemon, runsc: Path, tmp_path: Path, flags: str, told: str) -> None:
    binary = wrapper(runsc, tmp_path, flags)
    done = daemon.try_ctr("run", "--rm", "--runc-binary", binary, IMAGE, "c1", "true")
    assert f"OCI runtime create failed: {told}" in done.stderr
    assert statuses(daemon) == {}
