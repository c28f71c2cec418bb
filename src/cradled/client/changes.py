"""Async. Containers changed while they are there: limits and policies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cradled.client import options, supervision
from cradled.client.options import Limits
from cradled.client.session import Session
from cradled.core import restart
from cradled.core.containers import Container
from cradled.core.tasks import Process, Status
from cradled.core.values import AnyValue
from cradled.errors import FailedPrecondition, NotFound
from cradled.oci import spec


async def change(session: Session, record: Container, limits: Limits) -> Container:
    """Change a container, at once if it runs, and for when it runs again.

    Raises InvalidArgument, FailedPrecondition for a container without a spec.
    """
    wanted = options.limits(limits)
    policy = restart.Policy.parse(limits["restart"]) if "restart" in limits else None
    task = await _living_task(session, record.id)
    if wanted:
        if task is not None:
            await session.tasks.update(record.id, resources(wanted))
        record = await _change_spec(session, record, wanted)
    if policy is not None:
        record = await _change_policy(session, record, policy, task)
    return record


def resources(wanted: Sequence[spec.Option]) -> AnyValue:
    """What the options say of resources, alone."""
    made: dict[str, Any] = {"linux": {"resources": {}}}
    for option in wanted:
        option(made)
    return AnyValue(spec.RESOURCES_TYPE_URL, json.dumps(made["linux"]["resources"]).encode())


async def _living_task(session: Session, id: str) -> Process | None:
    try:
        task = await session.tasks.get(id)
    except NotFound:
        return None
    return None if task.status == Status.STOPPED else task


async def _change_spec(
    session: Session, record: Container, wanted: Sequence[spec.Option]
) -> Container:
    if record.spec is None:
        raise FailedPrecondition(f'container "{record.id}" has no spec')
    made = json.loads(record.spec.value)
    made.setdefault("linux", {}).setdefault("resources", {})
    for option in wanted:
        option(made)
    changed = AnyValue(record.spec.type_url, json.dumps(made).encode())
    return await session.containers.update(replace(record, spec=changed), ["spec"])


async def _change_policy(
    session: Session, record: Container, policy: restart.Policy, task: Process | None
) -> Container:
    if policy.name == "no":
        none = {restart.POLICY: "", restart.STATUS: ""}
        return await supervision.set_labels(session, record, none)
    record = await supervision.set_labels(session, record, {restart.POLICY: str(policy)})
    if task is None:
        return record
    # Pipes are for one life, a log or a logger takes the output of the next one too.
    uri = task.stdio.stdout if "://" in task.stdio.stdout else ""
    return await supervision.begin(session, record, uri)
