"""At the end of a whole run: nothing is left in the places that all programs share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from harness import leaks
from harness.daemon import wait_until

# Newer mount(8) hands options over one by one, and the kernel takes none over 255 bytes.
os.environ.setdefault("LIBMOUNT_FORCE_MOUNT2", "always")


@pytest.fixture(scope="session", autouse=True)
def shared_places() -> Iterator[None]:
    """Only where CI says so: elsewhere, other programs have files there too."""
    if not os.environ.get("CI"):
        yield
        return
    places = leaks.Places()
    yield
    wait_until(lambda: not places.added(), lambda: f"left in shared places: {places.added()}")
