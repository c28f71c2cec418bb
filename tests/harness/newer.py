"""A ``ctr`` of 1.7 or later, which knows the Transfer service.

The machine's own if it is new enough; else the one of Debian 13, which apt fetches once, by a
configuration of its own, into ``.cache``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "newer"
SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unavailable(Exception):
    """There is none here, and none can be fetched; says why."""


def ctr() -> Path:
    """Path of the program. Raises Unavailable."""
    own = shutil.which("ctr")
    if own is not None and version(own) >= (1, 7):
        return Path(own)
    program = CACHE / SUITE / "usr/bin/ctr"
    if not program.exists():
        try:
            fetch(program.parents[2])
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{error.cmd[0]} failed: {error.stderr.decode()[-300:]}") from error
    return program


def version(program: str) -> tuple[int, ...]:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", told)
    return tuple(map(int, found.groups())) if found else ()


def fetch(target: Path) -> None:
    """Have apt download the package from this machine's mirror, and unpack it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        for directory in ("lists/partial", "cache/archives/partial"):
            (work / directory).mkdir(parents=True)
        (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main\n")
        options = {
            "Dir::Etc::sourcelist": work / "sources.list",
            "Dir::Etc::sourceparts": os.devnull,
            "Dir::State::lists": work / "lists",
            "Dir::Cache": work / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        run(*apt, "update")
        run(*apt, "download", "containerd", cwd=work)
        (package,) = work.glob("containerd_*.deb")
        run("dpkg-deb", "-x", str(package), str(work / "tree"))
        (work / "tree").rename(target)


def mirror() -> str:
    """Where this machine gets Debian's own packages from."""
    command = ("apt-get", "indextargets", "--format", "$(REPO_URI)")
    found = run(*command, "Identifier: Packages", "Origin: Debian", "Component: main").split()
    if not found:
        raise Unavailable("apt knows no Debian mirror")
    return found[0]


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, cwd=cwd).stdout.decode()
