"""A shim of another make, as a program: it keeps the contract, and runs ``FakeShim``.

``write`` makes it, with how it answers to ``start``; its process is told what it is by the words
behind: ``serve <socket> <protocol> <version>``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

SCRIPT = """#!{python}
import sys
sys.path[:0] = {path!r}
from harness.shim_program import main
sys.exit(main({kind!r}))
"""


class Kind(NamedTuple):
    """``form`` of the answer: message, json or text; ``address`` has a place for the path. A
    ``stubborn`` shim starts no sandbox, answers to no shutdown, and does not go."""

    form: str = "message"
    protocol: str = "ttrpc"
    version: int = 3
    address: str = "unix://{}"
    stubborn: bool = False


def write(path: Path, kind: Kind) -> str:
    """The program, as a runtime type."""
    path.write_text(
        SCRIPT.format(python=sys.executable, path=[p for p in sys.path if p], kind=tuple(kind))
    )
    path.chmod(0o755)
    return str(path)


def main(given: tuple[str, str, int, str, bool]) -> int:
    kind, words = Kind(*given), sys.argv[1:]
    flags = dict(zip(words[::2], words[1::2], strict=False))
    action = words[-1]
    if words[0] == "serve":
        asyncio.run(_serve(words[1], kind))
    elif action == "start":
        _start(kind, flags)
    elif action == "delete":
        from cradled.api import task_v2_pb2

        response = task_v2_pb2.DeleteResponse(pid=1, exit_status=137)
        sys.stdout.buffer.write(response.SerializeToString())
    else:
        return 1
    return 0


def _start(kind: Kind, flags: dict[str, str]) -> None:
    from cradled.api import bootstrap_pb2 as pb

    if os.environ.get("FAKE_SHIM") != "yes":
        sys.exit("the environment of the configuration is missing")
    data = sys.stdin.buffer.read()
    directory = os.environ["FAKE_SOCKETS"]
    if kind.form != "text":
        directory = pb.BootstrapParams.FromString(data).socket_dir or directory
    name = hashlib.sha256(f"{flags['-namespace']}/{flags['-id']}".encode()).hexdigest()[:16]
    os.makedirs(directory, exist_ok=True)
    path = f"{directory}/{name}"
    log = os.open("log", os.O_WRONLY)
    ready, told = os.pipe()
    os.set_inheritable(told, True)
    subprocess.Popen(
        [sys.argv[0], "serve", path, str(told)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, pass_fds=(told,),
        start_new_session=True,
    )  # fmt: skip
    os.close(told)
    os.read(ready, 1)
    address = kind.address.format(path)
    if kind.form == "message":
        result = pb.BootstrapResult(
            version=kind.version, address=address, protocol=kind.protocol, metadata={"a": "b"}
        )
        sys.stdout.buffer.write(result.SerializeToString())
    elif kind.form == "json":
        print(f'{{"version":{kind.version},"address":"{address}","protocol":"{kind.protocol}"}}')
    else:
        print(address, end="")


async def _serve(path: str, kind: Kind) -> None:
    from harness.fake_shim import FakeShim

    class Loud(FakeShim):
        async def enter(self, name: str, call: Any) -> None:
            with suppress(BrokenPipeError):  # no daemon is there to read
                os.write(2, f"{kind.protocol} {name}\n".encode())
            await super().enter(name, call)

    shim = Loud(path, kind.version, kind.protocol)
    if kind.stubborn:
        for name in ("shutdown", "shutdown_sandbox"):
            shim.script[name] = asyncio.Event().wait
        shim.script["start_sandbox"] = _refuse
    await shim.serve()
    told = int(sys.argv[3])
    os.write(told, b"1")
    os.close(told)
    await shim.gone.wait()


async def _refuse() -> None:
    from cradled.errors import PermissionDenied

    raise PermissionDenied("not today")
