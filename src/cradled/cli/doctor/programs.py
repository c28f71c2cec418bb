"""Blocking. The programs that containers are run with: OCI runtimes, shims of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

from cradled.cli.doctor.finding import FAIL, OK, WARN, Finding

AREA = "runtimes"
RUNTIMES = ("runc", "crun", "runsc", "kata-runtime", "youki")
DEFAULT = "runc"

_SECONDS = 10.0


def findings(configured: str = "") -> Iterator[Finding]:
    """``configured``: the runtime of containers that name none, empty for the usual one."""
    found = {name: path for name in RUNTIMES if (path := shutil.which(name))}
    default = configured or DEFAULT
    path = shutil.which(default)
    if path is None:
        others = ", ".join(found) or "no other either"
        advice = f"install {DEFAULT}"
        if found:
            other = next(iter(found))
            advice += f', or set binary_name = "{other}" of io.containerd.shim.v1.manager'
        text = f"not there; of those known: {others}"
        yield Finding(AREA, default, FAIL, text, advice)
    else:
        found[default] = path
    for name, where in found.items():
        yield _runtime(name, where)
    shims = _shims()
    yield Finding(AREA, "shims of others", OK, ", ".join(shims) or "none")
    criu = shutil.which("criu")
    yield Finding(AREA, "criu", OK, criu or "not there; only checkpoints need it")


def _runtime(name: str, path: str) -> Finding:
    version, status = _output([path, "--version"])
    if status:
        text = f"{path}: --version fails: {version or status}"
        return Finding(AREA, name, FAIL, text, "install it again")
    lines = version.splitlines() or ["?"]
    text = f"{path}: {lines[0]}"
    features, status = _output([path, "features"])
    if not status and (oci := _oci_versions(features)):
        text += f", OCI {oci}"
    elif spec := next((line for line in lines if line.startswith("spec:")), ""):
        text += f", OCI {spec.partition(':')[2].strip()}"
    if os.stat(path).st_mode & 0o022:
        return Finding(AREA, name, WARN, f"{text}; others may write it", f"chmod go-w {path}")
    return Finding(AREA, name, OK, text)


def _oci_versions(features: str) -> str:
    try:
        told = json.loads(features)
        return f"{told['ociVersionMin']} to {told['ociVersionMax']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _output(command: list[str]) -> tuple[str, int]:
    """What a program says, and its exit status; 1 for one that does not start or end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error), 1
    return (done.stdout or done.stderr).strip(), done.returncode


def _shims() -> list[str]:
    names = set()
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if os.path.isdir(directory):
            names |= {one for one in os.listdir(directory) if one.startswith("containerd-shim-")}
    return sorted(names - {"containerd-shim-cradled-v2"})
