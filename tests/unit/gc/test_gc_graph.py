"""What labels say: references, conditions, times."""

from __future__ import annotations

import pytest

from cradled.metadata import graph

MINUTE = 60 * 10**9


@pytest.mark.parametrize(
    ("label", "value", "node"),
    [
        ("gc.ref.content", "D", "content/D"),
        ("gc.ref.content.m.0", "D", "content/D"),
        ("gc.ref.content/x", "D", "content/D"),
        ("gc.ref.contents", "D", None),
        ("gc.ref.snapshot.overlayfs", "k", "snapshot/overlayfs/k"),
        ("gc.ref.snapshot.overlayfs/x", "k/l", "snapshot/overlayfs/k/l"),
        ("gc.ref.snapshot.my.own", "k", "snapshot/my.own/k"),
        ("gc.ref.snapshot", "k", None),
        ("gc.ref.image", "n:1", "image/n:1"),
        ("gc.ref.image.1", "n", "image/n"),
        ("gc.ref.container", "c", "container/c"),
        ("gc.ref.stream", "s", None),
        ("gc.root", "x", None),
        ("other", "x", None),
    ],
)
def test_references(label: str, value: str, node: str | None) -> None:
    found = graph.links("ns", {f"containerd.io/{label}": value})
    assert found.references == ([] if node is None else [f"ns/{node}"])
    assert (found.back_references, found.conditions) == ([], [])


@pytest.mark.parametrize(
    ("label", "node"),
    [
        ("gc.bref.content.0", "content/x"),
        ("gc.bref.image", "image/x"),
        ("gc.bref.container/1", "container/x"),
        ("gc.bref.snapshot.s/1", "snapshot/s/x"),
    ],
)
def test_back_references(label: str, node: str) -> None:
    found = graph.links("ns", {f"containerd.io/{label}": "x"})
    assert found == ([], [f"ns/{node}"], [])


def test_conditions() -> None:
    label = "containerd.io/gc.cond.snapshot.overlayfs"
    found = graph.links("ns", {label: "usedat<10m|a|b", label + "/x": "nonsense"})
    assert found.conditions == [("ns/snapshot/overlayfs/a|b", "usedat<10m")]


@pytest.mark.parametrize(
    ("condition", "minutes", "expected"),
    [
        ("usedat<10m", 9, True),
        ("usedat<10m", 11, False),
        ("usedat>10m", 11, True),
        ("usedat>5m,usedat<10m", 7, True),
        ("usedat>5m,usedat<10m", 3, False),
        ("usedat<ten", 1, False),
        ("used<10m", 1, False),
        ("", 1, False),
    ],
)
def test_satisfied(condition: str, minutes: int, expected: bool) -> None:
    now = graph.parse_time("2026-01-01T01:00:00Z")
    assert now is not None
    labels = {"containerd.io/gc.cond.value-usedat": f"2026-01-01T00:{60 - minutes:02}:00Z"}
    assert graph.satisfied(condition, labels, now) is expected
    assert not graph.satisfied(condition, {}, now)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("1970-01-01T00:00:00", None),
        ("1970-13-01T00:00:00Z", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_times(text: str, nanoseconds: int | None) -> None:
    assert graph.parse_time(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("10m", 10 * MINUTE),
        ("1h30m", 90 * MINUTE),
        ("1.5s", 1_500_000_000),
        ("100ms", 100_000_000),
        ("2us3ns", 2003),
        ("-1m", -MINUTE),
        ("0", 0),
        ("", None),
        ("10", None),
        ("m", None),
        ("1m x", None),
    ],
)
def test_durations(text: str, nanoseconds: int | None) -> None:
    assert graph.parse_duration(text) == nanoseconds


def test_an_invalid_expiry_never_expires() -> None:
    label = "containerd.io/gc.expire"
    assert graph.expired(graph.expiry({label: "1990-01-01T00:00:00Z"}), 10**18)
    assert not graph.expired(graph.expiry({label: "2990-01-01T00:00:00Z"}), 10**18)
    assert graph.expiry({label: "soon"}) is None
    assert graph.expiry({}) is None
    assert not graph.expired(None, 10**18)
