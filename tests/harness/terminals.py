"""A ``cradle`` command at a real pseudo-terminal, typed to and read from."""

import errno
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time

from harness.cradle import Cradle

PATIENCE = 30.0


class Terminal:
    """The controlling side of a terminal that a ``cradle`` command has as its own."""

    def __init__(self, cradle: Cradle, *args: str) -> None:
        self.controller, terminal = os.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(terminal)
        self.shown = b""
        self.process: subprocess.Popen[bytes] = cradle.popen(
            *args, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
        )
        self.terminal = terminal

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.controller, termios.TIOCSWINSZ, size)

    def type(self, text: str) -> None:
        os.write(self.controller, text.encode())

    def expect(self, pattern: str) -> str:
        """Read until a pattern was shown; what came before is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern.encode(), self.shown)):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.controller], [], [], max(left, 0))
            assert ready, f"never shown: {pattern!r}, but {self.shown!r}"
            self.shown += self._read()
        self.shown = self.shown[found.end() :]
        return found[0].decode()

    def _read(self) -> bytes:
        try:
            return os.read(self.controller, 65536)
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise

    def end(self) -> int:
        """Wait for the command; the terminal must be as it was."""
        try:
            status = self.process.wait(PATIENCE)
            assert termios.tcgetattr(self.terminal) == self.before
            return status
        finally:
            self.kill()

    def kill(self) -> None:
        """End the command as it stands, and forget the terminal."""
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)
        os.close(self.controller)
