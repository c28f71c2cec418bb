"""Blocking. ``cradle trace``: what the daemon did, step by step, and how long it took."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cradled.cli import output
from cradled.cli.app import App, Command, Group

if TYPE_CHECKING:
    from cradled.client import Client
    from cradled.client.traces import Span, Trace

_BAR = 24
_NAME = 44
_VALUE = 20
_BLOCKS = " ▏▎▍▌▋▊▉█"


@click.group("trace", cls=Group)
def trace() -> None:
    """Show what the daemon did last, step by step."""


@trace.command("last", cls=Command)
@click.argument("count", type=click.IntRange(1), default=1)
@click.option("--slowest", is_flag=True, help="Those that took longest, not those that ended last.")
@click.option("--all", "single", is_flag=True, help="Calls that had no steps, too.")
@click.pass_obj
def last(app: App, count: int, slowest: bool, single: bool) -> None:
    """Show the last COUNT traces (1): all steps of what was asked for, with their durations.

    The daemon keeps the last few hundred in memory.
    """

    async def main(client: Client) -> Sequence[Trace]:
        return await client.trace(last=count, slowest=slowest, single=single)

    found = app.run(main)
    if app.json:
        output.print_json([asdict(one) for one in found])
    elif sys.stdout.isatty():
        for one in found:
            _draw(one)
    else:
        for one in found:
            _print(one)


def _print(trace: Trace) -> None:
    """Lines for programs: trace, depth, begin and duration in microseconds, name, the rest."""
    for depth, span in _rows(trace):
        fields = [
            trace.id,
            str(depth),
            str((span.start - trace.start) // 1000),
            str((span.end - span.start) // 1000),
            span.name,
            _details(span),
        ]
        print("\t".join(fields))


def _draw(trace: Trace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [(depth, "  " * depth + _short(span.name), span) for depth, span in _rows(trace)]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, min_width=min(max(len(name) for _, name, _ in rows), _NAME))
    table.add_column(justify="right", no_wrap=True, min_width=len("1.00 us"))
    table.add_column(no_wrap=True, min_width=_BAR)
    table.add_column(overflow="ellipsis", no_wrap=True, style="dim")
    for depth, name, span in rows:
        style = "red" if span.error else "bold" if not depth else ""
        table.add_row(
            Text(name, style=style),
            _duration(span.seconds),
            Text(_bar(span, trace), style="red" if span.error else "cyan"),
            Text(_details(span, _VALUE)),
        )
    console = Console(highlight=False)
    console.print(f"{output.instant(trace.start)}  {_duration(trace.seconds)}  {trace.id}")
    console.print(table)
    if trace.dropped:
        console.print(f"({trace.dropped} more steps were not kept)")
    console.print()


def _rows(trace: Trace) -> Iterator[tuple[int, Span]]:
    """Each span with its depth, below the one it is part of; in the order in which they began."""
    known = {span.id for span in trace.spans}
    parts: dict[str, list[Span]] = {}
    for span in trace.spans:
        parts.setdefault(span.parent if span.parent in known else "", []).append(span)
    pending = [(0, span) for span in reversed(parts.get("", []))]
    while pending:
        depth, span = pending.pop()
        yield depth, span
        pending += [(depth + 1, part) for part in reversed(parts.get(span.id, []))]


def _bar(span: Span, trace: Trace) -> str:
    """When in the trace it was under way, as a bar of eighths of a character."""
    whole = max(trace.seconds * 1e9, 1)
    begin = (span.start - trace.start) / whole * _BAR
    length = max((span.end - span.start) / whole * _BAR, 1 / 8)
    full, rest = divmod(round(length * 8), 8)
    cells = "█" * full + (_BLOCKS[rest] if rest else "")
    return (" " * min(int(begin), _BAR - 1) + cells)[:_BAR]


def _short(name: str) -> str:
    """``containerd.services.tasks.v1.Tasks/Create`` -> ``Tasks/Create``."""
    service, slash, method = name.rpartition("/")
    return f"{service.rpartition('.')[2]}{slash}{method}"


def _details(span: Span, most: int | None = None) -> str:
    """Attributes, the first ``most`` characters of each value, and the error."""
    words = [f"{key}={str(value)[:most]}" for key, value in span.attributes.items() if value != ""]
    return " ".join([*words, *([f"error: {span.error}"] if span.error else [])])


def _duration(seconds: float) -> str:
    """Three digits and a unit."""
    value, unit = seconds * 1e6, "us"
    if value >= 1e6:
        value, unit = seconds, "s"
    elif value >= 1e3:
        value, unit = seconds * 1e3, "ms"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


COMMANDS = {"trace": trace}
