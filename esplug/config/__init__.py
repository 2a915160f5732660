"""Run configuration: every setting as a field of ``RunConfig``, and the merging of its sources.

A new flag is a new field in :mod:`.run_config`. Runs in every process, so it imports neither torch nor numpy. May
import :mod:`esplug.es`, :mod:`esplug.noise`, :mod:`esplug.utils` and :mod:`esplug.errors`.
"""

from esplug.config.declarations import default_of as default_of
from esplug.config.declarations import details_of as details_of
from esplug.config.declarations import flag_of as flag_of
from esplug.config.declarations import panel_of as panel_of
from esplug.config.fields import Command as Command
from esplug.config.loading import complete as complete
from esplug.config.loading import make_config as make_config
from esplug.config.loading import read_toml as read_toml
from esplug.config.run_config import RunConfig as RunConfig
