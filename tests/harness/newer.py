"""Programs of the Debian release after the one that runs us, to meet newer peers than it has.

A machine of that release or a later one has them itself. Elsewhere apt fetches their packages once,
by a configuration of its own, into ``.cache``, where they are unpacked into one tree. What is
linked to newer libraries than the machine's is told there where to find them (``patchelf``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "newer"
SUITE, RELEASE = "trixie", 13
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = (
    "containerd",
    "runc",
    "crun",
    "runsc",
    "docker.io",
    "docker-cli",
    "tini",
    "soci-snapshotter",
)
LIBRARIES = ("libc6", "libseccomp2", "libcap2", "libsystemd0", "libyajl2")
# Those that do not start with the libraries of the release before.
RELINKED = ("usr/sbin/runc", "usr/bin/crun")


class Unavailable(Exception):
    """There is none here, and none can be fetched; says why."""


def ctr() -> Path:
    """A ``ctr`` of 1.7 or later, which knows the Transfer service. Raises Unavailable."""
    own = shutil.which("ctr")
    if own is not None and version(own) >= (1, 7):
        return Path(own)
    return program("ctr")


def version(program: str) -> tuple[int, ...]:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", told)
    return tuple(map(int, found.groups())) if found else ()


def program(name: str) -> Path:
    """Path of a program, under its own name. Raises Unavailable."""
    found = shutil.which(name, path=path())
    if found is None:
        raise Unavailable(f"there is no {name}")
    return Path(found)


def path() -> str:
    """A ``PATH`` on which the newer programs come first. Raises Unavailable."""
    own = os.environ.get("PATH", os.defpath)
    if release() >= RELEASE:
        return own
    return os.pathsep.join([f"{tree()}/usr/bin", f"{tree()}/usr/sbin", own])


def release() -> float:
    """The number of this machine's Debian; of one that has none yet, all are older."""
    found = re.search(r'^VERSION_ID="?(\d+)', Path("/etc/os-release").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else float("inf")


def tree() -> Path:
    """The directory with what the packages hold. Raises Unavailable, soon the second time."""
    found = _tree()
    if isinstance(found, Unavailable):
        raise found
    return found


@lru_cache
def _tree() -> Path | Unavailable:
    key = hashlib.sha256(" ".join((SUITE, *PACKAGES, *LIBRARIES)).encode()).hexdigest()[:12]
    target = CACHE / f"{SUITE}-{key}"
    if not target.exists():
        try:
            fetch(target)
        except subprocess.CalledProcessError as error:
            return Unavailable(f"{error.cmd[0]} failed: {error.stderr.decode()[-300:]}")
        except FileNotFoundError as error:
            return Unavailable(f"needs {error.filename}")
        except Unavailable as error:
            return error
    return target


def fetch(target: Path) -> None:
    """Have apt download the packages from this machine's mirror, and unpack them."""
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
        run(*apt, "download", *PACKAGES, *LIBRARIES, cwd=work)
        for package in work.glob("*.deb"):
            run("dpkg-deb", "-x", str(package), str(work / "tree"))
        relink(work / "tree", target)
        try:
            (work / "tree").rename(target)
        except OSError:
            if not target.exists():  # another run was faster
                raise


def relink(made: Path, target: Path) -> None:
    """Have programs start with the libraries beside them, once the tree is where it belongs."""
    (loader,) = made.glob("usr/lib/*/ld-linux-*")
    where = target / loader.relative_to(made)
    for name in RELINKED:
        words = ["--force-rpath", "--set-interpreter", str(where), "--set-rpath", str(where.parent)]
        run("patchelf", *words, str(made / name))


def mirror() -> str:
    """Where this machine gets Debian's own packages from."""
    command = ("apt-get", "indextargets", "--format", "$(REPO_URI)")
    found = run(*command, "Identifier: Packages", "Origin: Debian", "Component: main").split()
    if not found:
        raise Unavailable("apt knows no Debian mirror")
    return found[0]


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, cwd=cwd).stdout.decode()
