"""What Debian's Go shim and ours say of runtimes that fail, is the same to the letter.

Go's ends when a runtime puts nonsense into its log, so that is left out, and what it puts behind an
error (``: <nil>``, or the colon before what a runtime did not print). Where Go's does not name the
call that failed (``NAMED``), or look into the log (``SILENT``), ours does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from harness import bad_runtimes
from harness.bad_runtimes import FIELDS, METHODS, Runtime, arrange, end
from harness.shims import Shim, Status, running

GO = "/usr/bin/containerd-shim-runc-v2"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists(GO), reason="needs Debian's containerd"),
]

FAULTS = [
    bad_runtimes.missing,
    bad_runtimes.not_executable,
    bad_runtimes.of_another_format,
    bad_runtimes.silent,
    bad_runtimes.dies,
    bad_runtimes.talks,
]
NAMED = ("OCI runtime update failed: ", "OCI runtime ps failed: ")
SILENT = ("kill talks", "update talks", "ps talks")


class Player:
    """Has a shim fail at everything; ``script`` is what it said."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        (shim.directory / "runtimes").mkdir()
        self.runtime = Runtime(shim.directory / "runtimes", "odd")
        self.script: dict[str, str] = {}

    def play(self) -> dict[str, str]:
        for fault in FAULTS:
            id = "c" + fault.__name__.replace("_", "")
            fault(self.runtime, "create")
            self._create(id)
        for command, (method, _) in METHODS.items():
            self._fail(command, method)
        return self.script

    def _create(self, id: str) -> None:
        bundle = str(self.shim.bundle(id))
        self._call(id, "Create", id=id, bundle=bundle, options=self.runtime.options)

    def _fail(self, command: str, method: str) -> None:
        pid = arrange(self.shim, self.runtime, command, command)
        for fault in FAULTS:
            fault(self.runtime, command)
            label = f"{command} {fault.__name__}"
            self._call(label, method, id=command, **FIELDS.get(command, {}))
        if command != "delete":
            end(self.shim, command, pid)
            return
        self.shim.call("Delete", id=command)

    def _call(self, label: str, method: str, **fields: object) -> None:
        with pytest.raises(Status) as caught:
            self.shim.call(method, **fields)
        text = caught.value.message.replace(str(self.shim.directory), "<D>")
        for name in NAMED:
            text = text.removeprefix(name)
        text = re.sub(r"(: <nil>|: )$", "", text)
        self.script[label] = f"{caught.value.code}: {text}"
        self.runtime.repair()


def played(directory: Path, **how: str) -> dict[str, str]:
    with running(directory, **how) as shim:
        return Player(shim).play()


def test_the_same_words(tmp_path_factory: pytest.TempPathFactory) -> None:
    ours = played(tmp_path_factory.mktemp("ours"))
    theirs = played(tmp_path_factory.mktemp("go"), foreign=GO)
    assert len(ours) == len(FAULTS) * (1 + len(METHODS))
    for label in SILENT:
        assert ours.pop(label).endswith("it is Tuesday")
        assert theirs.pop(label).endswith("did not terminate successfully: exit status 1")
    assert ours == theirs
