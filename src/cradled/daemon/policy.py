"""Blocking. Where policies come from, how they are read again, and how a denial is told.

Rules in a file (``policy_rules`` has its format), or Python code: an entry point of the group
``cradled.policies`` names something that is called without arguments and returns a
``core.access.Policy``. When both are configured, both must allow.

A file that others than root (or the daemon's own user) may write is no policy.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Sequence

from cradled import identifiers
from cradled.convert import denials
from cradled.core.access import Access, Policy, Verdict
from cradled.core.events import Envelope, Publisher
from cradled.daemon import config_file, policy_rules
from cradled.daemon.config import ConfigError
from cradled.errors import InvalidArgument, PermissionDenied
from cradled.rpc.guard import Guard, describe
from cradled.rpc.status import Code

log = logging.getLogger(__name__)

GROUP = "cradled.policies"

DENIED_TOPIC = "/policy/denied"
DENIED_NAMESPACE = "cradled"
"""Of denials that concern no namespace, or one that cannot be."""


class PolicyFile:
    """Implements ``core.access.Policy``. Raises ConfigError for a file that is no policy."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._rules = load(path)

    def decide(self, access: Access, /) -> Verdict:
        return self._rules.decide(access)

    def reload(self) -> None:
        """Raises ConfigError, and keeps the rules it had."""
        self._rules = load(self._path)


def load(path: str) -> policy_rules.Rules:
    """The rules of a file. Raises ConfigError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path}: others than root may write it")
    try:
        return policy_rules.parse(config_file.parse(path))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if path in text else f"{path}: {text}") from error


def from_entry_point(name: str) -> Policy:
    """The policy an installed distribution offers. Raises ConfigError, and what its code raises."""
    import importlib.metadata

    found = importlib.metadata.entry_points(group=GROUP, name=name)
    if not found:
        raise ConfigError(f'no installed package has "{name}" in the entry points {GROUP}')
    policy: Policy = next(iter(found)).load()()
    return policy


def guard(policies: Sequence[Policy], publisher: Publisher) -> Guard:
    """Asks all policies; each denial is a line in the log and an event."""

    def denied(access: Access, verdict: Verdict) -> None:
        log.warning("%s", describe(access, verdict), extra={"fields": _facts(access, verdict)})
        publisher.publish([_event(access, verdict)])

    return Guard(policies, denied)


def reload(policies: Sequence[Policy]) -> None:
    """Have each read again what it was made of; what one cannot read goes to the log."""
    for policy in policies:
        try:
            policy.reload()
        except Exception as error:
            log.error("the policy stays as it was: %s", error)
        else:
            log.info("the policy was read again")


def _facts(access: Access, verdict: Verdict) -> dict[str, str]:
    facts = {
        "method": access.method,
        "namespace": access.namespace,
        "transport": access.transport,
        "rule": verdict.rule,
    }
    if (caller := access.caller) is not None:
        facts |= {"pid": str(caller.pid), "uid": str(caller.uid), "gid": str(caller.gid)}
        facts["executable"] = caller.executable
    return facts


def _event(access: Access, verdict: Verdict) -> Envelope:
    namespace = access.namespace
    try:
        identifiers.validate(namespace)
    except InvalidArgument:
        namespace = DENIED_NAMESPACE
    text = str(PermissionDenied(describe(access, verdict)))
    event = denials.event(Code.PERMISSION_DENIED, text, _facts(access, verdict))
    return Envelope(time.time_ns(), namespace, DENIED_TOPIC, event)
