"""Pure. Which release this is; filled in by the release."""

VERSION = "0.1.0"
REVISION = "unreleased"

COMPATIBLE = "v2.3.4"
"""The containerd level whose behaviour clients get."""

PACKAGE = "github.com/containerd/containerd/v2"
"""Whose version that is; the second word of ``--version``, where scripts expect the third to be
the version."""

SERVER_VERSION = f"{COMPATIBLE}+cradled.{VERSION}"
"""What the Version service answers."""
