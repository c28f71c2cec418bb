"""Async. Containers changed while they are there: limits and policies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict

from cradled.client import supervision
from cradled.client.session import Session
from cradled.core import restart
from cradled.core.containers import Container
from cradled.core.tasks import Process, Status
from cradled.core.values import AnyValue
from cradled.errors import FailedPrecondition, NotFound
from cradled.oci import spec


class Limits(TypedDict, total=False):
    """What can be changed: ``memory`` in bytes, ``cpus`` in processors, ``pids`` processes (0: as
    many as they like); ``restart`` as in ``Options``."""

    memory: int
    cpus: float
    pids: int
    restart: str


async def change(session: Session, record: Container, limits: Limits) -> Container:
    """Change a container, at once if it runs, and for when it runs again.

    Raises InvalidArgument, FailedPrecondition for a container without a spec.
    """
    options = resource_options(limits)
    policy = restart.Policy.parse(limits["restart"]) if "restart" in limits else None
    task = await _task(session, record.id)
    alive = task is not None and task.status != Status.STOPPED
    if options:
        if alive:
            await session.tasks.update(record.id, resources(options))
        record = await _change_spec(session, record, options)
    if policy is not None:
        record = await _change_policy(session, record, policy, alive=alive)
    return record


def resource_options(limits: Limits) -> Sequence[spec.Option]:
    """Raises InvalidArgument."""
    chosen = []
    if "memory" in limits:
        chosen.append(spec.memory(limits["memory"]))
    if "cpus" in limits:
        chosen.append(spec.cpus(limits["cpus"]))
    if "pids" in limits:
        chosen.append(spec.pids(limits["pids"]))
    return chosen


def resources(options: Sequence[spec.Option]) -> AnyValue:
    """What the options say of resources, alone."""
    made: dict[str, Any] = {"linux": {"resources": {}}}
    for option in options:
        option(made)
    return AnyValue(spec.RESOURCES_TYPE_URL, json.dumps(made["linux"]["resources"]).encode())


async def _task(session: Session, id: str) -> Process | None:
    try:
        return await session.tasks.get(id)
    except NotFound:
        return None


async def _change_spec(
    session: Session, record: Container, options: Sequence[spec.Option]
) -> Container:
    if record.spec is None:
        raise FailedPrecondition(f'container "{record.id}" has no spec')
    made = json.loads(record.spec.value)
    made.setdefault("linux", {}).setdefault("resources", {})
    for option in options:
        option(made)
    changed = AnyValue(record.spec.type_url, json.dumps(made).encode())
    return await session.containers.update(replace(record, spec=changed), ["spec"])


async def _change_policy(
    session: Session, record: Container, policy: restart.Policy, *, alive: bool
) -> Container:
    name = "" if policy.name == "no" else str(policy)
    record = await supervision.set_labels(session, record, {restart.POLICY: name})
    if not name:
        return await supervision.set_labels(session, record, {restart.STATUS: ""})
    if alive:
        uri = record.labels.get(restart.LOG_URI, "")
        return await supervision.begin(session, record, uri)
    return record
