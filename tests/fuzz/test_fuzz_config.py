"""Configuration files of known keys in wrong places: problems or a configuration, never more."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import Any

from harness.corpus import fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from cradled.daemon import builtins, config_file, config_text
from cradled.daemon.config import Config, ConfigError
from cradled.daemon.config_check import line_of
from cradled.daemon.migrate import lift

KNOWN = builtins.known()
NAMES = st.sampled_from(sorted(
    {*Config._fields, "version", "grpc", "ttrpc", "metrics", "address", "uid", "tcp_address",
     "level", "format", "path", "type", "accepts", "env", "cri", "bolt", "scheduler", "restart",
     "containerd", "runtimes", "sandbox_image", "registry", "sched_core", "task", "x y", "",
     "io.containerd.timeout.shim.load", "io.containerd.grpc.v1.cri"}
    | set(KNOWN.sections)
    | {key for cls in KNOWN.sections.values() if cls is not None for key in cls._fields}
))  # fmt: skip
PLAIN = st.one_of(
    st.sampled_from(["", "1s", "x", "/a", "shared", "info", "text"]),
    st.integers(-1, 5),
    st.booleans(),
    st.sampled_from([0.5, -1.0]),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
TABLES = st.dictionaries(NAMES, VALUES, max_size=6)
PLUGINS = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), max_size=4)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    tables = draw(TABLES)
    if draw(st.booleans()):
        tables["version"] = draw(st.integers(0, 4))
    if draw(st.booleans()):
        tables["plugins"] = draw(PLUGINS)
    tables.pop("imports", None)
    return tables


@fuzz(120)
@given(files())
@example({"plugins": {"io.containerd.grpc.v1.cri": {"containerd": 1}}})
@example({"plugins": {"task": {"sched_core": True}, "io.containerd.shim.v1.manager": {"env": 1}}})
@example({"disabled_plugins": [1, {}]})
def test_any_tables(tables: dict[str, Any]) -> None:
    text = config_text.text(tables)
    assert tomllib.loads(text) == tables
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "c.toml"
        path.write_text(f"imports = []\n{text}")
        config, problems = config_file.examine(str(path), must_exist=True, known=lambda: KNOWN)
    for problem in problems:
        assert str(problem).startswith(str(path))
        assert problem.line <= text.count("\n") + 1
    if not any(problem.level == "error" for problem in problems):
        config_text.full(config, KNOWN.sections)
    try:
        once = config_text.text(lift(tables))
    except ConfigError:
        assert any(problem.level == "error" for problem in problems)
        return
    assert config_text.text(lift(tomllib.loads(once))) == once


@fuzz(60)
@given(st.text(alphabet='ab[]="\n.# \\', max_size=80), st.lists(NAMES, max_size=3).map(tuple))
def test_lines_of_anything(text: str, path: tuple[str, ...]) -> None:
    assert 0 <= line_of(text, path) <= len(text.splitlines())
