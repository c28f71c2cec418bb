"""What the command line is made of, without a daemon."""

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from cradled import errors
from cradled.cli import moments, ondemand, output
from cradled.cli.__main__ import main
from cradled.cli.app import _COMMANDS
from cradled.cli.commands.logs import _seek_tail
from cradled.cli.commands.run import _volume, variables
from cradled.cli.failures import Failure, advice, run_status, wording
from cradled.cli.terminal import Detaching


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("0s", timedelta()),
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31 08:00:00+02:00", datetime(2026, 1, 31, 6, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31).astimezone()),
        ("1042", "1042"),
        ("6a1c9d02-1042", "6a1c9d02-1042"),
        ("5x", "5x"),
    ],
)
def test_moments(text: str, moment: object) -> None:
    assert moments.parse(text) == moment


def test_a_time_that_there_is_not() -> None:
    with pytest.raises(click.UsageError, match="2026-13-01"):
        moments.parse("2026-13-01")


def test_rows_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows(("A", "B"), [("1", "two\twords"), ("3", "a\nb")])
    assert capsys.readouterr().out == "1\ttwo words\n3\ta b\n"


def test_rows_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_rows(("NAME", "B"), [("x", "1"), ("longer", "2")])
    assert capsys.readouterr().out == "NAME    B\nx       1\nlonger  2\n"
    output.print_rows(("NAME", "B"), [])
    assert capsys.readouterr().out == "NAME  B\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (2 << 50, "2048.0 TiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "now"),
        (-5, "now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (61, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400 * 3 + 5, "3 days ago"),
    ],
)
def test_age(seconds: int, text: str) -> None:
    assert output.age(1_000_000_000_000, now=1000 + seconds) == text


def test_instant() -> None:
    assert output.instant(0) == ""
    assert output.instant(86_400_000_000_001) == "1970-01-02T00:00:00.000000001Z"


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (errors.NotFound('image "x"'), 'image "x": not found', "cradle import"),
        (errors.NotFound('container "x"'), 'container "x": not found', "cradle ps -a"),
        (errors.NotFound("task x not found", verbatim=True), "task x not found", "does not run"),
        (errors.NotFound("lease"), "lease: not found", ""),
        (errors.AlreadyExists('container "x"'), 'container "x": already exists', "cradle rm x"),
        (errors.AlreadyExists("lease"), "lease: already exists", ""),
        (errors.FailedPrecondition('container "x" is running'), 'container "x" is running', "stop"),
        (errors.FailedPrecondition("other"), "other", ""),
        (errors.Unavailable("dial unix /x"), "dial unix /x", "cradle daemon"),
        (errors.Unavailable("dial unix /x: permission denied"), "dial unix /x", "run as root"),
        (errors.InvalidArgument("size"), "size", ""),
        (errors.InvalidArgument(), "invalid argument", ""),
        (errors.PermissionDenied("x"), "x: permission denied", "run as root"),
        (errors.Error("anything"), "anything", ""),
    ],
)
def test_errors_in_words(error: errors.Error, words: str, hint: str) -> None:
    assert wording(error).startswith(words)
    assert (hint in advice(error)) if hint else advice(error) == ""


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('exec: "x": executable file not found in $PATH', 127),
        ('exec: "/x": stat /x: no such file or directory', 127),
        ('exec: "/x": permission denied', 126),
        ('exec: "/x": is a directory', 126),
        ("executable file `x` not found in $PATH", 127),
        ('error finding executable "x" in PATH [/bin]: no such file or directory', 127),
        (
            'unable to retrieve OCI runtime error (open): exec: "x": executable file not found',
            125,
        ),
        ("mounting /a: stat /a: no such file or directory", 125),
        ("anything else", 125),
    ],
)
def test_status_of_a_run_that_failed(text: str, status: int) -> None:
    assert run_status(errors.Error(f"OCI runtime create failed: {text}")) == status
    assert run_status(errors.Unavailable(f"dial unix: {text}")) == 125


def test_bare_variables_are_taken_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "x=y")
    monkeypatch.delenv("GONE", raising=False)
    assert variables(["A=1", "HERE", "GONE", "B="]) == ["A=1", "HERE=x=y", "B="]


def test_volumes_may_be_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _volume("data:/x:ro") == f"{tmp_path}/data:/x:ro"
    assert _volume("./later:/x") == f"{tmp_path}/later:/x"
    assert _volume("/abs:/x") == "/abs:/x"
    for bad in ("/x", "name:/x"):
        with pytest.raises(Failure, match="volume"):
            _volume(bad)


@pytest.mark.parametrize("size", [10, 1 << 16, 200_000])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 10_000, 10**9, None])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_tail(size: int, count: int | None, end: bytes) -> None:
    lines = [b"line %d\n" % number for number in range(size // 8)]
    lines.append(b"last" + end)
    file = io.BytesIO(b"".join(lines))
    _seek_tail(file, count)
    wanted = lines if count is None else lines[len(lines) - min(count, len(lines)) :]
    assert file.read() == b"".join(wanted)


def test_tail_of_nothing() -> None:
    file = io.BytesIO(b"")
    _seek_tail(file, 3)
    assert file.read() == b""


def test_home_is_the_users_not_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRADLE_HOME", raising=False)
    before = ondemand.home()
    monkeypatch.setenv("HOME", "/nowhere")
    assert ondemand.home() == before
    monkeypatch.setenv("CRADLE_HOME", "/else/where")
    assert ondemand.home() == Path("/else/where")
    assert ondemand.address(ondemand.home()) == "/else/where/cradle.sock"


def test_address_limit() -> None:
    longest = Path("/" + "x" * (107 - len("//cradle.sock")))
    assert len(ondemand.address(longest)) == 107
    with pytest.raises(Failure, match="1 bytes too long"):
        ondemand.address(Path(f"{longest}x"))


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, where no daemon can be reached."""
    env = {**os.environ, "CRADLE_ADDRESS": "/nonexistent/sock"}
    command = [sys.executable, "-m", "cradled.cli", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, input=stdin, check=False
    )


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "daemon":
        pytest.skip("its flags are the daemon's")
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: cradle {name}")
    assert "--json" in shown


def test_help_and_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in _COMMANDS)
    assert main(["nosuch"]) == 2
    assert "cradle: No such command 'nosuch'" in capsys.readouterr().err
    assert main(["ps", "--nosuch"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cradle: No such option")
    assert error.endswith("--nosuch'; see `cradle ps --help`\n") or "--nosuch; see" in error


def test_nobody_at_the_address() -> None:
    done = run("ps")
    assert done.returncode == 1
    assert done.stderr.startswith("cradle: dial unix /nonexistent/sock: no such file")
    assert done.stderr.count("\n") == 1
    assert run("version").stdout.endswith("server\t(no daemon is running)\n")
    assert json.loads(run("version", "--json").stdout)["server"] == ""
    assert run("run", "x").returncode == 125


def test_a_reader_that_has_enough() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cradled.cli", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_version_loads_little() -> None:
    script = (
        "import sys; from cradled.cli.__main__ import main; main(['version']);"
        "print(*[m for m in ('asyncio', 'google.protobuf', 'msgspec', 'rich') if m in sys.modules])"
    )
    env = {**os.environ, "CRADLE_ADDRESS": "/nonexistent/sock"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("typed", "passed", "leaves"),
    [
        ([b"abc"], b"abc", False),
        ([b"ab\x10\x11cd"], b"ab", True),
        ([b"a\x10", b"\x11b"], b"a", True),
        ([b"\x10", b"x", b"\x11"], b"\x10x\x11", False),
        ([b"\x10\x10", b"\x11"], b"\x10", True),
        ([b"\x10", b"\x10", b"\x11"], b"\x10", True),
        ([b"\x11\x10a"], b"\x11\x10a", False),
    ],
)
def test_keys_to_leave(typed: list[bytes], passed: bytes, leaves: bool) -> None:
    keys = Detaching()
    fed = [keys.feed(data) for data in typed]
    assert b"".join(data for data, _ in fed) == passed
    assert [left for _, left in fed] == [False] * (len(typed) - 1) + [leaves]
