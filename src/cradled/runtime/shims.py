"""Async. Shims and their bundles below one state directory: reached, cleaned up after, removed."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from cradled import errors, failpoints
from cradled.aio import threads
from cradled.core.tasks import Exit
from cradled.linux import leftovers, plain_json
from cradled.linux.tree import remove_tree
from cradled.runtime import dialing
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle
from cradled.runtime.launcher import Launcher, Launchers, remove_socket
from cradled.spans import span, traced

log = logging.getLogger(__name__)

DEFAULT_ROOT = "/run/containerd/runc"
UNKNOWN_EXIT = 255


class Shims:
    """``state`` and ``root`` are the directories that bundles and work directories are in."""

    def __init__(self, state: str, root: str, launchers: Launchers) -> None:
        self.state = state
        self.root = root
        self.launchers = launchers

    def bundle(self, namespace: str, id: str) -> Bundle:
        """The place of a bundle that need not exist."""
        path, work = (f"{base}/{namespace}/{id}" for base in (self.state, self.root))
        return Bundle(path, work, namespace, id)

    @traced("shim.bury")
    async def bury(self, bundle: Bundle, launcher: Launcher, pid: int) -> Exit:
        """Clean up after a dead shim; how its container ended, ``UNKNOWN_EXIT`` if none knows."""
        try:
            end = await launcher.delete(bundle)
        except (errors.Error, OSError) as error:
            log.warning("clean-up after the shim of %s: %s", bundle.id, error)
            end = await threads.run("fs", _end_in, bundle)
        finally:
            await threads.run("fs", _clear_after, bundle)
        return Exit(pid or end.pid, end.status, end.exited_at)

    async def remove(self, bundle: Bundle) -> None:
        """Remove a bundle; if that fails it is the next start's.

        What takes time goes on when this returns.
        """
        try:
            with span("bundle.remove"):
                hidden = await threads.run("fs", bundle.hide)
        except OSError as error:
            log.error("bundle %s was not removed: %s", bundle.path, error)
        else:
            failpoints.hit("runtime.remove.removed")
            if hidden:
                threads.begin("fs", _clear, hidden)


@traced("shim.connect")
async def reach(bootstrap: Bootstrap, *, is_there: bool = False) -> dialing.Channel:
    """Connect to a shim that was started just now; it may not serve yet, unless it ``is_there``.

    Raises Error.
    """
    limit = dialing.LIMITS[bootstrap.protocol]
    late = 0.0 if is_there else dialing.LATE_SECONDS
    try:
        return await dialing.connect(bootstrap, timeout=limit, late=late)
    except (OSError, errors.Unavailable) as error:
        raise errors.Error(f"failed to connect to shim: {error}") from error


def _end_in(bundle: Bundle) -> Exit:
    """Blocking: how a container ended, as far as its bundle tells."""
    seen = bundle.exit()
    return Exit(*seen) if seen else Exit(bundle.init_pid(), UNKNOWN_EXIT, time.time_ns())


def _clear_after(bundle: Bundle) -> None:
    """Blocking: remove what a shim's program, or its runtime, should have removed."""
    options = plain_json.load(f"{bundle.path}/options.json")  # of those that know runc
    root = options.get("root") or DEFAULT_ROOT if options else ""
    notes = f"{root}/{bundle.namespace}/{bundle.id}" if isinstance(root, str) and root else ""
    leftovers.clear(bundle.path, bundle.id, notes)
    with suppress(errors.Error, OSError):
        remove_socket(bundle.load_bootstrap())


def _clear(directories: list[str]) -> None:
    """Blocking: remove what bundles left."""
    for directory in directories:
        try:
            remove_tree(directory)
        except OSError as error:
            log.error("%s was not removed: %s", directory, error)
