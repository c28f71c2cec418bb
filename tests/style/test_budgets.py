"""Budgets of size, and the habits that keep the rooms readable (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "cradled"
MODULE_LINES, FUNCTION_LINES, SHIM_LINES = 800, 60, 3000
COLOURS = ("Pure.", "Blocking.", "Async.")
GENERATED = ("api/", "shim/messages.py")


def modules() -> Iterator[Path]:
    for path in sorted(SRC.rglob("*.py")):
        if not str(path.relative_to(SRC)).startswith(GENERATED):
            yield path


def names() -> list[str]:
    return [str(path.relative_to(SRC)) for path in modules()]


@pytest.mark.parametrize("name", names())
def test_module(name: str) -> None:
    text = (SRC / name).read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    tree = ast.parse(text)
    if not text.strip():
        return
    docstring = ast.get_docstring(tree) or ""
    assert docstring.startswith(COLOURS), "the docstring's first word is the module's colour"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


def test_the_shim_is_small() -> None:
    lines = [len(path.read_text().splitlines()) for path in modules() if path.parent.name == "shim"]
    assert sum(lines) <= SHIM_LINES


def test_there_is_no_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
    assert not drawers & {path.stem for path in modules()}
