"""Async. What a daemon that comes back does with each bundle it finds.

``gather`` asks the shim, if it still answers; ``judge`` (pure) decides from the facts. Shims that
the daemon's death caught starting up may wait for a reader of their log, so that is opened first.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from enum import Enum

from cradled import errors
from cradled.aio import threads
from cradled.core.tasks import Process
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle
from cradled.runtime.shim_client import ShimClient
from cradled.runtime.shim_log import ShimLog
from cradled.runtime.task import INIT

log = logging.getLogger(__name__)


class Verdict(Enum):
    """What becomes of a bundle."""

    KEEP = "the shim has the container: go on with it, whatever its state"
    DISMISS = "the shim has no such container: creation was broken off, or deletion nearly done"
    REAP = "the shim is gone: clean up after it and tell how the container ended"
    DISCARD = "there never was a shim: remove the directory"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a bundle; whoever has it closes what is open.

    ``shim_log`` is None when there never was a shim, ``client`` when none answered; ``process`` is
    init, where the shim has the container. ``is_orphan``: the container was made by a shim of its
    group that is gone, and another serves the group.
    """

    bundle: Bundle
    program: str = ""
    sandbox: str = ""
    bootstrap: Bootstrap | None = None
    is_orphan: bool = False
    shim_log: ShimLog | None = None
    client: ShimClient | None = None
    process: Process | None = None

    async def aclose(self) -> None:
        if self.client is not None:
            await self.client.aclose()
        if self.shim_log is not None:
            self.shim_log.close()


def judge(facts: Facts) -> Verdict:
    if facts.process is not None:
        return Verdict.KEEP
    if facts.client is not None and not facts.is_orphan:
        return Verdict.DISMISS
    # A foreign shim may run though the daemon died before it kept its address.
    return Verdict.REAP if facts.program else Verdict.DISCARD


async def gather(bundle: Bundle, timeout: float | None) -> Facts:
    """Read the bundle and ask its shim; ``timeout`` is the seconds for each question."""
    facts = await threads.run("fs", _read, bundle)
    saved = facts.bootstrap
    if saved is None:
        return facts
    facts = dataclasses.replace(facts, shim_log=ShimLog(bundle))
    try:
        client = await ShimClient.connect(saved, bundle.namespace, timeout=timeout)
        facts = dataclasses.replace(facts, client=client)
        await client.pids_of(bundle.id, timeout=timeout)
        process = await client.state(bundle.id, INIT, timeout=timeout)
        return dataclasses.replace(facts, process=process)
    except errors.NotFound:
        return facts
    except (OSError, errors.Error) as error:
        log.info("task %s: its shim does not answer: %s", bundle.id, error)
        if facts.client is not None:
            await facts.client.aclose()
        return dataclasses.replace(facts, client=None)
    except BaseException:
        await facts.aclose()
        raise


def _read(bundle: Bundle) -> Facts:
    try:
        saved = bundle.load_bootstrap()
    except errors.Error as error:
        log.warning("bundle %s: %s", bundle.path, error)
        saved = None
    orphan = saved is not None and _is_older(f"{bundle.path}/init.pid", saved.path)
    return Facts(bundle, bundle.shim_path(), bundle.sandbox(), saved, orphan)


def _is_older(path: str, than: str) -> bool:
    try:
        return os.stat(path).st_mtime_ns < os.stat(than).st_mtime_ns
    except OSError:
        return False
