"""Errors that speak to a user: one clear line that says what was got, what was expected and how to mend it."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend. The command line prints the message alone, without a traceback, and exits with 2."""


class ConfigError(UserError):
    """A configuration that cannot run; the message names file, line and key."""


class RunError(UserError):
    """A run that must not go on (too many failures, a non-finite loss past its budget, a wrong number of processes)."""
