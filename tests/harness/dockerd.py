"""Docker's daemon on a containerd of our choice, in a network namespace of its own.

Its bridge, its rules and its published ports are in that namespace; its mounts are those of this
mount namespace, for the shims have to see them. What it made is gone when it has stopped, and what
is not is found by the mark and the directory of the ``Daemon`` it runs on.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from harness import leaks
from harness.daemon import Daemon, wait_until
from harness.images import busybox_image

_LINGERS = "ip link set lo up && exec sleep infinity"


class Dockerd:
    """``dockerd --containerd=<the daemon's socket>`` and the client that talks to it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.directory = daemon.directory / "docker"
        self.directory.mkdir()
        self.log = self.directory / "dockerd.log"
        self.env = {**daemon.env, "DOCKER_HOST": f"unix://{self.directory}/d.sock",
                    "DOCKER_CONFIG": str(self.directory), "DOCKER_BUILDKIT": "0"}  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._network = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", _LINGERS], env=self.env, start_new_session=True
        )
        wait_until(self._is_alone, "a network namespace with a loopback")

    def _is_alone(self) -> bool:
        return b"lo: <LOOPBACK,UP" in self.inside("ip", "link", check=False).stdout

    def inside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a program in the network namespace, as a client of published ports would."""
        return subprocess.run([*self._enter(), *command], env=self.env, capture_output=True,
            check=check, timeout=60)  # fmt: skip

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._network.pid}/ns/net"]

    def start(self, *extra: str) -> None:
        command = [
            *self._enter(), "dockerd", f"--containerd={self.daemon.socket}",
            f"--data-root={self.directory}/data", f"--exec-root={self.directory}/exec",
            f"--pidfile={self.directory}/pid", f"--host=unix://{self.directory}/d.sock",
            f"--cgroup-parent=/{self.daemon.mark}", *extra,
        ]  # fmt: skip
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        wait_until(lambda: self.run("version").returncode == 0, self._log_tail, 60)

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def command(self, *words: str) -> list[str]:
        return [*self._enter(), "docker", *words]

    def run(
        self, *words: str, input: str | None = None, timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Run the client, whatever its exit status."""
        return subprocess.run(self.command(*words), env=self.env, capture_output=True, text=True,
            input=input, timeout=timeout, check=False)  # fmt: skip

    def ok(self, *words: str, input: str | None = None) -> str:
        """Run the client, which must succeed; its standard output, stripped."""
        done = self.run(*words, input=input)
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}\n{self._log_tail()}"
        return done.stdout.strip()

    def inspect(self, name: str, template: str) -> str:
        return self.ok("inspect", "-f", "{{" + template + "}}", name)

    def load_busybox(self, directory: Path) -> None:
        """Load the image ``bb``."""
        archive = busybox_image("bb:latest").write_docker_archive(directory / "bb.tar")
        self.ok("load", "-q", "-i", str(archive))

    def kill(self) -> None:
        """kill -9 of dockerd alone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(60)

    def destroy(self) -> None:
        """Remove all containers, stop, and let the network namespace go."""
        try:
            if self._process is not None:
                ids = self.ok("ps", "-aq").split()
                if ids:
                    self.ok("rm", "-f", "-v", *ids)
            self.stop()
        finally:
            # What it mounts on itself at its start, a killed one has left.
            for point in reversed(leaks.mounts_below(str(self.directory))):
                subprocess.run(["umount", point], check=True)
            self._network.kill()
            self._network.wait()
