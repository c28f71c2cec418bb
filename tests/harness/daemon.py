"""A daemon under test, and the clients that talk to it.

``CRADLED_INTEROP_TARGET=containerd`` runs the same tests against the original, which proves that
they ask for what the original does.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import leaks

BOOT_SECONDS = 20.0


def target() -> str:
    return os.environ.get("CRADLED_INTEROP_TARGET", "cradled")


class Daemon:
    """One daemon in its own directory; every process of it carries the mark.

    ``path`` is the PATH that it and its clients have, ``runtime`` the runtime type, or shim, that
    ctr asks for; ``settings`` is added to its configuration.
    """

    def __init__(
        self,
        directory: Path,
        kind: str | None = None,
        prefix: Sequence[str] = (),
        path: str = "",
        runtime: str = "io.containerd.runc.v2",
        settings: str = "",
    ) -> None:
        self.kind, self.prefix, self.runtime = kind or target(), prefix, runtime
        self.settings = settings
        self.mark = "t" + secrets.token_hex(5)
        self.directory = directory
        self.root, self.state = directory / "root", directory / "state"
        self.socket = directory / "d.sock"
        self.log = directory / "daemon.log"
        self.namespace = self.mark
        self.env = {**os.environ, leaks.MARK: self.mark}
        self.env["PATH"] = path or os.environ["PATH"]
        if self.kind == "containerd":  # it forgets checkpoints there
            self.env["TMPDIR"] = str(directory)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        if self.kind == "containerd":
            config = self.directory / "config.toml"
            config.write_text(
                f'version = 2\nroot = "{self.root}"\nstate = "{self.state}"\n'
                f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                f'[grpc]\n  address = "{self.socket}"\n{self.settings}'
            )
            return ["containerd", "-c", str(config)]
        command = [str(Path(sys.executable).parent / "cradled"), "--root", str(self.root),
                   "--state", str(self.state), "--address", str(self.socket)]  # fmt: skip
        if self.settings:
            config = self.directory / "config.toml"
            config.write_text(f"version = 4\n{self.settings}")
            command += ["--config", str(config)]
        return command

    def start(self, *extra: str) -> None:
        with open(self.log, "ab") as log:
            command = [*self.prefix, *self.command(), *extra]
            self.process = subprocess.Popen(command, env=self.env, stdout=log,
                stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._sweep()
                self.process.wait()
                raise AssertionError(f"{self.kind} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return self.try_ctr("version").returncode == 0

    def kill(self) -> None:
        """kill -9 of the daemon alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.kind} did not stop on SIGTERM") from None
        finally:
            self.process = None

    def destroy(self) -> None:
        """Stop, and prove that nothing is left; what is left is removed and fails the test."""
        try:
            self.stop()
            leaks.assert_settled(self.mark, str(self.directory))
        finally:
            self._sweep()

    def _sweep(self) -> None:
        found = leaks.marked_processes(self.mark) | leaks.processes_with(str(self.directory))
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for point in reversed(leaks.mounts_below(str(self.directory))):
            subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
        leaks.remove_parents(self.mark)

    def ctr_command(self, *args: str) -> list[str]:
        words = list(args)
        for creating in (["run"], ["containers", "create"]):
            if words[: len(creating)] == creating:
                words[len(creating) : len(creating)] = ["--runtime", self.runtime]
        return ["ctr", "-a", str(self.socket), "-n", self.namespace, *words]

    def try_ctr(self, *args: str, input: bytes | None = None, timeout: float = 60,
                env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run ctr; output as text, whatever its exit status."""
        done = subprocess.run(self.ctr_command(*args), capture_output=True, timeout=timeout,
            input=input, env={**self.env, **(env or {})}, check=False,
            stdin=None if input is not None else subprocess.DEVNULL)  # fmt: skip
        out, err = (data.decode(errors="replace") for data in (done.stdout, done.stderr))
        # What ctr 1.7 thinks of the host is no answer of the daemon.
        err = "".join(line for line in err.splitlines(True) if "DEPRECATION: This host" not in line)
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def ctr(self, *args: str, input: bytes | None = None, timeout: float = 60) -> str:
        """Run ctr, which must succeed; its standard output."""
        done = self.try_ctr(*args, input=input, timeout=timeout)
        assert done.returncode == 0, f"ctr {' '.join(args)}: {done.stderr}{self._log_tail()}"
        return done.stdout

    def _log_tail(self) -> str:
        return "\n--- log ---\n" + self.log.read_text(errors="replace")[-3000:]

    def remove_containers(self) -> None:
        """Kill and remove every container of the namespace."""
        for task in self.ctr("tasks", "ls", "-q").split():
            self.try_ctr("tasks", "kill", "-s", "KILL", "-a", task)
            self.try_ctr("tasks", "rm", "-f", task)
        for container in self.ctr("containers", "ls", "-q").split():
            self.ctr("containers", "rm", container)


def rows(table: str) -> list[list[str]]:
    """The rows of a table that ctr prints, header left out."""
    return [line.split() for line in table.splitlines()[1:] if line.strip()]


def wait_until(
    condition: Callable[[], object], what: str | Callable[[], str], patience: float = 20.0
) -> None:
    """Poll a condition (a callable) until it is true; fail with ``what`` otherwise."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what if isinstance(what, str) else what()}")
        time.sleep(0.01)
