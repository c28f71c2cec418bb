from __future__ import annotations

import pytest

from cradled.daemon.arguments import Arguments, UsageError, parse


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", Arguments()),
        ("-c f", Arguments(config="f")),
        ("--config=f --root r --state=s", Arguments(config="f", root="r", state="s")),
        ("-a x.sock -l debug", Arguments(address="x.sock", log_level="debug")),
        ("--exit-idle 2.5", Arguments(exit_idle=2.5)),
        ("--root=a=b", Arguments(root="a=b")),
        ("config default", Arguments("default")),
        ("-c f config dump", Arguments("dump", config="f")),
        ("config --root r dump", Arguments("dump", root="r")),
        ("-v", Arguments("version")),
        ("--version --nonsense", Arguments("version")),
        ("-h", Arguments("help")),
    ],
)
def test_lines(line: str, wanted: Arguments) -> None:
    assert parse(line.split()) == wanted


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--rot x", "unknown flag --rot"),
        ("--root", "flag --root needs a value"),
        ("run", "unknown command run"),
        ("config", "unknown command config"),
        ("--exit-idle soon", "number of seconds"),
        ("--exit-idle -1", "number of seconds"),
        ("--exit-idle inf", "number of seconds"),
        ("--exit-idle nan", "number of seconds"),
    ],
)
def test_mistakes(line: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse(line.split())
