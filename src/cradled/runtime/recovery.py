"""Async. What a daemon that comes back does with each bundle it finds.

``gather`` asks the shim, if it still answers; ``judge`` (pure) decides from the facts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum

from cradled import errors
from cradled.aio import threads
from cradled.core.tasks import Process
from cradled.runtime.bootstrap import Bootstrap
from cradled.runtime.bundle import Bundle
from cradled.runtime.shim_client import ShimClient

log = logging.getLogger(__name__)

LOAD_SECONDS = 5.0


class Verdict(Enum):
    """What becomes of a bundle."""

    KEEP = "the shim has the container: go on with it, whatever its state"
    DISMISS = "the shim has no such container: creation was broken off, or deletion nearly done"
    REAP = "the shim is gone: clean up after it and tell how the container ended"
    DISCARD = "there never was a shim: remove the directory"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a bundle. ``client`` is open if the shim answered; ``process`` is init."""

    bundle: Bundle
    program: str = ""
    sandbox: str = ""
    bootstrap: Bootstrap | None = None
    client: ShimClient | None = None
    process: Process | None = None


def judge(facts: Facts) -> Verdict:
    if facts.client is not None:
        return Verdict.DISMISS if facts.process is None else Verdict.KEEP
    # A foreign shim may run though the daemon died before it kept its address.
    return Verdict.REAP if facts.program else Verdict.DISCARD


async def gather(bundle: Bundle) -> Facts:
    """Read the bundle and ask its shim, ``LOAD_SECONDS`` at most for each question."""
    facts = await threads.run("fs", _read, bundle)
    if facts.bootstrap is None:
        return facts
    try:
        client = await ShimClient.connect(facts.bootstrap, bundle.namespace, timeout=LOAD_SECONDS)
    except (OSError, errors.Error) as error:
        log.info("task %s: no shim: %s", bundle.id, error)
        return facts
    process: Process | None = None
    try:
        await client.pids_of(bundle.id, timeout=LOAD_SECONDS)
        process = await client.state(bundle.id, "", timeout=LOAD_SECONDS)
    except errors.NotFound:
        pass
    except errors.Error as error:
        log.warning("task %s: shim does not answer: %s", bundle.id, error)
        await client.aclose()
        return facts
    except BaseException:
        await client.aclose()
        raise
    return Facts(
        bundle, facts.program, facts.sandbox, facts.bootstrap, client=client, process=process
    )


def _read(bundle: Bundle) -> Facts:
    try:
        saved = bundle.load_bootstrap()
    except errors.Error as error:
        log.warning("bundle %s: %s", bundle.path, error)
        saved = None
    return Facts(bundle, bundle.shim_path(), bundle.sandbox(), saved)
