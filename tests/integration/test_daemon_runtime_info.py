"""Introspection.PluginInfo about runtimes, through our shim and through Debian's."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from cradled import errors
from cradled.api import runc_options_pb2, types_pb2
from cradled.core.values import AnyValue
from cradled.runtime.bootstrap import Daemon
from cradled.runtime.info import runtime_info
from cradled.runtime.launcher import Launchers
from cradled.zygote.client import Zygote

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc"
)


LAUNCHERS = Launchers(Daemon("/d", "/d.ttrpc", "/s"), Zygote(), runc_root="/r")


async def ask(runtime: str, binary: str = "") -> types_pb2.RuntimeInfo:
    request = types_pb2.RuntimeRequest(runtime_path=runtime)
    if binary:
        options = runc_options_pb2.Options(binary_name=binary)
        request.options.type_url = "containerd.runc.v1.Options"
        request.options.value = options.SerializeToString()
    asked = AnyValue("containerd.types.RuntimeRequest", request.SerializeToString())
    told = await runtime_info(LAUNCHERS, asked)
    assert told.type_url == "containerd.types.RuntimeInfo"
    return types_pb2.RuntimeInfo.FromString(told.value)


@pytest.mark.parametrize("runtime", ["", "io.containerd.runc.v2", "io.containerd.cradled.v2"])
async def test_our_shim_tells_the_features_of_runc(runtime: str) -> None:
    info = await ask(runtime)
    assert info.features.type_url.endswith("/features/Features")
    assert "ociVersionMin" in json.loads(info.features.value)


async def test_unknown_runtimes_and_requests() -> None:
    with pytest.raises(errors.Error, match="absent"):
        await ask("io.containerd.absent.v9")
    with pytest.raises(errors.InvalidArgument):
        await runtime_info(LAUNCHERS, AnyValue("some.Other", b""))
    with pytest.raises(errors.Error):
        await ask("", binary="/no/such/runtime")
