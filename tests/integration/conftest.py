"""Fixtures of the integration tests: the command line on a daemon, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.cradle import Cradle, running_cradle


@pytest.fixture(scope="module")
def module_cradle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cradle]:
    """``cradle`` with a daemon of the module's own that has a busybox image."""
    with running_cradle(tmp_path_factory.mktemp("c")) as cradle:
        yield cradle


@pytest.fixture
def cradle(module_cradle: Cradle) -> Iterator[Cradle]:
    """The module's; a test's containers are removed after it, and their streams with them."""
    yield module_cradle
    module_cradle.remove_containers()
    assert module_cradle.ok("ps", "-a") == ""
    assert list((module_cradle.daemon.directory / "fifo").glob("*")) == []
