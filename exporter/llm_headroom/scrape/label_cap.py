"""How many different values a label of a target may have: invented ones must not fill whoever stores the series."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

OVERFLOW: Final = "other"
LONGEST_LABEL_VALUE: Final = 256
AGE: Final = 600.0
"""Seconds after which a label value that is gone frees its place for another."""


@dataclass(slots=True)
class LabelCap:
    """The only memory of a mapping: which label values of a target have been let through, so that the first ones stay.

    `limit` is the number of different values that one label may have; later ones become `other` and are counted.
    `seen` has when a value was last seen, None before anybody looked.
    """

    limit: int
    seen: dict[str, dict[str, float | None]] = field(default_factory=dict)
    overflow: dict[str, set[str]] = field(default_factory=dict)

    def admit(self, label: str, value: str) -> str:
        """The value to export for an upstream one."""
        if len(value) > LONGEST_LABEL_VALUE:
            value = value[: LONGEST_LABEL_VALUE - 1] + "…"
        values = self.seen.setdefault(label, {})
        if value in values:
            return value
        if len(values) < self.limit:
            values[value] = None
            return value
        beyond = self.overflow.setdefault(label, set())
        if len(beyond) < 10 * self.limit:  # bounds our own memory; the count then is a lower bound
            beyond.add(value)
        return OVERFLOW

    def release(self, labels: Iterable[tuple[str, str]], at: float) -> bool:
        """Free the places of values that have not been among the `labels` for `AGE` seconds, where others want them.

        `at` is a monotonic time in seconds. Whether any was freed: then what was mapped before has to be mapped again.
        """
        full = {label: values for label, values in self.seen.items() if label in self.overflow}
        if not full:
            return False
        present = {pair for pair in labels if pair[0] in full}
        freed = False
        for label, values in full.items():
            for value, last in list(values.items()):
                if last is None or (label, value) in present:
                    values[value] = at
                elif at - last >= AGE:
                    del values[value]
                    freed = True
        return freed

    def capped(self) -> dict[str, int]:
        """How many different values of each label have been reported as `other`."""
        return {label: len(values) for label, values in self.overflow.items()}
