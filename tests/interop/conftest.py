"""Fixtures of the interop tests: a daemon per module, an image in it, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from harness.daemon import Daemon
from harness.images import busybox_image
from harness.pairings import PAIRINGS, Missing

IMAGE = "docker.io/library/busybox:test"


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], Any]]:
    """Peers meet our wire on the loop that the daemon has."""
    if item.path.name.startswith(("test_grpc_peers", "test_ttrpc")):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def image_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout of busybox in two layers."""
    return busybox_image(IMAGE).write_oci_layout(tmp_path_factory.mktemp("image") / "busybox.tar")


@pytest.fixture(scope="module")
def pairing(request: pytest.FixtureRequest) -> str:
    """What the daemons of a module are and work with, as a name.

    Where the module does not say it, CRADLED_INTEROP_PAIRING may; else it is ours with ours.
    """
    return str(getattr(request, "param", os.environ.get("CRADLED_INTEROP_PAIRING", "ours")))


def daemon_of(pairing: str, directory: Path) -> Daemon:
    try:
        return PAIRINGS[pairing].daemon(directory)
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def empty_daemon(pairing: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon with nothing in it."""
    directory = tmp_path_factory.mktemp("d")
    daemon = daemon_of(pairing, directory)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.destroy()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def module_daemon(empty_daemon: Daemon, image_tar: Path) -> Daemon:
    empty_daemon.ctr("images", "import", str(image_tar))
    return empty_daemon


@pytest.fixture
def daemon(module_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon with the image; the test's containers are removed after it."""
    yield module_daemon
    module_daemon.remove_containers()


@pytest.fixture
def own_daemon(pairing: str, tmp_path: Path, image_tar: Path) -> Iterator[Daemon]:
    """A daemon for one test, which may kill it; with the image."""
    directory = tmp_path / "d"
    directory.mkdir()
    daemon = daemon_of(pairing, directory)
    daemon.start()
    daemon.ctr("images", "import", str(image_tar))
    try:
        yield daemon
        daemon.remove_containers()
    finally:
        daemon.destroy()
        shutil.rmtree(directory)
