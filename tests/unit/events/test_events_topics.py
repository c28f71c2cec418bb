"""Topics: types and fields as clients know them."""

from __future__ import annotations

import pytest

from cradled.api import events_pb2 as pb
from cradled.api import images_pb2
from cradled.convert import denials
from cradled.core.containers import Container, Runtime
from cradled.core.images import Image
from cradled.core.mount import Mount
from cradled.core.tasks import Exit, Stdio
from cradled.core.values import AnyValue, Descriptor
from cradled.events import topics

END = Exit(7, 137, 1_500_000_000)
CONTAINER = Container("c", {"a.b": "1"}, "img", Runtime("r", AnyValue("o", b"1")), snapshot_key="k")
IMAGE = Image("n", Descriptor("m", "d", 1), {"l": "1"})


@pytest.mark.parametrize(
    ("event", "topic", "type_url"),
    [
        (topics.container_created(CONTAINER), "/containers/create", "ContainerCreate"),
        (topics.container_updated(CONTAINER), "/containers/update", "ContainerUpdate"),
        (topics.container_deleted("c"), "/containers/delete", "ContainerDelete"),
        (topics.content_created("d", 5), "/content/create", "ContentCreate"),
        (topics.content_deleted("d"), "/content/delete", "ContentDelete"),
        (topics.namespace_created("n", {}), "/namespaces/create", "NamespaceCreate"),
        (topics.namespace_updated("n", {}), "/namespaces/update", "NamespaceUpdate"),
        (topics.namespace_deleted("n"), "/namespaces/delete", "NamespaceDelete"),
        (topics.snapshot_prepared("s", "k", "p"), "/snapshot/prepare", "SnapshotPrepare"),
        (topics.snapshot_committed("s", "k", "n"), "/snapshot/commit", "SnapshotCommit"),
        (topics.snapshot_removed("s", "k"), "/snapshot/remove", "SnapshotRemove"),
        (topics.task_started("c", 7), "/tasks/start", "TaskStart"),
        (topics.task_exited("c", "c", END), "/tasks/exit", "TaskExit"),
        (topics.task_deleted("c", "c", END), "/tasks/delete", "TaskDelete"),
        (topics.sandbox_created("s"), "/sandboxes/create", "SandboxCreate"),
        (topics.sandbox_started("s"), "/sandboxes/start", "SandboxStart"),
        (topics.sandbox_exited("s", END), "/sandboxes/exit", "SandboxExit"),
    ],
)
def test_topics_and_types(event: topics.Event, topic: str, type_url: str) -> None:
    assert event[0] == topic
    assert event[1].type_url == f"containerd.events.{type_url}"
    assert getattr(pb, type_url).FromString(event[1].value) != getattr(pb, type_url)()


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (topics.image_created(IMAGE), "Create"),
        (topics.image_updated(IMAGE), "Update"),
        (topics.image_deleted("n"), "Delete"),
    ],
)
def test_image_events_have_a_package_of_their_own(event: topics.Event, kind: str) -> None:
    assert event[0] == f"/images/{kind.lower()}"
    assert event[1].type_url == f"containerd.services.images.v1.Image{kind}"
    assert getattr(images_pb2, f"Image{kind}").FromString(event[1].value).name == "n"


def test_what_a_created_task_tells() -> None:
    mounts = [Mount("overlay", "overlay", ("rw",))]
    _, event = topics.task_created("c", "/b", mounts, Stdio("/in", "/out", terminal=True), 7)
    message = pb.TaskCreate.FromString(event.value)
    assert (message.container_id, message.bundle, message.pid) == ("c", "/b", 7)
    assert (message.io.stdin, message.io.stdout, message.io.terminal) == ("/in", "/out", True)
    assert [mount.type for mount in message.rootfs] == ["overlay"]


def test_exits_are_read_back() -> None:
    _, event = topics.task_exited("c", "e", END)
    assert topics.read_task_exit(event) == ("c", "e", END)
    prefixed = AnyValue("type.googleapis.com/" + event.type_url, event.value)
    assert topics.read_task_exit(prefixed) == ("c", "e", END)
    assert topics.read_task_exit(topics.task_started("c", 7)[1]) is None
    assert topics.read_task_exit(AnyValue(event.type_url, b"\xff")) is None
    assert topics.read_task_exit(AnyValue("unknown")) is None


DENIED = denials.event(7, "no", {"uid": "7", "none": ""})
CREATED = topics.task_created("c", "/b", [], Stdio(stdout="/out"), 7)


@pytest.mark.parametrize(
    ("event", "path", "value"),
    [
        (topics.container_created(CONTAINER), "id", "c"),
        (topics.container_created(CONTAINER), "image", "img"),
        (topics.container_created(CONTAINER), "runtime.name", "r"),
        (topics.container_created(CONTAINER), "runtime", None),
        (topics.container_created(CONTAINER), "runtime.options", None),
        (topics.container_updated(CONTAINER), "labels.a.b", "1"),
        (topics.container_updated(CONTAINER), "labels.a", None),
        (topics.container_updated(CONTAINER), "snapshot_key", "k"),
        (topics.image_created(IMAGE), "labels.l", "1"),
        (topics.image_created(IMAGE), "name", "n"),
        (topics.content_created("d", 5), "digest", "d"),
        (topics.content_created("d", 5), "size", None),
        (topics.task_exited("c", "e", END), "container_id", "c"),
        (topics.task_exited("c", "e", END), "exited_at", None),
        (CREATED, "io.stdout", "/out"),
        (CREATED, "io.stdin", None),
        (CREATED, "io.terminal", "false"),
        (CREATED, "checkpoint", None),
        (CREATED, "pid", None),
        (CREATED, "rootfs", None),
        (CREATED, "nothing", None),
        (topics.task_started("", 7), "container_id", None),
        (("", AnyValue("unknown", b"1")), "id", None),
        (("", DENIED), "uid", "7"),
        (("", DENIED), "message", "no"),
        (("", DENIED), "none", None),
        (("", DENIED), "gid", None),
        (("", DENIED), "code", None),
        (("", AnyValue("google.rpc.Status", b"\xff")), "uid", None),
    ],
)
def test_fields(event: topics.Event, path: str, value: str | None) -> None:
    assert topics.field_reader(event[1])(tuple(path.split("."))) == value
    assert topics.field_reader(event[1])(()) is None
