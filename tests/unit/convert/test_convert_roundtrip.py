"""Core objects survive the way over the wire; messages keep their bytes' meaning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled.api import containers_pb2, snapshots_pb2, task_types_pb2, tasks_pb2
from cradled.convert import (
    containers,
    content,
    events,
    images,
    leases,
    mounts,
    sandboxes,
    snapshots,
    tasks,
    values,
)
from cradled.core.containers import Container, Runtime
from cradled.core.content import ContentInfo, IngestStatus
from cradled.core.events import Envelope
from cradled.core.images import Image
from cradled.core.leases import Lease, Resource
from cradled.core.mount import Mount
from cradled.core.sandboxes import Sandbox
from cradled.core.snapshots import Kind, SnapshotInfo, Usage
from cradled.core.tasks import CreateTask, Exit, Process, Status, Stdio
from cradled.core.values import AnyValue, Descriptor

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
labels = st.dictionaries(text, text, max_size=4)
times = st.integers(-62135596799 * 10**9, 253402300799 * 10**9)
sizes = st.integers(0, 2**63 - 1)
numbers = st.integers(0, 2**32 - 1)
payloads = st.builds(AnyValue, text, st.binary(max_size=40))
descriptors = st.builds(Descriptor, text, text, sizes, labels)
mount_values = st.builds(Mount, text, text, st.lists(text, max_size=3).map(tuple), text)
stdio = st.builds(Stdio, text, text, text, st.booleans())

CASES: list[tuple[Any, Any, Any]] = [
    (values.any_to_proto, values.any_from_proto, payloads),
    (values.descriptor_to_proto, values.descriptor_from_proto, descriptors),
    (mounts.to_proto, mounts.from_proto, mount_values),
    (
        containers.to_proto,
        containers.from_proto,
        st.builds(
            Container,
            id=text,
            labels=labels,
            image=text,
            runtime=st.builds(Runtime, text, st.none() | payloads),
            spec=st.none() | payloads,
            snapshotter=text,
            snapshot_key=text,
            created_at=times,
            updated_at=times,
            extensions=st.dictionaries(text, payloads, max_size=3),
            sandbox=text,
        ),
    ),
    (
        sandboxes.to_proto,
        sandboxes.from_proto,
        st.builds(
            Sandbox,
            id=text,
            runtime=st.builds(Runtime, text, st.none() | payloads),
            spec=st.none() | payloads,
            labels=labels,
            created_at=times,
            updated_at=times,
            extensions=st.dictionaries(text, payloads, max_size=3),
            sandboxer=text,
        ),
    ),
    (images.to_proto, images.from_proto, st.builds(Image, text, descriptors, labels, times, times)),
    (
        content.to_proto,
        content.from_proto,
        st.builds(ContentInfo, text, sizes, times, times, labels),
    ),
    (
        content.status_to_proto,
        content.status_from_proto,
        st.builds(IngestStatus, text, sizes, sizes, text, times, times),
    ),
    (
        snapshots.to_proto,
        snapshots.from_proto,
        st.builds(SnapshotInfo, text, st.sampled_from(Kind), text, times, times, labels),
    ),
    (snapshots.usage_to_proto, snapshots.usage_from_proto, st.builds(Usage, sizes, sizes)),
    (leases.to_proto, leases.from_proto, st.builds(Lease, text, times, labels)),
    (leases.resource_to_proto, leases.resource_from_proto, st.builds(Resource, text, text)),
    (events.to_proto, events.from_proto, st.builds(Envelope, times, text, text, payloads)),
    (
        tasks.to_proto,
        tasks.from_proto,
        st.builds(Process, text, text, numbers, st.sampled_from(Status), stdio, numbers, times),
    ),
    (
        tasks.create_to_proto,
        tasks.create_from_proto,
        st.builds(
            CreateTask,
            text,
            st.lists(mount_values, max_size=3).map(tuple),
            stdio,
            st.none() | descriptors,
            st.none() | payloads,
            text,
            text,
            numbers,
        ),
    ),
    (tasks.exit_to_proto, tasks.exit_from_proto, st.builds(Exit, numbers, numbers, times)),
]


@pytest.mark.parametrize(("to_proto", "from_proto", "strategy"), CASES)
def test_objects_survive_the_wire(to_proto: Any, from_proto: Any, strategy: Any) -> None:
    @given(strategy)
    def check(value: Any) -> None:
        message = to_proto(value)
        again = type(message).FromString(message.SerializeToString())
        assert from_proto(again) == value
        assert to_proto(from_proto(again)) == again

    check()


@given(st.integers(-(2**62), 2**62))
def test_timestamps_are_exact(nanoseconds: int) -> None:
    message = values.timestamp(nanoseconds)
    assert 0 <= message.nanos < 10**9
    assert message.seconds * 10**9 + message.nanos == nanoseconds


def test_unset_times_are_absent() -> None:
    message = containers.to_proto(Container(id="a"))
    assert not message.HasField("created_at")
    assert not message.HasField("updated_at")


def test_running_process_exits_in_year_one() -> None:
    message = tasks.to_proto(Process("a", "a", 7, Status.RUNNING))
    assert message.exited_at.seconds == -62135596800
    assert message.exited_at.nanos == 0
    assert tasks.from_proto(message).exited_at == 0


def test_payload_urls_are_kept_byte_for_byte() -> None:
    url = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    message = containers_pb2.Container(id="a")
    message.spec.type_url = url
    message.spec.value = b"\xff{"
    assert containers.from_proto(message).spec == AnyValue(url, b"\xff{")


def test_unknown_numbers_become_unknown() -> None:
    assert snapshots.from_proto(snapshots_pb2.Info(kind=99)).kind is Kind.UNKNOWN
    assert tasks.from_proto(task_types_pb2.Process(status=99)).status is Status.UNKNOWN


def test_absent_checkpoint_and_options_stay_absent() -> None:
    task = tasks.create_from_proto(tasks_pb2.CreateTaskRequest(container_id="a"))
    assert task.checkpoint is None
    assert task.options is None
