"""Pure. What a plugin is made of; the public names of this room."""

from __future__ import annotations

from cradled.plugin.types import InitContext, Late, Plugin, Registration, SkipPlugin

__all__ = ["InitContext", "Late", "Plugin", "Registration", "SkipPlugin"]
