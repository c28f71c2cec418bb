"""How shims are asked to start and how their answers are read, by bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled import errors
from cradled.api import bootstrap_pb2 as pb
from cradled.api import task_v2_pb2, wellknown_pb2
from cradled.core.tasks import Exit
from cradled.core.values import AnyValue
from cradled.runtime import bootstrap
from cradled.runtime.bootstrap import Bootstrap, Daemon

DAEMON = Daemon("/run/d.sock", "/run/d.sock.ttrpc", "/run/s", env={"SCHED_CORE": "1"})
OPTIONS = AnyValue("containerd.runc.v1.Options", b"\x32\x04crun")
ADDRESS = "unix:///run/containerd/s/" + "ab" * 32


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            pb.BootstrapResult(version=3, address=ADDRESS, protocol="ttrpc").SerializeToString(),
            Bootstrap(3, ADDRESS),
        ),
        (
            pb.BootstrapResult(
                version=2, address=ADDRESS, protocol="grpc", metadata={"a": "b"}
            ).SerializeToString(),
            Bootstrap(2, ADDRESS, "grpc"),
        ),
        (
            f'{{"version":3,"address":"{ADDRESS}","protocol":"ttrpc"}}'.encode(),
            Bootstrap(3, ADDRESS),
        ),
        (
            f'{{"version": 2, "address": "{ADDRESS}", "protocol": "grpc"}}\n'.encode(),
            Bootstrap(2, ADDRESS, "grpc"),
        ),
        (ADDRESS.encode(), Bootstrap(2, ADDRESS)),
        (ADDRESS.encode() + b"\n", Bootstrap(2, ADDRESS)),
        (b"containerd-shim/abc.sock", Bootstrap(2, "containerd-shim/abc.sock")),
    ],
)
def test_every_form_of_answer_is_understood(output: bytes, expected: Bootstrap) -> None:
    assert bootstrap.parse_output(output) == expected
    assert bootstrap.parse_json(expected.to_json()) == expected


@pytest.mark.parametrize(
    ("output", "error", "text"),
    [
        (pb.BootstrapResult(version=4, address="x").SerializeToString(), errors.Unimplemented,
         r"^unsupported shim version \(4\)"),
        (b'{"version":7,"address":"x","protocol":"ttrpc"}', errors.Unimplemented, r"\(7\)"),
        (b"", errors.Error, "no usable address"),
        (b"\n", errors.Error, "no usable address"),
        (b'{"version":3,"address":"","protocol":"ttrpc"}', errors.Error, "no usable address"),
        (b'{"version":3,"address":"x","protocol":"http"}', errors.Error,
         "unsupported shim protocol"),
    ],
)  # fmt: skip
def test_what_is_no_answer(output: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        bootstrap.parse_output(output)


@given(st.binary(max_size=200))
def test_any_answer_is_an_address_or_an_error(output: bytes) -> None:
    try:
        result = bootstrap.parse_output(output)
    except errors.Error:
        return
    assert result.address
    assert result.protocol in bootstrap.PROTOCOLS
    assert result.version <= bootstrap.MAX_VERSION


def test_what_is_kept() -> None:
    kept = b'{"version":3,"address":"unix:///s","protocol":"ttrpc"}'
    assert Bootstrap(3, "unix:///s").to_json() == kept
    for damaged in (b"", b"{", b"unix:///s", b'{"version":3}'):
        with pytest.raises(errors.Error):
            bootstrap.parse_json(damaged)


def test_addresses_of_clients() -> None:
    assert bootstrap.parse_address("ttrpc+unix:///a+b", 3) == Bootstrap(3, "unix:///a+b", "ttrpc")
    assert bootstrap.parse_address("grpc+unix:///a", 2) == Bootstrap(2, "unix:///a", "grpc")
    assert bootstrap.parse_address("unix:///a+b", 3) == Bootstrap(3, "unix:///a+b", "ttrpc")


def test_params() -> None:
    message = bootstrap.params(DAEMON, "ns", "id", OPTIONS)
    assert (message.namespace, message.instance_id) == ("ns", "id")
    assert message.containerd_grpc_address == "/run/d.sock"
    assert message.containerd_ttrpc_address == "/run/d.sock.ttrpc"
    assert message.socket_dir == "/run/s"
    assert message.log_level == pb.LOG_LEVEL_INFO
    (extension,) = message.extensions
    assert (extension.value.type_url, extension.value.value) == (OPTIONS.type_url, OPTIONS.value)
    assert not bootstrap.params(DAEMON, "ns", "id", None).extensions
    legacy = wellknown_pb2.Any.FromString(bootstrap.legacy_params(OPTIONS))
    assert (legacy.type_url, legacy.value) == (OPTIONS.type_url, OPTIONS.value)
    assert bootstrap.legacy_params(None) == b""


def test_a_socket_directory_too_deep_is_not_told() -> None:
    deep = Daemon("/g", "/t", "/run/" + "x" * 50)
    assert bootstrap.params(deep, "ns", "id", None).socket_dir == ""


def test_arguments_and_environment() -> None:
    flags = ["-namespace", "ns", "-address", "/run/d.sock", "-publish-binary", "cradled"]
    assert bootstrap.arguments(DAEMON, "ns", "id") == [*flags, "-id", "id"]
    debug = Daemon("/run/d.sock", "/run/d.sock.ttrpc", "/run/s", debug=True)
    assert bootstrap.arguments(debug, "ns", "id", "/b") == [
        *flags, "-id", "id", "-bundle", "/b", "-debug",
    ]  # fmt: skip
    assert bootstrap.environment({"PATH": "/bin", "NAMESPACE": "old"}, DAEMON, "ns") == {
        "PATH": "/bin",
        "GOMAXPROCS": "2",
        "MAX_SHIM_VERSION": "2",
        "TTRPC_ADDRESS": "/run/d.sock.ttrpc",
        "GRPC_ADDRESS": "/run/d.sock",
        "NAMESPACE": "ns",
        "SCHED_CORE": "1",
    }


def test_what_delete_prints() -> None:
    at = wellknown_pb2.Timestamp(seconds=5, nanos=7)
    response = task_v2_pb2.DeleteResponse(pid=3, exit_status=137, exited_at=at)
    assert bootstrap.parse_delete(response.SerializeToString()) == Exit(3, 137, 5_000_000_007)
    for output in (b"", b"panic: oh no"):
        with pytest.raises(errors.Error, match="DeleteResponse"):
            bootstrap.parse_delete(output)
