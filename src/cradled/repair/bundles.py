"""Blocking. The containers that bundles tell of, when no record does any more."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress

from cradled import identifiers
from cradled.api.runc_options_pb2 import Options
from cradled.core.containers import Container, Runtime
from cradled.core.values import AnyValue
from cradled.errors import InvalidArgument
from cradled.linux import mount
from cradled.oci.spec import TYPE_URL
from cradled.runtime.launcher import OWN_PROGRAM, RUNC_OPTIONS

RUNC = "io.containerd.runc.v2"


def containers(directory: str) -> Iterator[tuple[str, Container]]:
    """(namespace, container) of each bundle under the directory; no labels, image or snapshot."""
    for namespace in _names(directory):
        for id in _names(f"{directory}/{namespace}"):
            bundle = f"{directory}/{namespace}/{id}"
            spec = _read(f"{bundle}/config.json")
            if _is_object(spec):
                runtime = _runtime(bundle)
                yield namespace, Container(id, runtime=runtime, spec=AnyValue(TYPE_URL, spec))


def upper_directories(directory: str) -> dict[str, str]:
    """Where the root file systems of bundles keep what is written: by the bundle's path."""
    found = {}
    for one in mount.mounts():
        if one.target.startswith(f"{directory}/") and one.target.endswith("/rootfs"):
            options = dict(option.partition("=")[::2] for option in one.super_options)
            found[one.target.removesuffix("/rootfs")] = options.get("upperdir", one.root)
    return found


def _runtime(bundle: str) -> Runtime:
    program = _read(f"{bundle}/shim-binary-path").decode(errors="replace")
    name = os.path.basename(program)
    if name in (OWN_PROGRAM, "containerd-shim-runc-v2", ""):
        return Runtime(RUNC, _options(bundle))
    words = name.removeprefix("containerd-shim-").rsplit("-", 1)
    usual = name.startswith("containerd-shim-") and len(words) == 2
    return Runtime(f"io.containerd.{words[0]}.{words[1]}" if usual else program)


def _options(bundle: str) -> AnyValue | None:
    options = Options()
    with suppress(ValueError, RecursionError):
        for name, value in json.loads(_read(f"{bundle}/options.json") or b"{}").items():
            with suppress(AttributeError, TypeError, ValueError):
                setattr(options, name, value)
    options.binary_name = _read(f"{bundle}/runtime").decode(errors="replace").strip()
    return AnyValue(RUNC_OPTIONS, options.SerializeToString())


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _names(directory: str) -> list[str]:
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(directory)):
            with suppress(InvalidArgument):
                identifiers.validate(name)
                found.append(name)
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
