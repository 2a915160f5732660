"""Plugin system: finds plugins by their entry points, loads one by name, and wraps a loaded task for the core.

Runs in the driver and in grader processes. Listing plugins reads package metadata and imports none of them. May
import :mod:`esplug.hookspecs`, :mod:`esplug.config` and :mod:`esplug.utils`.
"""

from esplug.plugins.discovery import PUBLISHED, Kind, PluginInfo, find, list_plugins, not_installed
from esplug.plugins.loading import load

__all__ = ["PUBLISHED", "Kind", "PluginInfo", "find", "list_plugins", "load", "not_installed"]
