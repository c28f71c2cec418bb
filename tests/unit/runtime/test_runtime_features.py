"""Mounts with mapped ids only where the runtime says that it can do them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.task_world import World

from cradled import errors
from cradled.api.types_pb2 import RuntimeInfo
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.core.containers import Container, Runtime
from cradled.core.values import AnyValue
from cradled.runtime import features

FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
MAPPED = {"mounts": [{"destination": "/m", "uidMappings": [{"containerID": 0}]}]}


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        (MAPPED, True),
        ({"mounts": [{}, {"gidMappings": [{}]}]}, True),
        ({"mounts": [{"uidMappings": []}], "linux": {"uidMappings": [{}]}}, False),
        ({"linux": {"uidMappings": [{}]}}, False),
        ({"mounts": None, "x": "uidMappings"}, False),
        ({"mounts": ["uidMappings"]}, False),
        (["uidMappings"], False),
        ({}, False),
    ],
)
def test_specs(spec: Any, answer: bool) -> None:
    assert features.maps_ids_of_mounts(json.dumps(spec).encode()) is answer
    assert not features.maps_ids_of_mounts(b"uidMappings")


def says(world: World, info: bytes, status: int = 0) -> None:
    """Have the shim's program answer ``-info`` so."""
    path = world.directory / "shim"
    (world.directory / "info").write_bytes(info)
    path.write_text(f"#!/bin/sh\necho $1 > {path}.args\ncat {world.directory}/info\nexit {status}")
    path.chmod(0o755)
    world.shims.program = str(path)
    spec = AnyValue("s", json.dumps(MAPPED).encode())
    world.containers["a"] = Container("a", spec=spec, runtime=Runtime("fake.v1"))


def told(value: Any, type_url: str = FEATURES) -> bytes:
    made = AnyMessage(type_url=type_url, value=json.dumps(value).encode())
    return RuntimeInfo(name="fake", features=made).SerializeToString()


@pytest.mark.parametrize(
    "info",
    [
        told({"mountExtensions": {"idmap": {"enabled": True}}}),
        told({}, "of.another.kind"),
        RuntimeInfo(name="fake").SerializeToString(),
    ],
)
async def test_a_runtime_that_can(world: World, info: bytes) -> None:
    says(world, info)
    assert await world.create("a") > 0
    assert Path(f"{world.shims.program}.args").read_text() == "-info\n"


@pytest.mark.parametrize(
    ("info", "status", "text"),
    [
        (told({}), 0, "^idmap mounts not supported: mountExtensions.idmap is missing"),
        (told([]), 0, "is missing"),
        (told({"mountExtensions": {"idmap": None}}), 0, "is missing"),
        (told({"mountExtensions": {"idmap": {"enabled": False}}}), 0, "is not enabled"),
        (told({"mountExtensions": {"idmap": {"enabled": 1}}}), 0, "is not enabled"),
        (b"", 3, "^runtime info: shim -info failed"),
        (b"what?", 0, "^runtime info: "),
    ],
)
async def test_a_runtime_that_cannot(world: World, info: bytes, status: int, text: str) -> None:
    says(world, info, status)
    with pytest.raises(errors.Error, match=text):
        await world.create("a")
    assert (world.bundles(), world.shims.shims) == ([], {})
