"""Snapshotters in processes of their own: ours for the original, and ours for ourselves.

What the daemon's own snapshotters do is not tested again, but what only happens to a plugin: it is
away when the daemon starts, stands still, is killed while it is asked.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import leaks
from harness.daemon import Daemon, rows, wait_until
from harness.program import PROGRAM

IMAGE = "docker.io/library/busybox:test"
FAR = "far"


class Plugin:
    """``cradled serve-snapshotter``, at a place that daemons know before it is there."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.address = directory, directory / "far.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["--root", f"{self.directory}/far", "--address", str(self.address)]
        command = [PROGRAM, *words, "serve-snapshotter", "overlayfs"]
        self.address.unlink(missing_ok=True)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_until(self.address.exists, "the plugin listens")

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        return process.wait(20)

    @property
    def trees(self) -> list[str]:
        return os.listdir(f"{self.directory}/far/io.containerd.snapshotter.v1.overlayfs/snapshots")


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    directory = tmp_path / "d"
    directory.mkdir()
    plugin = Plugin(directory)
    yield plugin
    plugin.stop(signal.SIGKILL)
    shutil.rmtree(directory)


def host(plugin: Plugin, kind: str | None) -> Iterator[Daemon]:
    table = f'[proxy_plugins.{FAR}]\ntype = "snapshot"\naddress = "{plugin.address}"\n'
    daemon = Daemon(plugin.directory, kind, settings=table)
    daemon.start()
    try:
        yield daemon
        daemon.remove_containers()
    finally:
        plugin.stop()  # the daemon's directory is the plugin's too
        daemon.destroy()


@pytest.fixture(params=["cradled", "containerd"])
def either(plugin: Plugin, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    yield from host(plugin, request.param)


@pytest.fixture
def ours(plugin: Plugin) -> Iterator[Daemon]:
    yield from host(plugin, "cradled")


def test_containers_on_a_snapshotter_of_ours(
    plugin: Plugin, either: Daemon, image_tar: Path
) -> None:
    plugin.start()  # after the daemon, which does not mind
    either.ctr("images", "import", "--snapshotter", FAR, str(image_tar))
    run = ("run", "--rm", "--snapshotter", FAR, IMAGE)
    assert either.ctr(*run, "c", "cat", "/etc/motd") == "hello from the second layer\n"
    snapshots = rows(either.ctr("snapshots", "--snapshotter", FAR, "ls"))
    assert [row[-1] for row in snapshots] == ["Committed", "Committed"]
    size = either.ctr("snapshots", "--snapshotter", FAR, "usage")
    assert len(rows(size)) == 2
    wait_until(lambda: len(plugin.trees) == 2, "the container's tree is gone")
    either.ctr("images", "rm", "--sync", IMAGE)
    wait_until(lambda: not plugin.trees, "the plugin's trees are gone")
    assert plugin.stop() == 0
    assert not plugin.address.exists()


def test_a_plugin_that_is_killed(plugin: Plugin, ours: Daemon, image_tar: Path) -> None:
    plugin.start()
    ours.ctr("images", "import", "--snapshotter", FAR, str(image_tar))
    plugin.stop(signal.SIGKILL)
    asked = ours.try_ctr("snapshots", "--snapshotter", FAR, "prepare", "key")
    assert asked.returncode != 0
    assert f'plugin "{FAR}": dial unix {plugin.address}: connection refused' in asked.stderr
    # What needs it not goes on: its images can be deleted, others be used.
    ours.ctr("images", "rm", "--sync", IMAGE)
    ours.ctr("images", "import", str(image_tar))
    assert ours.ctr("run", "--rm", IMAGE, "c", "echo", "well") == "well\n"
    ours.stop()
    ours.start()  # without it
    plugin.start()
    ours.ctr("images", "rm", "--sync", IMAGE)  # a collection finds what was left there
    wait_until(lambda: not plugin.trees, "the plugin's trees are gone")


def test_a_plugin_that_stands_still(plugin: Plugin, ours: Daemon, image_tar: Path) -> None:
    plugin.start()
    ours.ctr("images", "import", str(image_tar))
    plugin.send(signal.SIGSTOP)
    asking = subprocess.Popen(
        ours.ctr_command("snapshots", "--snapshotter", FAR, "prepare", "key"),
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ours.env, text=True,
    )  # fmt: skip
    assert ours.ctr("run", "--rm", IMAGE, "c", "echo", "well") == "well\n"
    ours.ctr("images", "rm", "--sync", IMAGE)
    assert asking.poll() is None  # all this while
    plugin.send(signal.SIGCONT)
    assert asking.communicate(timeout=30)[1] == ""
    assert asking.returncode == 0
    ours.ctr("snapshots", "--snapshotter", FAR, "rm", "key")
    wait_until(lambda: not plugin.trees, "the plugin's trees are gone")


def test_it_keeps_its_root_to_itself(plugin: Plugin) -> None:
    plugin.start()
    flags = ["--root", f"{plugin.directory}/far", "--address", f"{plugin.directory}/other.sock"]
    for words, text in (
        ([*flags, "serve-snapshotter", "overlayfs"], "is in use by another daemon"),
        (["serve-snapshotter", "overlayfs"], "serve-snapshotter needs --root and --address"),
        ([*flags, "serve-snapshotter"], "wants the name of one snapshotter"),
    ):
        done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert text in done.stderr
    flags[1] = f"{plugin.directory}/none"
    words = [PROGRAM, *flags, "serve-snapshotter", "odd"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert 'no snapshotter "odd" (one of native, overlayfs, btrfs, blockfile)' in done.stderr
    assert not leaks.processes_with("other.sock")
