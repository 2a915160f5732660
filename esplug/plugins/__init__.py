"""The plugin system: finds plugins by entry point, loads the one that is named, and wraps a task for the core.

Runs in the driver and in grader processes. Listing reads package metadata and imports no plugin. May import
:mod:`esplug.hookspecs`, :mod:`esplug.config` and :mod:`esplug.utils`.
"""
