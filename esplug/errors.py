"""Exceptions that the command line prints as a single line."""


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and what to do, in one line."""


class PluginError(UserError):
    """A plugin cannot be found or used. The message names its distribution and the remedy."""


class RunError(Exception):
    """A run had to stop. The message says why, and where its outputs are. Exit status 1."""
