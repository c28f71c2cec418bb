"""What the page about repairs says can be typed, and is so."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from harness.cradle import CRADLE
from harness.program import PROGRAM

from cradled import damage
from cradled.metadata import schema
from cradled.repair.findings import Kind
from cradled.snapshotters import descriptions

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/howto/repair.md").read_text()
FORMATS = (REPOSITORY / "docs/formats/metadata.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^    (cradled? .*)$", PAGE, re.M)]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_the_options_that_are_told(line: str) -> None:
    """The help of each names every flag; that they do what is said is other tests' matter."""
    program, *words = shlex.split(line)
    flags = [word for word in words if word.startswith("--") and word != "--json"]
    command = next(word for word in words if not word.startswith("-"))
    if program == "cradled":
        told = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True)
        assert f"{command} " in told.stdout
    else:
        help = [CRADLE, command, "--help"]
        told = subprocess.run(help, capture_output=True, text=True, check=True)
        assert all(flag in told.stdout for flag in flags), told.stdout


def test_kinds_are_all_told() -> None:
    assert re.findall(r"^\| (\w+) \|", PAGE, re.M)[1:] == [kind.value for kind in Kind]


def test_numbers_and_names_are_right() -> None:
    assert damage.SMALL == 4 << 20
    assert "larger than 4 MiB" in PAGE
    assert descriptions.NAME in PAGE
    assert descriptions.NAME in FORMATS
    assert re.findall(r"^\| (\d+) \|", FORMATS, re.M) == [
        str(form) for form in range(1, schema.VERSION + 1)
    ]
