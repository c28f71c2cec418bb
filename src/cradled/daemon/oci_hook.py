"""Blocking. ``oci-hook``: becomes a program whose words are made of the container's state.

For hooks that only know fixed words: ``{{id}}``, ``{{bundle}}``, ``{{rootfs}}``, ``{{pid}}``,
``{{status}}`` and ``{{annotation "KEY"}}`` are replaced in arguments and environment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from cradled.errors import Error, InvalidArgument

_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_ANNOTATION = re.compile(r"""annotation\s+(?:"([^"]*)"|`([^`]*)`|(\S+))""")


class State(NamedTuple):
    """What a hook is told of its container."""

    id: str
    bundle: str
    rootfs: str
    pid: int
    status: str
    annotations: Mapping[str, str]


def run(state: str, words: Sequence[str]) -> NoReturn:
    """Replace this process by the program ``words``. Raises Error.

    ``state`` is the JSON that the OCI runtime gives to hooks.
    """
    if not words:
        raise InvalidArgument("oci-hook needs a program")
    container = load(state)
    args = [render(word, container) for word in words]
    env = {key: render(value, container) for key, value in os.environ.items()}
    try:
        os.execve(args[0], args, env)
    except OSError as error:
        raise Error(f"cannot run {args[0]}: {error.strerror}") from error


def load(text: str) -> State:
    """Raises InvalidArgument for what is no state, Error where the bundle cannot be read."""
    try:
        state: dict[str, Any] = json.loads(text)
        bundle = str(state["bundle"])
        given = state.get("annotations") or {}
        annotations = {str(key): str(value) for key, value in given.items()}
        id, pid, status = str(state["id"]), int(state.get("pid", 0)), str(state.get("status", ""))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidArgument(f"stdin has no container's state: {error!r}") from error
    return State(id, bundle, _rootfs(bundle), pid, status, annotations)


def _rootfs(bundle: str) -> str:
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            root = str(json.load(file)["root"]["path"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Error(f"cannot read the root of {path}: {error}") from error
    return os.path.join(bundle, root)


def render(text: str, state: State) -> str:
    """Replace the actions in a text. Raises InvalidArgument for one that nobody knows."""

    def value(action: re.Match[str]) -> str:
        return _value(action[1].strip().removeprefix("-").removesuffix("-").strip(), state)

    return _ACTION.sub(value, text)


def _value(action: str, state: State) -> str:
    if action in _WORDS:
        return _WORDS[action](state)
    found = _ANNOTATION.fullmatch(action)
    if found is None:
        raise InvalidArgument(f'unknown action "{action}" in a hook\'s word')
    return state.annotations.get(next(key for key in found.groups() if key is not None), "")


_WORDS: Mapping[str, Callable[[State], str]] = {
    "id": lambda state: state.id,
    "bundle": lambda state: state.bundle,
    "rootfs": lambda state: state.rootfs,
    "pid": lambda state: str(state.pid),
    "status": lambda state: state.status,
}
