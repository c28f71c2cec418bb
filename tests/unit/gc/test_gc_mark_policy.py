"""Marking and the policy: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled.gc.mark import Marker
from cradled.gc.policy import Config, Policy

NODES = st.integers(0, 12).map(str)
GRAPHS = st.dictionaries(NODES, st.lists(NODES, max_size=4))


def reachable(graph: dict[str, list[str]], roots: list[str]) -> set[str]:
    found, waiting = set(), list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += graph.get(node, [])
    return found


@given(GRAPHS, st.lists(NODES, max_size=3), st.integers(1, 3))
def test_everything_reachable_is_marked(
    graph: dict[str, list[str]], roots: list[str], size: int
) -> None:
    marker = Marker(lambda node: graph.get(node, ()))
    marker.shade(roots)
    for _ in marker.steps(size):
        pass
    assert marker.marked == reachable(graph, roots)


@given(GRAPHS, st.lists(NODES, max_size=3), NODES, st.lists(NODES, max_size=3))
def test_marking_on_heeds_new_edges(
    graph: dict[str, list[str]], roots: list[str], changed: str, edges: list[str]
) -> None:
    marker = Marker(lambda node: graph.get(node, ()))
    marker.shade(roots)
    for _ in marker.steps():
        pass
    graph[changed] = graph.get(changed, []) + edges
    marker.mark_on([changed])
    assert marker.marked == reachable(graph, [*roots, changed])


def test_steps_are_small() -> None:
    marker = Marker(lambda node: [str(int(node) + 1)] if int(node) < 99 else [])
    marker.shade(["0"])
    assert sum(1 for _ in marker.steps(10)) == 10


def policy(now: float = 0.0, **config: float) -> Policy:
    return Policy(Config(**config), now)  # type: ignore[arg-type]


def test_the_first_comes_after_the_startup_delay() -> None:
    assert policy(5.0).due == pytest.approx(5.1)
    assert policy(5.0, startup_delay=2.0).due == 7.0


def run(made: Policy, seconds: float, now: float) -> None:
    """A collection during which nothing happens."""
    made.started()
    made.ended(seconds, now)


def collected(**config: float) -> Policy:
    """After a first collection that took 1 ms, at 10.0."""
    made = policy(**config)
    run(made, 0.001, 10.0)
    assert made.due is None
    return made


def test_a_deletion_makes_one_due_at_the_end_of_the_interval() -> None:
    made = collected()
    made.changed(1, 0, 10.1)
    assert made.due is None
    made.changed(1, 1, 10.1)
    assert made.due == pytest.approx(10.245)


def test_later_intervals_end_later() -> None:
    made = collected()
    made.changed(1, 1, 10.3)
    assert made.due == pytest.approx(10.49)


def test_many_mutations_make_one_due() -> None:
    made = collected()
    made.changed(99, 0, 10.0)
    assert made.due is None
    made.changed(1, 0, 10.0)
    assert made.due == pytest.approx(10.245)
    assert collected(mutation_threshold=0).due is None


def test_enough_deletions_make_one_due_at_once() -> None:
    made = collected(deletion_threshold=2, schedule_delay=0.05)
    made.changed(1, 1, 10.01)
    assert made.due == pytest.approx(10.245)
    made.changed(1, 1, 10.02)
    assert made.due == pytest.approx(10.07)


def test_long_collections_are_rare() -> None:
    made = policy(pause_threshold=0.1)
    run(made, 2.0, 10.0)
    made.changed(1, 1, 10.0)
    assert made.due == pytest.approx(28.0)
    run(made, 0.0, 30.0)
    made.changed(1, 1, 30.0)
    assert made.due == pytest.approx(39.0)


def test_a_failed_one_is_tried_again() -> None:
    made = collected()
    made.failed(20.0)
    assert made.due == pytest.approx(20.245)


def test_counts_begin_anew() -> None:
    made = collected()
    made.changed(99, 0, 10.0)
    run(made, 0.001, 11.0)
    made.changed(1, 0, 11.0)
    assert made.due is None


def test_what_happens_during_one_counts_for_the_next() -> None:
    made = collected()
    made.started()
    made.changed(1, 1, 10.5)
    made.ended(0.001, 11.0)
    assert made.due == pytest.approx(11.245)
    made.started()
    assert made.due is None
    made.ended(0.001, 12.0)
    assert made.due is None


def test_an_expiry_makes_one_due_at_the_end_of_its_interval() -> None:
    made = collected()
    made.expires(10.3)
    assert made.due == pytest.approx(10.491)
    made.expires(20.0)
    assert made.due == pytest.approx(10.491)
    made.expires(9.0)  # long ago
    assert made.due == pytest.approx(10.246)
