"""In which order several processes run the tests, so that no core idles and none is busy long after the others.

`pytest-xdist --dist worksteal` gives each process a piece of the list, in order, and whoever has finished takes from
the end of another piece. So what takes long has to stand at the beginning of a piece. Half of the processes begin with
tests that mostly wait for other programs, while the others compute. Tests of one module stay together: they share
fixtures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
WAITS, WORKS = "waits", "works"
"""Markers of tests that take long, with the seconds that they take."""


def balanced(
    tests: Sequence[T], processes: int, module: Callable[[T], str], seconds: Callable[[T, str], float]
) -> list[T]:
    """The tests in the order for so many processes; `seconds` is what a marker of a test says, 0 without it."""
    waiting = max(1, processes // 2)
    heads: list[list[T]] = [[] for _ in range(processes)]
    for marker, among in ((WAITS, heads[:waiting]), (WORKS, heads[waiting:])):
        long: dict[str, list[T]] = {}
        for one in tests:
            if seconds(one, marker):
                long.setdefault(module(one), []).append(one)
        taken = {name: sum(seconds(one, marker) for one in group) for name, group in long.items()}
        loads = [0.0] * len(among)
        for name in sorted(taken, key=lambda name: -taken[name]):
            least = loads.index(min(loads))
            among[least] += long[name]
            loads[least] += taken[name]
    others = [one for one in tests if not seconds(one, WAITS) and not seconds(one, WORKS)]
    found: list[T] = []
    for place, head in enumerate(heads):
        piece = (len(tests) - len(found)) // (processes - place)  # as xdist divides what is left
        rest = max(0, piece - len(head))
        found += head + others[:rest]
        del others[:rest]
    return found
