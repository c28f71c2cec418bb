"""Async. What a runtime tells about itself: its shim's ``-info``, passed on as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from cradled.aio import process
from cradled.api.types_pb2 import RuntimeInfo, RuntimeRequest
from cradled.core.values import AnyValue
from cradled.errors import Error, InvalidArgument
from cradled.runtime.launcher import Launchers

INFO_SECONDS = 10.0

_REQUEST = RuntimeRequest.DESCRIPTOR.full_name


async def runtime_info(launchers: Launchers, options: AnyValue) -> AnyValue:
    """Answer a ``containerd.types.RuntimeRequest`` with a ``RuntimeInfo``.

    Raises InvalidArgument for other options, Error when the runtime is not there or fails.
    """
    if options.type_url.rpartition("/")[2] != _REQUEST:
        raise InvalidArgument(f"unexpected options of type {options.type_url}")
    try:
        request = RuntimeRequest.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"runtime request: {error}") from None
    stdin = request.options.SerializeToString() if request.HasField("options") else b""
    output = await _ask([*launchers.command(request.runtime_path), "-info"], stdin)
    try:
        RuntimeInfo.FromString(output)
    except DecodeError as error:
        raise Error(f"shim -info failed: its answer is no RuntimeInfo: {error}") from None
    return AnyValue(RuntimeInfo.DESCRIPTOR.full_name, output)


async def _ask(argv: Sequence[str], stdin: bytes) -> bytes:
    try:
        done = await process.run(argv, env=os.environ, stdin=stdin, timeout=INFO_SECONDS)
    except TimeoutError:
        reason = f"{argv[0]} did not terminate within {INFO_SECONDS:g} s"
        raise Error(f"shim -info failed: {reason}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Error(f"shim -info failed: fork/exec {argv[0]}: {reason}") from error
    if done.status:
        output = done.stderr.decode(errors="replace").strip()
        raise Error(f"shim -info failed: {output}: status {done.status}")
    return done.stdout
