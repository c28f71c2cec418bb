"""What can stand where: daemons, shims and OCI runtimes, ours and others', of two Debian releases.

A suite that asks for ``pairing`` by its names runs once on each.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness import newer
from harness.daemon import Daemon, target

RUNC = "io.containerd.runc.v2"
GO_SHIM = "containerd-shim-runc-v2"
OWN_SHIM = "containerd-shim-cradled-v2"
PROGRAMS = str(Path(sys.executable).parent)
UNIFIED = "/sys/fs/cgroup/unified"
# crun refuses a hybrid hierarchy: it is shown the legacy ones of it.
HIDE_UNIFIED = ("unshare", "-m", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh")

_FOR_CRUN = HIDE_UNIFIED if os.path.ismount(UNIFIED) else ()
_MANAGER = '[plugins."io.containerd.shim.v1.manager"]'


class Missing(Exception):
    """This machine has not got a part; says which."""


class Pairing(NamedTuple):
    """A daemon (``kind``: the target of the run where empty) and what it makes containers with.

    ``runtime`` is the type of runtime, or the name of a shim, that clients ask for. ``path`` gives
    the PATH that everything is found on. In ``settings``, which are for a daemon of ours, words in
    angle brackets become paths of programs.
    """

    kind: str = ""
    runtime: str = RUNC
    path: Callable[[], str] = lambda: os.environ["PATH"]
    prefix: Sequence[str] = ()
    settings: str = ""

    def daemon(self, directory: Path) -> Daemon:
        """One that is yet to be started. Raises Missing."""
        kind = self.kind or target()
        if self.settings and kind != "cradled":
            raise Missing("it has no such settings")
        try:
            path = f"{self.path()}:{PROGRAMS}"
        except newer.Unavailable as error:
            raise Missing(str(error)) from error
        if kind == "containerd":
            _find(kind, path)
        runtime = self.runtime if "." in self.runtime else _find(self.runtime, path)
        settings = self.settings
        for program in (GO_SHIM, "crun"):
            if f"<{program}>" in settings:
                settings = settings.replace(f"<{program}>", _find(program, path))
        return Daemon(directory, kind, self.prefix, path, runtime, settings)


def _find(program: str, path: str) -> str:
    found = shutil.which(program, path=path)
    if found is None:
        raise Missing(f"there is no {program}")
    return found


_CRUN = f'{_MANAGER}\nbinary_name = "<crun>"\n'
_GO_SHIM_FOR_RUNC = f'{_MANAGER}\nshims = {{"{RUNC}" = "<{GO_SHIM}>"}}\n'

PAIRINGS = {
    "ours": Pairing(),
    "crun": Pairing(prefix=_FOR_CRUN, settings=_CRUN),
    "go-shim": Pairing(settings=_GO_SHIM_FOR_RUNC),
    "under-containerd": Pairing(kind="containerd", runtime="io.containerd.cradled.v2"),
    "newer-runc": Pairing(path=newer.path),
    "newer-crun": Pairing(path=newer.path, prefix=_FOR_CRUN, settings=_CRUN),
    "newer-go-shim": Pairing(path=newer.path, runtime=GO_SHIM),
    "under-newer-containerd": Pairing(kind="containerd", path=newer.path, runtime=OWN_SHIM),
}


class OciRuntime(NamedTuple):
    """What makes containers below a shim of ours; the shim is started by ``wrapper``."""

    program: str
    path: Callable[[], str] = lambda: os.environ["PATH"]
    wrapper: Sequence[str] = ()

    def find(self) -> str:
        """Where it is. Raises Missing."""
        try:
            return _find(self.program, self.path())
        except newer.Unavailable as error:
            raise Missing(str(error)) from error


RUNTIMES = {
    "runc": OciRuntime("runc"),
    "crun": OciRuntime("crun", wrapper=_FOR_CRUN),
    "newer-runc": OciRuntime("runc", newer.path),
    "newer-crun": OciRuntime("crun", newer.path, _FOR_CRUN),
}
