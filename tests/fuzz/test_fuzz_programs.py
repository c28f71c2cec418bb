"""What programs of this house and of others say to one another: shims and daemons at the start, the
shim's messages, images' documents, jobs of workers, requests to the zygote.

Damaged input is refused by the documented error, and nothing else comes of it."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtoMessage
from harness.corpus import fuzz, replay
from hypothesis import given
from hypothesis import strategies as st

from cradled.api import bootstrap_pb2, runc_options_pb2, task_v3_pb2  # noqa: F401
from cradled.api.pool import POOL
from cradled.core.values import AnyValue
from cradled.daemon import tracing
from cradled.errors import Error, InvalidArgument, NotFound
from cradled.oci import image
from cradled.runtime import bootstrap as daemon_side
from cradled.runtime import bundle as daemon_bundle
from cradled.shim import bootstrap as shim_side
from cradled.shim import bundle as shim_bundle
from cradled.shim import messages
from cradled.transfer import importer
from cradled.ttrpc import codec
from cradled.ttrpc.codec import Message
from cradled.workers import jobs
from cradled.zygote import protocol

WOUNDS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4)


def wounded(data: bytes, wounds: list[tuple[int, int]]) -> bytes:
    """Bytes changed here and there; a place beyond the end cuts it short."""
    out = bytearray(data)
    for place, byte in wounds:
        if place < len(out):
            out[place] = byte
        elif out:
            del out[place % len(out) :]
    return bytes(out)


# The shim's messages, beside protobuf

KINDS = [
    messages.CreateTaskRequest,
    messages.UpdateTaskRequest,
    messages.StateResponse,
    messages.PidsResponse,
    messages.BootstrapParams,
    messages.Options,
    messages.Any,
]
FIELDS = st.one_of(
    st.builds(
        lambda number, value: bytes((number << 3,)) + value,
        st.integers(1, 15),
        st.sampled_from([b"\x00", b"\x01", b"\x7f", b"\xff\x01", b"\xff" * 9 + b"\x01"]),
    ),
    st.builds(
        lambda number, data: bytes((number << 3 | 2, len(data))) + data,
        st.integers(1, 15),
        st.one_of(
            st.binary(max_size=20),
            st.just(b"\x0a\x01a\x12\x01b"),
            st.just(b"\x0a\x03a.b\x12\x02\x08\x01"),
        ),
    ),
    st.builds(
        lambda number, data: bytes((number << 3 | 1,)) + data,
        st.integers(1, 15),
        st.binary(min_size=8, max_size=8),
    ),
)


def check_message(kind: type[Message], data: bytes) -> None:
    """What ours reads is what protobuf reads; ours refuses more only where groups are."""
    theirs: Any = message_factory.GetMessageClass(POOL.FindMessageTypeByName(kind.NAME))()
    try:
        ours = codec.decode(kind, data)
    except ValueError:
        return
    written = codec.encode(ours)
    assert codec.decode(kind, written) == ours
    try:
        theirs.ParseFromString(data)
    except DecodeError:
        return  # it looks into fields of which ours reads only the last
    again = type(theirs).FromString(written)
    for message in (theirs, again):
        message.DiscardUnknownFields()
        forget_empty(message)
    assert again == theirs


def forget_empty(message: Any) -> None:
    """To ours an optional text that is there and empty is as good as absent."""
    for field, value in message.ListFields():
        if field.message_type is None and field.has_presence and not value:
            message.ClearField(field.name)
        elif isinstance(value, ProtoMessage):
            forget_empty(value)


@replay("shim")
def test_kept_messages(data: bytes) -> None:
    for kind in KINDS:
        check_message(kind, data)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@fuzz(60)
@given(st.lists(FIELDS, max_size=8).map(b"".join), WOUNDS)
def test_messages_of_the_shim(kind: type[Message], data: bytes, wounds: Any) -> None:
    check_message(kind, data)
    check_message(kind, wounded(data, wounds))


# The start of a shim

WORDS = st.one_of(
    st.sampled_from([
        "-id", "--id", "-id=x", "-namespace", "ns", "-debug", "-debug=false", "-v", "--", "-", "",
        "start", "delete", "-address=/a", "-bundle", "/b", "-info", "-unknown", "=", "-=x", "---id",
    ]),
    st.text(max_size=5),
)  # fmt: skip


@fuzz(150)
@given(st.lists(WORDS, max_size=8))
def test_flags_of_a_shim(argv: list[str]) -> None:
    try:
        flags = shim_side.parse_flags(argv)
    except InvalidArgument:
        return
    assert flags.action in ("", "start", "delete")
    assert set(flags.values) <= set(shim_side._VALUES)
    assert flags.switches <= set(shim_side._SWITCHES)


TEXT = st.text(max_size=12)


@fuzz(120)
@given(TEXT, TEXT, TEXT, st.one_of(st.none(), st.binary(max_size=20)), WOUNDS)
def test_what_a_daemon_tells_a_shim(
    namespace: str, id: str, address: str, options: bytes | None, wounds: Any
) -> None:
    """All of it arrives, in today's form and in the older one; damaged, it is no harm."""
    value = None if options is None else AnyValue(messages.Options.NAME, options)
    daemon = daemon_side.Daemon(address, f"{address}.t", "/s")
    params = daemon_side.params(daemon, namespace, id, value).SerializeToString()
    argv = daemon_side.arguments(daemon, namespace, id)
    environment = daemon_side.environment({}, daemon, namespace)
    flags = shim_side.parse_flags(argv)
    for stdin in (params, daemon_side.legacy_params(value)):
        start = shim_side.Start(flags, environment, stdin)
        assert (start.id, start.namespace, start.grpc_address) == (id, namespace, address)
        shim_side.Start(flags, environment, wounded(stdin, wounds))


def check_output(output: bytes) -> None:
    """What ``start`` and ``delete`` printed, and what is kept of it."""
    for parse in (daemon_side.parse_output, daemon_side.parse_json):
        with suppress(Error):
            result = parse(output)
            assert 0 < result.version <= daemon_side.MAX_VERSION
            assert result.address
            assert daemon_side.parse_json(result.to_json()) == result
    with suppress(Error):
        assert daemon_side.parse_delete(output).exited_at >= 0


@replay("bootstrap")
def test_kept_outputs(data: bytes) -> None:
    check_output(data)


OUTPUTS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=30).map(str.encode),
    st.builds(
        lambda version, address, protocol: bootstrap_pb2.BootstrapResult(
            version=version, address=address, protocol=protocol
        ).SerializeToString(),
        st.integers(0, 5), TEXT, st.sampled_from(["ttrpc", "grpc", "http", ""]),
    ),
    st.recursive(
        st.one_of(
            st.integers(), st.floats(), TEXT, st.booleans(), st.none(), st.sampled_from([2, 3])
        ),
        lambda inner: st.dictionaries(
            st.sampled_from(["version", "address", "protocol", "x"]), inner, max_size=4
        ),
        max_leaves=6,
    ).map(lambda value: daemon_side.json.dumps(value).encode()),
)  # fmt: skip


@fuzz(150)
@given(OUTPUTS, WOUNDS)
def test_what_a_shim_prints(output: bytes, wounds: Any) -> None:
    check_output(output)
    check_output(wounded(output, wounds))


# Specs


SPECS = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), TEXT, st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from([
                "linux", "gidMappings", "hostID", "containerID", "annotations",
                *shim_side.GROUP_ANNOTATIONS,
            ]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=10,
)  # fmt: skip


def check_spec(data: bytes, directory: Path) -> None:
    with suppress(Error):
        assert isinstance(daemon_bundle._root_group(data), int)
    (directory / "config.json").write_bytes(data)
    annotations = shim_bundle.group_annotations(str(directory))
    assert all(isinstance(value, str) for value in annotations.values())


@replay("specs")
def test_kept_specs(data: bytes, tmp_path: Path) -> None:
    check_spec(data, tmp_path)


@fuzz(120)
@given(st.dictionaries(st.sampled_from(["linux", "annotations"]), SPECS), WOUNDS)
def test_specs(spec: Any, wounds: Any) -> None:
    data = daemon_side.json.dumps(spec).encode()
    with tempfile.TemporaryDirectory() as directory:
        check_spec(data, Path(directory))
        check_spec(wounded(data, wounds), Path(directory))


# Documents of images

DIGEST = "sha256:" + "0" * 64
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), TEXT,
    st.sampled_from([image.MANIFEST, image.INDEX, DIGEST, "linux", "amd64", "arm64", "v8"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from([
        "manifests", "config", "layers", "mediaType", "digest", "size", "annotations", "platform",
        "architecture", "os", "variant", "os.version", "os.features", "rootfs", "diff_ids", "type",
        "User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Labels",
    ]),
    TEXT,
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=15,
)
DESCRIPTOR = st.fixed_dictionaries(
    {"mediaType": LEAVES, "digest": LEAVES, "size": LEAVES},
    optional={
        "annotations": VALUES,
        "platform": st.dictionaries(st.sampled_from(["os", "architecture", "variant"]), LEAVES),
    },
)
DOCUMENTS = st.one_of(
    VALUES,
    st.fixed_dictionaries({"manifests": st.lists(DESCRIPTOR, max_size=3)}),
    st.fixed_dictionaries({"config": DESCRIPTOR, "layers": st.lists(DESCRIPTOR, max_size=3)}),
    st.fixed_dictionaries({"rootfs": VALUES, "config": VALUES, "os": LEAVES}),
)


def check_document(data: bytes) -> None:
    with suppress(InvalidArgument):
        importer._decode(data, image.Index, "index")
    with suppress(InvalidArgument):
        tracing._query(AnyValue(tracing.QUERY, data))
    for read in (image.index, image.manifest, image.config):
        with suppress(InvalidArgument):
            view: Any = read(data)
            if isinstance(view, image.Index):
                with suppress(NotFound):
                    assert image.choose(view).digest
            elif isinstance(view, image.Manifest):
                assert len([layer.descriptor() for layer in view.layers]) == len(view.layers)
            else:
                assert isinstance(view.run.user, str)
                assert view.platform.os == view.os


@replay("images")
def test_kept_documents(data: bytes) -> None:
    check_document(data)


@fuzz(150)
@given(DOCUMENTS, WOUNDS)
def test_documents_of_images(document: Any, wounds: Any) -> None:
    data = daemon_side.json.dumps(document).encode()
    check_document(data)
    check_document(wounded(data, wounds))


# Workers and the zygote, which are of the same interpreter: what they say is whole

PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXT, st.binary(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=10,
)


@fuzz(200)
@given(st.dictionaries(TEXT, PLAIN, max_size=4), st.integers(0, 3))
def test_messages_with_descriptors_arrive_whole(message: dict[str, Any], count: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        protocol.send(ours, protocol.encode(message), [ours.fileno()] * count)
        data, fds = protocol.receive(theirs)
        try:
            assert protocol.decode(data) == message
            assert len(fds) == count
            assert all(os.fstat(fd).st_ino == os.fstat(ours.fileno()).st_ino for fd in fds)
            assert not any(os.get_inheritable(fd) for fd in fds)
        finally:
            for fd in fds:
                os.close(fd)


@pytest.mark.parametrize("value", [object(), {1: {2: object()}}, lambda: None])
def test_what_is_not_plain_is_not_sent(value: Any) -> None:
    with pytest.raises(ValueError, match="unmarshallable"):
        protocol.encode({"value": value})


def test_messages_over_the_limit_are_not_sent() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        protocol.encode({"value": bytes(protocol.MAX_MESSAGE)})


@pytest.mark.parametrize("job", sorted(set(jobs.JOBS) - {"remove_tree"}))
@fuzz(60)
@given(params=st.dictionaries(
    st.sampled_from(["mounts", "path", "root", "sync", "sniff", "target", "kind", "roots"]),
    PLAIN,
    max_size=5,
))  # fmt: skip
def test_jobs_with_wrong_parameters_fail_and_tell(job: str, params: dict[str, Any]) -> None:
    told = jobs.run(job, params, [], "/nonexistent")
    if "error" in told:
        kind, text = told["error"]
        assert isinstance(text, str)
        assert kind in ("Internal", "Error", "InvalidArgument", "NotFound", "FailedPrecondition")
    protocol.encode(told)
