"""Introspection (reference, services.md section 12). It needs no namespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from harness.contract import Case, Door, Refused, Served, cases

from cradled.api import introspection_pb2 as pb
from cradled.api.google_rpc_pb2 import Status
from cradled.api.types_pb2 import Platform
from cradled.api.wellknown_pb2 import Any as AnyMessage
from cradled.api.wellknown_pb2 import Empty, Timestamp
from cradled.core.deprecations import MESSAGES, Deprecation, Deprecations, in_sections
from cradled.core.values import AnyValue
from cradled.daemon import listed
from cradled.errors import InvalidArgument
from cradled.oci.platforms import Platform as OurPlatform
from cradled.plugin.types import Plugin, Registration, SkipPlugin
from cradled.rpc.status import Code
from cradled.services.introspection import Identity, IntrospectionService

SNAPSHOTTER, RUNTIME = "io.containerd.snapshotter.v1", "io.containerd.runtime.v2"
TRACING = "io.containerd.internal.v1"


def _plugin(registration: Registration, error: Exception | None = None) -> Plugin:
    plugin = Plugin(registration)
    plugin.error = error
    return plugin


async def told(options: AnyValue) -> AnyValue:
    if options.type_url != "containerd.types.RuntimeRequest":
        raise InvalidArgument(f"unexpected options of type {options.type_url}")
    return AnyValue("containerd.types.RuntimeInfo", options.value)


@pytest.fixture
def extra() -> Sequence[Served]:
    overlay = Plugin(Registration(SNAPSHOTTER, "overlayfs", has_platform=True))
    overlay.exports["root"] = "/r"
    overlay.capabilities += ["rebase", "remap-ids"]
    plugins = [
        overlay,
        _plugin(Registration(SNAPSHOTTER, "broken"), OSError("no such device")),
        _plugin(Registration(RUNTIME, "task", ("io.containerd.shim.v1",), has_platform=True)),
        _plugin(Registration(TRACING, "tracing"), SkipPlugin("not wanted")),
    ]
    service = IntrospectionService(
        {(plugin.registration.type, plugin.registration.id): plugin for plugin in plugins},
        Identity("0-1", 7, 4026531836),
        platform=OurPlatform("linux", "amd64"),
        providers={(RUNTIME, "task"): told, (TRACING, "tracing"): told},
        deprecations=lambda: [Deprecation("io.containerd.deprecation/x", "Use y.", 1_000_000_002)],
    )
    return [(pb.Introspection, service)]


LINUX = [Platform(os="linux", architecture="amd64")]
OVERLAY = pb.Plugin(
    type=SNAPSHOTTER,
    id="overlayfs",
    platforms=LINUX,
    exports={"root": "/r"},
    capabilities=["rebase", "remap-ids"],
)
BROKEN = pb.Plugin(type=SNAPSHOTTER, id="broken", init_err=Status(code=2, message="no such device"))
TASK = pb.Plugin(type=RUNTIME, id="task", requires=["io.containerd.shim.v1"], platforms=LINUX)
SKIPPED = pb.Plugin(
    type=TRACING, id="tracing", init_err=Status(code=2, message="not wanted: skip plugin")
)


def ask(*filters: str) -> pb.PluginsRequest:
    return pb.PluginsRequest(filters=filters)


def plugins(*found: pb.Plugin) -> pb.PluginsResponse:
    return pb.PluginsResponse(plugins=found)


@cases(
    Case("all", ask(), plugins(OVERLAY, BROKEN, TASK, SKIPPED)),
    Case("an empty filter", ask(""), plugins(OVERLAY, BROKEN, TASK, SKIPPED)),
    Case("by type", ask(f"type=={SNAPSHOTTER}"), plugins(OVERLAY, BROKEN)),
    Case("as BuildKit does", ask(f'type=="{SNAPSHOTTER}"'), plugins(OVERLAY, BROKEN)),
    Case("as ctr does", ask(f"type=={SNAPSHOTTER}, id==overlayfs"), plugins(OVERLAY)),
    Case(
        "one of two",
        ask("type==io.containerd.runtime.v1", f"type=={RUNTIME}"),
        plugins(TASK),
    ),
    Case("by a pattern", ask("id~=/^t/"), plugins(TASK, SKIPPED)),
    Case("one that is not there", ask("id==none"), plugins()),
    Case("a field that plugins lack", ask("requires"), plugins()),
    Case(
        "a filter that is none",
        ask("type="),
        Refused(
            Code.INVALID_ARGUMENT,
            'filters: parse error: [type >|=|< ]: unsupported operator "=": invalid argument',
        ),
    ),
)
async def test_plugins(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Introspection, namespace="").plugins)


@cases(
    Case(
        "who it is",
        Empty(),
        pb.ServerResponse(
            uuid="0-1",
            pid=7,
            pidns=4026531836,
            deprecations=[
                pb.DeprecationWarning(
                    id="io.containerd.deprecation/x",
                    message="Use y.",
                    last_occurrence=Timestamp(seconds=1, nanos=2),
                )
            ],
        ),
    )
)
async def test_server(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Introspection, namespace="").server)


def about(type: str, id: str, options: str = "") -> pb.PluginInfoRequest:
    packed = AnyMessage(type_url=options, value=b"o") if options else None
    return pb.PluginInfoRequest(type=type, id=id, options=packed)


REQUEST = "containerd.types.RuntimeRequest"


@cases(
    Case("without options", about(RUNTIME, "task"), pb.PluginInfoResponse(plugin=TASK)),
    Case(
        "one that failed, without options",
        about(SNAPSHOTTER, "broken"),
        pb.PluginInfoResponse(plugin=BROKEN),
    ),
    Case(
        "with options",
        about(RUNTIME, "task", REQUEST),
        pb.PluginInfoResponse(
            plugin=TASK, extra=AnyMessage(type_url="containerd.types.RuntimeInfo", value=b"o")
        ),
    ),
    Case(
        "with options of another kind",
        about(RUNTIME, "task", "some.Other"),
        Refused(Code.INVALID_ARGUMENT, "unexpected options of type some.Other: invalid argument"),
    ),
    Case(
        "one that is not there",
        about(RUNTIME, "none"),
        Refused(Code.NOT_FOUND, f"plugin {RUNTIME}.none not found"),
    ),
    Case(
        "the id of another type",
        about(SNAPSHOTTER, "task", REQUEST),
        Refused(Code.NOT_FOUND, f"plugin {SNAPSHOTTER}.task not found"),
    ),
    Case(
        "one that has nothing to tell",
        about(SNAPSHOTTER, "overlayfs", REQUEST),
        Refused(Code.UNIMPLEMENTED, "plugin does not provide info: not implemented"),
    ),
    Case(
        "one that failed",
        about(SNAPSHOTTER, "broken", REQUEST),
        Refused(Code.FAILED_PRECONDITION, "plugin not loaded: no such device: failed precondition"),
    ),
    Case(
        "one that is not wanted",
        about(TRACING, "tracing", REQUEST),
        Refused(
            Code.FAILED_PRECONDITION,
            "plugin not loaded: not wanted: skip plugin: failed precondition",
        ),
    ),
)
async def test_plugin_info(door: Door, case: Case) -> None:
    await case.ask(door.stub(pb.Introspection, namespace="").plugin_info)


# What goes out of support


@pytest.mark.parametrize(
    ("uri", "table", "names"),
    [
        ("cri.v1.images", {"registry": {"config_path": "/etc/x"}}, []),
        ("cri.v1.images", {"registry": {"mirrors": {}}}, []),
        ("cri.v1.images", {"registry": {"mirrors": {"a": {}}}}, ["cri-registry-mirrors"]),
        (
            "cri.v1.images",
            {"registry": {"auths": {"a": {}}, "configs": {"a": {}}}},
            ["cri-registry-auths", "cri-registry-configs"],
        ),
        ("cri.v1.images", {"registry": "nonsense"}, []),
        ("cri.v1.runtime", {"cni": {"bin_dir": "/opt"}}, ["cri-cni-bin-dir"]),
        ("cri.v1.runtime", {"cni": {"bin_dirs": ["/opt"]}}, []),
        ("tracing.processor.v1.otlp", {"endpoint": "x"}, ["tracing-processor-config"]),
        ("internal.v1.tracing", {"sampling_ratio": 1.0}, ["tracing-service-config"]),
        ("internal.v1.tracing", {}, []),
        ("snapshotter.v1.overlayfs", {"root_path": "/x"}, []),
    ],
)
def test_deprecated_keys(uri: str, table: Any, names: list[str]) -> None:
    assert in_sections({f"io.containerd.{uri}": table}) == names


def test_deprecations_are_told_once_and_with_their_last_time() -> None:
    deprecations = Deprecations()
    assert deprecations.all() == []
    for name, at in (("cri-cni-bin-dir", 1), ("cgroup-v1", 2), ("cri-cni-bin-dir", 3)):
        deprecations.emit(name, at)
    assert deprecations.all() == [
        ("io.containerd.deprecation/cgroup-v1", MESSAGES["cgroup-v1"], 2),
        ("io.containerd.deprecation/cri-cni-bin-dir", MESSAGES["cri-cni-bin-dir"], 3),
    ]


# What is listed beside the plugins that are started


def test_no_plugin_that_is_only_listed_looks_broken() -> None:
    for plugin in listed.plugins().values():
        assert plugin.error is None or plugin.skipped
        assert plugin.error is None or "skip plugin" in str(plugin.error)
