from __future__ import annotations

import json
from pathlib import Path

import pytest

from cradled.daemon.oci_hook import State, load, render, run
from cradled.errors import Error, InvalidArgument

STATE = State("i", "/b", "/b/rootfs", 7, "created", {"a.b/c": "v"})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain {} }}", "plain {} }}"),
        ("{{id}}-{{ pid }}:{{- status -}}", "i-7:created"),
        ("{{bundle}}{{rootfs}}", "/b/b/rootfs"),
        ('{{annotation "a.b/c"}} {{annotation `a.b/c`}} {{annotation a.b/c}}', "v v v"),
        ('x{{annotation "none"}}y', "xy"),
    ],
)
def test_rendered(text: str, wanted: str) -> None:
    assert render(text, STATE) == wanted


@pytest.mark.parametrize("text", ["{{pod}}", "{{}}", "{{annotation}}", "{{id pid}}"])
def test_unknown_actions(text: str) -> None:
    with pytest.raises(InvalidArgument, match="unknown action"):
        render(text, STATE)


@pytest.mark.parametrize(("root", "wanted"), [("rootfs", "{}/rootfs"), ("/abs", "/abs")])
def test_state_is_loaded(tmp_path: Path, root: str, wanted: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": root}}))
    state = {"id": "i", "bundle": str(tmp_path), "pid": 3, "status": "running"}
    assert load(json.dumps(state)) == State(
        "i", str(tmp_path), wanted.format(tmp_path), 3, "running", {}
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": "x"}', '{"bundle":"/","id":1,"pid":"x"}'])
def test_what_is_no_state(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no container's state"):
        load(text)


def test_bundle_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Error, match="cannot read the root"):
        load(json.dumps({"id": "i", "bundle": f"{tmp_path}/none"}))


def test_no_program() -> None:
    with pytest.raises(InvalidArgument, match="needs a program"):
        run("{}", ())
