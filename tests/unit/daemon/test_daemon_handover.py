"""What daemons say to each other when one takes over."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cradled.daemon import handover

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_messages_and_descriptors(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("here")
    with open(tmp_path / "a") as file:
        handover.send(pair[0], [file.fileno()], say="hello", names=["a", "é"])
    handover.send(pair[0], say="again")
    message, fds = handover.receive(pair[1])
    assert message == {"say": "hello", "names": ["a", "é"]}
    with open(fds[0]) as received:
        assert received.read() == "here"
        assert not os.get_inheritable(received.fileno())
    assert handover.receive(pair[1]) == ({"say": "again"}, [])


def test_a_long_message(pair: Pair) -> None:
    modules = [f"cradled.daemon.module_{number}" for number in range(2000)]
    handover.send(pair[0], modules=modules)
    assert handover.receive(pair[1]) == ({"modules": modules}, [])


def test_the_end(pair: Pair) -> None:
    pair[0].close()
    assert handover.receive(pair[1]) == ({}, [])
    with pytest.raises(BrokenPipeError):
        handover.send(pair[1], say="hello")


def test_last_words_of_one_that_did_not_listen(pair: Pair) -> None:
    handover.send(pair[0], say="hello")
    handover.send(pair[1], say="failed", why="of this")
    pair[1].close()
    assert handover.receive(pair[0]) == ({"say": "failed", "why": "of this"}, [])
    assert handover.receive(pair[0]) == ({}, [])


def test_one_that_ended_without_a_word(pair: Pair) -> None:
    handover.send(pair[0], say="hello")
    pair[1].close()
    assert handover.receive(pair[0]) == ({}, [])
