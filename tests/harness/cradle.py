"""The command line under test, on a daemon of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.daemon import Daemon
from harness.images import busybox_image

CRADLE = str(Path(sys.executable).parent / "cradle")
IMAGE = "docker.io/library/busybox:test"


class Cradle:
    """Runs ``cradle`` in the daemon's namespace; ``home`` keeps what the command line keeps."""

    def __init__(self, daemon: Daemon, home: Path) -> None:
        self.daemon = daemon
        self.home = home
        self.env = {
            **daemon.env,
            "CRADLE_ADDRESS": str(daemon.socket),
            "CRADLE_NAMESPACE": daemon.namespace,
            "CRADLE_HOME": str(home),
        }

    def popen(self, *args: str, **kwargs: Any) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "env": self.env, **kwargs}
        return subprocess.Popen([CRADLE, *args], **options)

    def run(
        self, *args: str, input: str | bytes | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; output as text, whatever the exit status."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [CRADLE, *args],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            env=self.env,
            timeout=timeout,
            check=False,
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def ok(self, *args: str, input: str | bytes | None = None) -> str:
        """Run a command that must succeed; its output."""
        done = self.run(*args, input=input)
        assert done.returncode == 0, f"cradle {' '.join(args)}: {done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def fails(self, *args: str, status: int = 1) -> str:
        """Run a command that must fail, in one line and without a traceback; the line."""
        done = self.run(*args)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        assert done.stderr.startswith("cradle: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def json(self, *args: str) -> Any:
        return json.loads(self.ok(*args, "--json"))

    def remove_containers(self) -> None:
        names = self.ok("ps", "-aq").split()
        if names:
            self.ok("rm", "-f", *names)


@contextmanager
def running_cradle(directory: Path) -> Iterator[Cradle]:
    """With a daemon that has the busybox image; nothing may be left at the end."""
    daemon = Daemon(directory / "d", kind="cradled")
    daemon.directory.mkdir()
    daemon.start()
    try:
        cradle = Cradle(daemon, directory / "home")
        archive = busybox_image(IMAGE).write_oci_layout(directory / "busybox.tar")
        cradle.ok("import", str(archive))
        yield cradle
        cradle.remove_containers()
    finally:
        daemon.destroy()
