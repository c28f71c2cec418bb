"""Pure. Tricolour marking, in steps.

White are the nodes never heard of, grey those known to be reachable but not yet looked at, black
those whose successors are known too. Marking is done when nothing is grey. Nodes may be shaded
anew at any time: that is how what others change meanwhile is taken into account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


class Marker:
    """``marked`` holds what is grey or black."""

    def __init__(self, successors: Callable[[str], Iterable[str]]) -> None:
        self._successors = successors
        self._grey: list[str] = []
        self.marked: set[str] = set()

    def shade(self, nodes: Iterable[str]) -> None:
        """Make white nodes grey."""
        for node in nodes:
            if node not in self.marked:
                self.marked.add(node)
                self._grey.append(node)

    def steps(self, size: int = 512) -> Iterator[None]:
        """Mark until nothing is grey, pausing after each ``size`` nodes."""
        marked, grey, successors = self.marked, self._grey, self._successors
        count = 0
        while grey:
            for node in successors(grey.pop()):
                if node not in marked:
                    marked.add(node)
                    grey.append(node)
            count += 1
            if count % size == 0:
                yield

    def mark_on(self, nodes: Iterable[str]) -> None:
        """Mark from nodes whose successors may have changed, whatever their colour, to the end."""
        for node in nodes:
            self.marked.add(node)
            self._grey.append(node)
        for _ in self.steps():
            pass
