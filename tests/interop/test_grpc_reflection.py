"""A client that has none of our protos: it learns them from the daemon, then calls it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from harness.daemon import Daemon, target

pytestmark = pytest.mark.skipif(target() == "containerd", reason="containerd does not tell")


@pytest.fixture
def channel(empty_daemon: Daemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{empty_daemon.socket}") as channel:
        yield channel


@pytest.fixture
def database(channel: grpc.Channel) -> Any:
    return ProtoReflectionDescriptorDatabase(channel)


def call(channel: grpc.Channel, pool: DescriptorPool, path: str, **fields: Any) -> Any:
    """A unary call that knows no more than its path."""
    service, _, name = path.rpartition("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    request = message_factory.GetMessageClass(method.input_type)(**fields)
    response = message_factory.GetMessageClass(method.output_type)
    rpc = channel.unary_unary(f"/{path}", type(request).SerializeToString, response.FromString)
    return rpc(request, metadata=[("containerd-namespace", "learnt")], timeout=20)


def test_calls_with_what_was_learnt(channel: grpc.Channel, database: Any) -> None:
    pool = DescriptorPool(database)
    namespaces = "containerd.services.namespaces.v1.Namespaces"
    labels = {"a": "1"}
    new = {"namespace": {"name": "learnt", "labels": labels}}
    call(channel, pool, f"{namespaces}/Create", **new)
    listed = call(channel, pool, f"{namespaces}/List").namespaces
    assert [(one.name, dict(one.labels)) for one in listed] == [("learnt", labels)]
    leases = "containerd.services.leases.v1.Leases"
    lease = call(channel, pool, f"{leases}/Create", id="l").lease
    assert lease.id == "l"
    assert lease.created_at.ToDatetime().year > 2020


def test_every_service_can_be_learnt(database: Any) -> None:
    """Each with all messages of all its methods, down to the last dependency."""
    pool = DescriptorPool(database)
    names = list(database.get_services())
    assert "containerd.services.tasks.v1.Tasks" in names
    assert "grpc.reflection.v1.ServerReflection" in names
    for name in names:
        methods = pool.FindServiceByName(name).methods
        assert methods
        for method in methods:
            assert message_factory.GetMessageClass(method.input_type)
            assert message_factory.GetMessageClass(method.output_type)


def test_messages_that_travel_in_others_can_be_learnt(database: Any) -> None:
    pool = DescriptorPool(database)
    for name in ("containerd.events.TaskExit", "containerd.runc.v1.Options"):
        assert pool.FindMessageTypeByName(name).full_name == name
    with pytest.raises(KeyError):
        pool.FindMessageTypeByName("containerd.events.Nothing")
