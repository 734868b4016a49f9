"""Logs as logfmt or JSON, one line for each event, to standard error."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

_ORDINARY: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields(record: logging.LogRecord) -> dict[str, object]:
    """The fields of a line, in order: time, level, message, those passed as `extra`, and the traceback if any."""
    fields: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "msg": record.getMessage(),
    }
    fields |= {name: value for name, value in vars(record).items() if name not in _ORDINARY}
    if record.exc_info:
        fields["trace"] = logging.Formatter().formatException(record.exc_info)
    return fields


class Logfmt(logging.Formatter):
    """`key=value` pairs; values with blanks, quotes or control characters are quoted as in JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return " ".join(f"{name}={_plain(value)}" for name, value in fields(record).items())


class Json(logging.Formatter):
    """One JSON object for each line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return _shown(fields(record))


def _shown(value: object) -> str:
    """JSON of what it is; what would colour, move or turn a terminal's text is escaped, as engines may have said it."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return _shown(text)


class Unblocked(logging.Handler):
    """Writes what is taken at once, and drops the rest: a log that nobody reads stops neither polls nor proxies."""

    def __init__(self, stream: TextIO) -> None:
        """`stream` has a descriptor."""
        super().__init__()
        self._descriptor = stream.fileno()
        self._lost = 0
        self._torn = b""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, after one that says how many were dropped if there were any."""
        try:
            if self._lost:
                note = {"name": record.name, "levelname": "WARNING", "msg": "log lines lost", "lines": self._lost}
                if not self._written(self.format(logging.makeLogRecord(note))):
                    self._lost += 1
                    return
                self._lost = 0
            self._lost += not self._written(self.format(record))
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)

    def _written(self, line: str) -> bool:
        rest = self._torn + f"{line}\n".encode(errors="backslashreplace")
        while rest and select.select((), (self._descriptor,), (), 0)[1]:  # up to PIPE_BUF does not block then: pipe(7)
            rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
            self._torn = b"\n" if rest else b""
        return not rest


def set_up(level: str, form: str) -> None:
    """Send the logs of the package to standard error at a level (debug, info, warning, error)."""
    try:
        handler: logging.Handler = Unblocked(sys.stderr)
    except OSError:  # it is no file, as where a test takes it
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if form == "json" else Logfmt())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
