"""The exceptions that become a single line at the user's terminal."""


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do, in one line."""


class PluginError(UserError):
    """A plugin that cannot be found or used. The message names its distribution and the remedy."""


class RunError(Exception):
    """A run that had to stop: what happened, and where what it saved lies. Exit status 1."""
