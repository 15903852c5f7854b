"""Errors that speak to a user: one clear line that says what was got, what was expected and how to mend it."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Something the user can mend. The command line prints the message alone, without a traceback, and exits with 2."""


class ConfigError(UserError):
    """A configuration that cannot run; the message names file, line and key."""


class RunError(UserError):
    """A run that must not go on (too many failures, a non-finite loss past its budget, a wrong number of processes)."""


def one_line(*parts: Any) -> str:
    """The parts that say something, in one line of at most 300 characters."""
    text = " ".join(": ".join(str(part) for part in parts if str(part)).split())
    return text if len(text) <= 300 else text[:297] + "..."


def line_of(error: Exception, catcher: str) -> str:
    """' (file:line)' of the innermost frame that is in no library, nor in the file `catcher` where the error was caught."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) != Path(catcher)]
    library = sysconfig.get_paths()["stdlib"]
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith((library, "<"))]
    return "".join(f" ({frame.filename}:{frame.lineno})" for frame in (own or frames)[-1:])
