"""What this package says while it works, by standard `logging`: to stderr, as lines for people or as JSON lines for clusters.

    GAMECRAFT_LOG=debug,json    the environment variable that hands the choice to worker processes

Loggers are named after the modules. Extra fields of a record (`log.info("...", extra={"phase": ..., "unit": ...})`) become keys
of its JSON line.
"""

import json
import logging
import os
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TextIO

PACKAGES = ("bench", "curation", "gamecraft", "model", "operators", "pipelines", "synth")
ENVIRONMENT = "GAMECRAFT_LOG"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


if TYPE_CHECKING:
    _TextHandler = logging.StreamHandler[TextIO]
else:
    _TextHandler = logging.StreamHandler  # Python 3.10 has no types for it at run time


class _Stderr(_TextHandler):
    """Writes to what stderr is at that moment: a progress bar puts itself in its place while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None: ...


class _Json(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the record's extra fields, and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _PLAIN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str = "warning", as_json: bool = False) -> None:
    """Send what this package logs to stderr, from this level on, and let worker processes do the same."""
    handler = _Stderr()
    handler.setFormatter(_Json() if as_json else logging.Formatter("gamecraft: %(message)s"))
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(_LEVELS[level])
    os.environ[ENVIRONMENT] = f"{level},json" if as_json else level


def configure_worker() -> None:
    """As the process that started this one was configured, by the environment."""
    level, _, form = os.environ.get(ENVIRONMENT, "warning").partition(",")
    configure(level if level in _LEVELS else "warning", form == "json")


def is_shown(level: int) -> bool:
    """Whether messages of a level are shown."""
    return logging.getLogger(__name__).isEnabledFor(level)


def is_json() -> bool:
    return os.environ.get(ENVIRONMENT, "").endswith(",json")
