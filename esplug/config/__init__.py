"""The configuration: every setting once, and how the task, a file and flags are merged into one ``RunConfig``.

Runs in every process, so it imports neither torch nor numpy. May import :mod:`esplug.es`, :mod:`esplug.noise` and
:mod:`esplug.utils`.
"""

from esplug.config.run_config import RunConfig as RunConfig
from esplug.config.run_config import make_config as make_config
from esplug.config.run_config import read_toml as read_toml
