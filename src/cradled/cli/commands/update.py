"""Async. ``cradle update``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cradled.cli.app import App, Command
from cradled.cli.commands.containers import each, names_argument
from cradled.cli.commands.run import RESTART_HELP, checked_policy
from cradled.cli.failures import Failure
from cradled.client import Container
from cradled.client.options import Limits
from cradled.oci import spec


@click.command("update", cls=Command)
@click.option("-m", "--memory", default="", metavar="SIZE", help="Limit, like 512m.")
@click.option("--cpus", type=float, metavar="N", help="Limit, in processors, like 1.5.")
@click.option("--pids-limit", type=click.IntRange(0), metavar="N", help="Most processes, 0: any.")
@click.option("--restart", default="", metavar="POLICY", help=RESTART_HELP)
@names_argument
@click.pass_obj
def update(app: App, /, names: Sequence[str], **flags: Any) -> None:
    """Change the limits and the restart policy of containers, running or not."""
    limits = _limits(flags)
    if not limits:
        raise Failure("nothing to change", "give -m, --cpus, --pids-limit or --restart", 2)

    async def act(container: Container) -> dict[str, Any]:
        await container.update(**limits)
        return {}

    each(app, names, act)


def _limits(flags: dict[str, Any]) -> Limits:
    limits = Limits()
    if flags["memory"]:
        limits["memory"] = spec.parse_size(flags["memory"])
    if flags["cpus"] is not None:
        limits["cpus"] = flags["cpus"]
    if flags["pids_limit"] is not None:
        limits["pids"] = flags["pids_limit"]
    if flags["restart"]:
        limits["restart"] = checked_policy(flags["restart"])
    return limits


COMMANDS = {"update": update}
