"""Blocking. The program ``cradle``.

What is typed most must answer at once, so nothing is imported before it is known to be needed:
each command is a module of its own, and errors are worded here without loading any of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

INTERRUPTED = 130
FAILED = 1
MISUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _complain(what, "run as root" if isinstance(error, PermissionError) else "")
    return status


def _run(words: list[str]) -> int:
    # asyncio loads ssl if it can, and here nothing ever speaks TLS: a tenth of the whole start.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    from cradled.cli.app import cradle
    from cradled.cli.failures import Failure
    from cradled.errors import Error

    try:
        return cradle(words)
    except Failure as failure:
        return _complain(failure.what, failure.advice, failure.status)
    except Error as error:
        from cradled.cli.failures import advice, wording

        return _complain(wording(error), advice(error))


def _complain(what: str, advice: str = "", status: int = FAILED) -> int:
    print(f"cradle: {what}; {advice}" if advice else f"cradle: {what}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
