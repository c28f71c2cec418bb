"""Blocking. The program ``cradled``.

Whoever waits for the daemon waits for its socket: locks and sockets come first, all that is slow
to import comes after them, while clients already queue.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from cradled.daemon import arguments, builtins, config_file, listeners
from cradled.daemon.config import DEFAULT_PATH, Config, ConfigError, Debug, build
from cradled.errors import Error
from cradled.version import PACKAGE, REVISION, SERVER_VERSION

if TYPE_CHECKING:
    from cradled.daemon.config_check import Problem
    from cradled.daemon.successor import Successor


def main() -> int:
    """Run the command line; returns the exit status."""
    began = time.monotonic()
    gc.disable()  # hardly anything dies before the daemon serves; then ``serve`` turns it on
    try:
        args = arguments.parse(sys.argv[1:])
    except arguments.UsageError as error:
        print(f"cradled: {error}\n{arguments.USAGE}", file=sys.stderr, end="")
        return 2
    try:
        return _run(args, began)
    except (ConfigError, Error, listeners.StartError) as error:
        print(f"cradled: {error}", file=sys.stderr)
        return 1


def _run(args: arguments.Arguments, began: float) -> int:
    if args.command == "serve":
        return _serve(args, began)
    if args.command == "help":
        print(arguments.USAGE, end="")
        return 0
    if args.command == "version":
        print(f"cradled {PACKAGE} {SERVER_VERSION} {REVISION}")
        return 0
    if args.command == "serve-snapshotter":
        return _serve_snapshotter(args)
    if args.command in ("fsck", "backup", "restore"):
        return _look_after(args)
    if args.command == "hook":
        from cradled.daemon import oci_hook

        oci_hook.run(sys.stdin.read(), args.operands)
    return _command(args)


def _command(args: arguments.Arguments) -> int:
    from cradled.daemon import commands

    if args.command == "default":
        return commands.default()
    if args.command == "migrate":
        return commands.migrate_file(args)
    if args.command == "check":
        return commands.check(args)
    if args.command == "publish":
        address = args.address or builtins.endpoints(configure(args)[0])[0].address
        return commands.publish(address, args.topic, args.namespace)
    return commands.dump(configure(args)[0])


def configure(args: arguments.Arguments) -> tuple[Config, list[Problem]]:
    """The configuration in force, flags over files; also what to warn about.

    Raises ConfigError.
    """
    config, problems = config_file.load(
        args.config or DEFAULT_PATH,
        must_exist=bool(args.config),
        known=builtins.known,
        strict=args.strict,
    )
    root = os.path.abspath(args.root or config.root)
    state = os.path.abspath(args.state or config.state)
    if root == state:
        raise ConfigError(f"root and state must differ, both are {root}")
    config = config._replace(root=root, state=state)
    if args.log_level:
        debug = {**config.debug._asdict(), "level": args.log_level}
        config = config._replace(debug=build(Debug, debug, "debug"))
    if args.address:
        config = builtins.with_address(config, args.address)
    return config, problems


def _look_after(args: arguments.Arguments) -> int:
    """2 where nothing can be said or done."""
    from cradled.daemon import repairing

    run = {
        "fsck": repairing.fsck,
        "backup": repairing.write_backup,
        "restore": repairing.restore,
    }[args.command]
    try:
        return run(configure(args)[0], args.operands)
    except (ConfigError, Error, listeners.StartError, OSError) as error:
        print(f"cradled: {error}", file=sys.stderr)
        return 2


def _serve_snapshotter(args: arguments.Arguments) -> int:
    if not (args.root and args.address):  # those of the daemon would be the daemon's
        raise ConfigError("serve-snapshotter needs --root and --address")
    config, _ = configure(args)
    listeners.make_directory(config.root, 0o700, "root")
    listeners.hold(config.root, "root")
    sock = listeners.listen(args.address)
    from cradled.daemon import outward

    return outward.run(config, args.operands[0], sock, args.address)


def _serve(args: arguments.Arguments, began: float) -> int:
    if listeners.HANDOVER not in os.environ:
        return _start(args, began, None)
    from cradled.daemon.successor import Successor

    with Successor() as heir:
        return _start(args, began, heir)


def _start(args: arguments.Arguments, began: float, heir: Successor | None) -> int:
    config, problems = configure(args)
    sockets, locks = _own(config) if heir is None else heir.inherit(config)
    for endpoint in builtins.endpoints(config):
        listeners.make_directory(os.path.dirname(endpoint.address), 0o755, "socket directory")
        sockets.open(endpoint.address, uid=endpoint.uid, gid=endpoint.gid)
    from cradled.daemon import serve

    read = partial(configure, args)
    return serve.run(
        serve.Start(config, problems, read, sockets, locks, args.exit_idle, began, heir)
    )


def _own(config: Config) -> tuple[listeners.Sockets, tuple[int, int]]:
    listeners.make_directory(config.root, 0o700, "root")
    listeners.make_directory(config.state, 0o711, "state")
    locks = (listeners.hold(config.root, "root"), listeners.hold(config.state, "state"))
    given = listeners.activated()
    return listeners.Sockets(given, lent=given), locks


if __name__ == "__main__":
    sys.exit(main())
