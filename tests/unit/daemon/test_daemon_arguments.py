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
        ("config migrate", Arguments("migrate")),
        ("config migrate f", Arguments("migrate", config="f")),
        ("--strict -c g config check f", Arguments("check", config="f", strict=True)),
        (
            "--address a publish --topic=/t --namespace n",
            Arguments("publish", address="a", topic="/t", namespace="n"),
        ),
        ("oci-hook -- /bin/x -v --topic", Arguments("hook", operands=("/bin/x", "-v", "--topic"))),
        ("oci-hook /bin/x -- y", Arguments("hook", operands=("/bin/x", "--", "y"))),
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
        ("config dump f", "unknown command config dump f"),
        ("config check f g", "unknown command config check f g"),
        ("--topic /t", "flag --topic belongs to publish"),
        ("--exit-idle soon", "number of seconds"),
        ("--exit-idle -1", "number of seconds"),
        ("--exit-idle inf", "number of seconds"),
        ("--exit-idle nan", "number of seconds"),
    ],
)
def test_mistakes(line: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse(line.split())
