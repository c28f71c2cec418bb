"""What a handler learns of its call."""

import os
import socket

import pytest

from cradled import errors
from cradled.core.scope import Scope
from cradled.rpc.call import Call, Peer, split_metadata

NAMESPACE = "containerd-namespace"


def call(transport="grpc", **metadata):
    return Call(transport, {key.replace("_", "-"): v for key, v in metadata.items()}, {})


def test_scope():
    assert call(containerd_namespace="n").scope() == Scope("n")
    assert call(containerd_namespace="n", containerd_lease="l").scope() == Scope("n", "l")


def test_each_transport_has_its_own_key():
    both = {"containerd_namespace": "g", "containerd_namespace_ttrpc": "t"}
    assert call("grpc", **both).scope() == Scope("g")
    assert call("ttrpc", **both, containerd_lease="l").scope() == Scope("t")
    with pytest.raises(errors.FailedPrecondition):
        call("ttrpc", containerd_namespace="g").scope()


def test_no_namespace():
    for metadata in ({}, {"containerd_namespace": ""}):
        with pytest.raises(errors.FailedPrecondition, match=r"^namespace is required: "):
            call(**metadata).scope()


@pytest.mark.parametrize("name", ["a/b", "-a", "a" * 77, "ä"])
def test_bad_namespace(name):
    with pytest.raises(errors.InvalidArgument, match=r"^namespace validation: identifier "):
        call(containerd_namespace=name).scope()


def test_split_metadata():
    pairs = [("a", "1"), ("a", "2"), ("b-bin", "AP8="), ("c-bin", "AP8,AQ"), ("d-bin", "?")]
    assert split_metadata(pairs) == ({"a": "1"}, {"b-bin": b"\x00\xff", "c-bin": b"\x00\xff"})


def test_peer():
    a, b = socket.socketpair()
    with a, b:
        assert Peer.of(a) == (os.getpid(), os.getuid(), os.getgid())
    with socket.socket() as tcp:
        assert Peer.of(tcp) is None
