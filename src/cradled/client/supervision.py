"""Async. Containers that somebody keeps running: handed over to the restart monitor, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cradled.client.session import Session
from cradled.core import restart
from cradled.core.containers import Container


async def begin(session: Session, record: Container, log_uri: str) -> Container:
    """Have a container that has just been started kept running, if it has a policy."""
    if record.labels.get(restart.POLICY, "no") == "no":
        return record
    changes = {
        restart.STATUS: restart.RUNNING,
        restart.COUNT: "",
        restart.EXPLICITLY_STOPPED: "",
        restart.LOG_URI: log_uri,
    }
    return await set_labels(session, record, changes)


async def end(session: Session, record: Container) -> Container:
    """Leave a container alone from now on: it is stopped on purpose."""
    changes = {restart.STATUS: "", restart.PENDING: "", restart.EXPLICITLY_STOPPED: "true"}
    return await set_labels(session, record, changes)


async def set_labels(session: Session, record: Container, changes: Mapping[str, str]) -> Container:
    """Set labels and no others; an empty value removes one."""
    changed = replace(record, labels={**record.labels, **changes})
    return await session.containers.update(changed, [f"labels.{label}" for label in changes])
