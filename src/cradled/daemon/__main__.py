"""Blocking. The program ``cradled``.

Whoever waits for the daemon waits for its socket: locks and sockets come first, all that is slow
to import comes after them, while clients already queue.
"""

from __future__ import annotations

import gc
import os
import sys

from cradled.daemon import arguments, builtins, config_file, listeners
from cradled.daemon.config import (
    DEFAULT_PATH,
    Config,
    ConfigError,
    check_sections,
    checked,
    from_tables,
    to_toml,
)
from cradled.version import REVISION, SERVER_VERSION


def main() -> int:
    """Run the command line; returns the exit status."""
    gc.disable()  # hardly anything dies before the daemon serves; then ``serve`` turns it on
    try:
        args = arguments.parse(sys.argv[1:])
    except arguments.UsageError as error:
        print(f"cradled: {error}\n{arguments.USAGE}", file=sys.stderr, end="")
        return 2
    try:
        return _run(args)
    except (ConfigError, listeners.StartError) as error:
        print(f"cradled: {error}", file=sys.stderr)
        return 1


def _run(args: arguments.Arguments) -> int:
    if args.command == "help":
        print(arguments.USAGE, end="")
    elif args.command == "version":
        print(f"cradled {SERVER_VERSION} {REVISION}")
    elif args.command == "default":
        print(to_toml(Config(), builtins.REGISTRATIONS), end="")
    else:
        config, warnings = configure(args)
        if args.command == "dump":
            print(to_toml(config, builtins.REGISTRATIONS), end="")
        else:
            return _serve(config, warnings, args.exit_idle)
    return 0


def configure(args: arguments.Arguments) -> tuple[Config, list[str]]:
    """The configuration in force, flags over files; also what to warn about.

    Raises ConfigError.
    """
    tables = config_file.read(args.config or DEFAULT_PATH, must_exist=bool(args.config))
    config, warnings = from_tables(tables)
    warnings += check_sections(config, builtins.REGISTRATIONS)
    root = os.path.abspath(args.root or config.root)
    state = os.path.abspath(args.state or config.state)
    if root == state:
        raise ConfigError(f"root and state must differ, both are {root}")
    config = config._replace(root=root, state=state)
    if args.log_level:
        config = config._replace(debug=checked(config.debug._replace(level=args.log_level)))
    if args.address:
        config = builtins.with_address(config, args.address)
    return config, warnings


def _serve(config: Config, warnings: list[str], exit_idle: float) -> int:
    listeners.make_directory(config.root, 0o700, "root")
    listeners.make_directory(config.state, 0o711, "state")
    listeners.hold(config.root, "root")
    listeners.hold(config.state, "state")
    grpc, ttrpc = builtins.endpoints(config)
    for endpoint in (grpc, ttrpc):
        listeners.make_directory(os.path.dirname(endpoint.address), 0o755, "socket directory")
    sockets = (
        listeners.listen(grpc.address, uid=grpc.uid, gid=grpc.gid),
        listeners.listen(ttrpc.address, uid=ttrpc.uid, gid=ttrpc.gid),
    )
    from cradled.daemon import serve

    return serve.run(config, warnings, sockets, exit_idle)


if __name__ == "__main__":
    sys.exit(main())
