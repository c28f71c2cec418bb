"""Async. What a spec asks that not every runtime does, and some leave undone without a word.

Reference: tasks-and-shims.md section 7. A runtime that knows nothing of mapped ids of a mount would
mount it with the host's.
"""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.message import DecodeError

from cradled import errors
from cradled.api.types_pb2 import RuntimeInfo, RuntimeRequest
from cradled.convert.values import optional_any_to_proto
from cradled.core.values import AnyValue
from cradled.errors import Error
from cradled.runtime.info import runtime_info
from cradled.runtime.launcher import Launchers

_FEATURES = "opencontainers/runtime-spec/1/features/Features"


def maps_ids_of_mounts(spec: bytes) -> bool:
    """Whether a spec has mounts whose ids are mapped; no, for one that is no JSON."""
    if b"uidMappings" not in spec and b"gidMappings" not in spec:
        return False
    try:
        mounts = json.loads(spec).get("mounts") or ()
        return any(mount.get("uidMappings") or mount.get("gidMappings") for mount in mounts)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False


async def require_mapped_mounts(
    launchers: Launchers, runtime: str, options: AnyValue | None
) -> None:
    """Raise Error unless a runtime says that it maps the ids of mounts.

    One that tells no features of runc's kind is left alone.
    """
    request = RuntimeRequest(runtime_path=runtime, options=optional_any_to_proto(options))
    asked = AnyValue(RuntimeRequest.DESCRIPTOR.full_name, request.SerializeToString())
    try:
        answer = await runtime_info(launchers, asked)
        info = RuntimeInfo.FromString(answer.value)
    except (errors.Error, OSError, DecodeError) as error:
        raise Error(f"runtime info: {error}") from error
    if not info.features.type_url.endswith(_FEATURES):
        return
    idmap = _inner(_parsed(info.features.value), "mountExtensions", "idmap")
    if not isinstance(idmap, dict) or idmap.get("enabled") is not True:
        found = "missing" if idmap is None else "not enabled"
        raise Error(f"idmap mounts not supported: mountExtensions.idmap is {found} in its features")


def _parsed(features: bytes) -> Any:
    try:
        return json.loads(features)
    except (ValueError, RecursionError) as error:
        raise Error(f"runtime features: {error}") from None


def _inner(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
