"""The log: one event per line, as JSON for machines and as text for who looks on."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

_LOG = logging.getLogger("autotune.daemon")


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event; fields that are None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    _LOG.log(level, event, extra={"fields": known})


def log_to_stderr() -> None:
    """Log events and warnings to stderr: text on a terminal, else one JSON object per line."""
    handler = logging.StreamHandler()
    handler.setFormatter(Text() if sys.stderr.isatty() else Json())
    logging.getLogger().addHandler(handler)
    logging.getLogger("autotune").setLevel(logging.INFO)
    logging.captureWarnings(True)


def _event(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """What other parts of the program log is the event `note`."""
    fields = getattr(record, "fields", None)
    return ("note", {"message": record.getMessage().strip()}) if fields is None else (record.msg, fields)


class Json(logging.Formatter):
    """One object per line, with the time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _event(record)
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname.lower(), "event": event, **fields}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Text(logging.Formatter):
    """The local time, the event and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _event(record)
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = "  ".join([f"{at} {event:8}", *(f"{name}={value}" for name, value in fields.items())])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
