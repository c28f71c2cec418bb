"""Pure. Which release this is; filled in by the release."""

VERSION = "0.1.0"
REVISION = "unreleased"

COMPATIBLE = "v2.3.4"
"""The containerd level whose behaviour clients get."""

SERVER_VERSION = f"{COMPATIBLE}+cradled.{VERSION}"
"""What the Version service answers."""
