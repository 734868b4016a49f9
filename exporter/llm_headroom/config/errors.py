"""Configuration errors: the place, the problem, and a suggestion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

MOST_PROBLEMS: Final = 20
"""Problems that one error message lists."""
MOST_VALUES: Final = 200_000
"""Values that a file may expand to by its aliases and merge keys."""


class ConfigError(Exception):
    """The configuration cannot be used; `str(error)` is the whole message for the operator, one problem a line.

    `message` is that without what `hint` finds, which may take a while: so it is asked of what is shown alone. `key` is
    the key of the section with the problem, empty for the section as a whole.
    """

    def __init__(
        self, message: str, key: str = "", problems: tuple[str, ...] = (), hint: Callable[[], str] = str
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.hint = hint
        self._problems = problems

    def __str__(self) -> str:
        return self.message + self.hint()

    @property
    def problems(self) -> tuple[str, ...]:
        """All that were found; the message may leave some out."""
        return self._problems or (str(self),)


class OversizeError(Exception):
    """A file has, or expands to, more values than any configuration has."""


class UnreadError(ConfigError):
    """The file cannot be read, which may be over a moment later."""


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a file: `line` counts from 1, `key` is the path of keys, empty at the top."""

    file: Path
    line: int
    key: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def line_for(self, problem: str) -> str:
        """The line of an error message about a problem here."""
        return f"{self}: {self.key}{': ' if self.key else ''}{problem}"

    def error(self, problem: str) -> ConfigError:
        """The error to raise about a problem here, if it is to be the only one."""
        return ConfigError(self.line_for(problem))


class Problems:
    """Problems found so far, to be reported all at once."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: list[tuple[float, str, Callable[[], str]]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, text: str, line: float = float("inf"), hint: Callable[[], str] = str) -> None:
        """Adds a problem; they are listed in the order of their lines, those without one last.

        What `hint` gives is added to those that are listed: a file may have many thousands.
        """
        self._found.append((line, text, hint))

    def check(self) -> None:
        """Raises all problems as one ConfigError, if there is any."""
        found = sorted(self._found, key=lambda found: found[0])
        lines = [text + hint() if place < MOST_PROBLEMS else text for place, (_, text, hint) in enumerate(found)]
        more = [f"… and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
        if lines:
            raise ConfigError("\n".join(lines[:MOST_PROBLEMS] + more), problems=tuple(lines))


def shown(text: str) -> str:
    """A text from the operator, quoted and cut to fit a log line."""
    return repr(text if len(text) <= 60 else f"{text[:60]}…")  # noqa: PLR2004 - what fits a log line


def near(word: str, known: Iterable[str]) -> str:
    """A suggestion, or the known words if they are few."""
    from difflib import get_close_matches  # noqa: PLC0415 - only errors need it

    words = sorted(known)
    if matches := get_close_matches(word[:100], words, n=3):
        return f"; did you mean {' or '.join(matches)}?"
    return f"; known: {', '.join(words)}" if len(words) <= 15 else ""  # noqa: PLR2004 - more is no help
