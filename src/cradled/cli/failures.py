"""Pure. What went wrong, in words that say what to do about it."""

from __future__ import annotations

import re

from cradled import errors

ALREADY_EXISTS = re.compile(r'^container "([^"]*)"')


class Failure(Exception):
    """Ends the command: ``cradle: <what>; <advice>`` and an exit status."""

    def __init__(self, what: str, advice: str = "", status: int = 1) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
        self.status = status


def wording(error: errors.Error) -> str:
    """The text of an error; the name of its class only where it says something more."""
    plain = errors.InvalidArgument, errors.FailedPrecondition, errors.Unavailable
    return error.what if isinstance(error, plain) and error.what else str(error)


def advice(error: errors.Error) -> str:
    """What to do about an error of the runtime; empty where there is nothing to say."""
    text = str(error)
    taken = ALREADY_EXISTS.match(text)
    if isinstance(error, errors.NotFound):
        return _where_to_look(text)
    if isinstance(error, errors.AlreadyExists) and taken:
        return f"choose another --name, or `cradle rm {taken[1]}` first"
    if isinstance(error, errors.FailedPrecondition) and text.startswith('container "'):
        return "`cradle stop` it first, or use --force" if "is running" in text else ""
    if isinstance(error, errors.PermissionDenied):
        return "run as root"
    if isinstance(error, errors.Unavailable):
        if "permission denied" in text:  # of the socket
            return "run as root"
        return "start a daemon with `cradle daemon`, or leave --address out to have one started"
    return ""


def run_status(error: errors.Error) -> int:
    """Exit status of ``run`` and ``exec`` for an error that is not the container's own.

    As for a shell: 127 a command that is not there, 126 one that cannot be run, 125 all else.
    """
    text = str(error).lower()
    if "oci runtime" not in text or not ("exec: " in text or "executable" in text):
        return 125
    if "unable to retrieve oci runtime error" in text:  # the runtime is what cannot be run
        return 125
    if "not found" in text or "no such file or directory" in text:
        return 127
    return 126 if "permission denied" in text or "is a directory" in text else 125


def _where_to_look(text: str) -> str:
    if text.startswith("image "):
        return "bring it in with `cradle import FILE` or `cradle pack DIR NAME`"
    if text.startswith("container "):
        return "`cradle ps -a` lists what there is"
    if text.startswith("task "):
        return "it does not run; `cradle ps -a` lists what there is"
    return ""
