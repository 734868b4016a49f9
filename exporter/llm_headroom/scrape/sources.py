"""A layout of an exposition as rules look at it: positions by name, labels by position, labels that nobody knows."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeAlias

from llm_headroom.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_headroom.engines.rules import Engine, Rule
    from llm_headroom.exposition.text import Layout

Compiled: TypeAlias = "tuple[Rule, Mapping[str, re.Pattern[str]]]"
"""A rule with its patterns compiled."""
_REPEATS: Final = re.compile(r"(?<!dp)(?<!dp_)(?<!data_parallel)(?<!data_parallel_)rank$", re.IGNORECASE)
"""Ranks repeat one another, except those of data parallelism, which are replicas."""


class Sources:
    """A layout as rules look at it: positions by name, labels by position."""

    def __init__(self, engine: Engine, layout: Layout, rules: Sequence[Compiled]) -> None:
        self.engine = engine
        self.layout = layout
        self.positions: dict[str, list[int]] = {}
        for index, key in enumerate(layout.keys):
            self.positions.setdefault(key.name, []).append(index)
        self._labels: dict[int, dict[str, str]] = {}
        self.products: list[tuple[int, int]] = []
        self.apart, self.repeats = self._unknown(rules)

    def product(self, one: int, other: int) -> int:
        """The position of the product of two positions' values."""
        self.products.append((one, other))
        return len(self.layout.keys) + len(self.products) - 1

    def labels(self, index: int) -> dict[str, str]:
        """The labels of a position."""
        found = self._labels.get(index)
        if found is None:
            found = self._labels[index] = dict(self.layout.keys[index].labels)
        return found

    def _unknown(self, rules: Sequence[Compiled]) -> tuple[tuple[str, ...], frozenset[str]]:
        """Unknown labels that distinguish series: those that separate them, and those that repeat."""
        found: set[str] = set()
        for rule, where in rules:
            if self.sums(rule):
                continue
            known = self.known(rule)
            for name in (*rule.names, *rule.plus):
                for spelling in self.engine.spellings(name):
                    for suffix in ("", "_bucket"):
                        found |= self._telling_apart(self.matching(spelling + suffix, where), known)
        repeats = frozenset(name for name in found if _REPEATS.search(name))
        return tuple(sorted(found - repeats)), repeats

    def sums(self, rule: Rule) -> bool:
        """Whether labels that are not known add up for a rule."""
        return rule.sums or (self.engine.labels_requests and rule.metric.kind is not Kind.GAUGE)

    def known(self, rule: Rule) -> frozenset[str]:
        """Labels of which a rule, or its engine, says what they mean."""
        engine = self.engine
        own = (engine.model_label, engine.replica_label, *engine.model_parts, *engine.adds_up, *engine.rank_labels)
        return frozenset((*own, *rule.where, *rule.labels, "le", "quantile"))

    def _telling_apart(self, indices: Sequence[int], known: frozenset[str]) -> set[str]:
        """Labels that are not known and whose values differ among series that are alike in the known ones."""
        groups: dict[frozenset[tuple[str, str]], list[dict[str, str]]] = {}
        for index in indices:
            labels = self.labels(index)
            alike = frozenset(item for item in labels.items() if item[0] in known)
            groups.setdefault(alike, []).append(labels)
        return {
            name
            for group in groups.values()
            if len(group) > 1
            for name in frozenset().union(*group) - known
            if len({labels.get(name, "") for labels in group}) > 1
        }

    def replica(self, rule: Rule, index: int) -> str:
        """The replica of a series: its rank, and the values of labels that keep it apart."""
        labels = self.labels(index)
        names = (self.engine.replica_label, *(() if self.sums(rule) else self.apart))
        return "/".join(value for value in map(labels.get, names) if value)

    def matching(self, name: str, where: Mapping[str, re.Pattern[str]]) -> list[int]:
        """The positions of a name whose labels' whole values match."""
        return [
            index
            for index in self.positions.get(name, ())
            if all(pattern.fullmatch(self.labels(index).get(label, "")) for label, pattern in where.items())
        ]

    @cached_property
    def only_model(self) -> str:
        """The model of all the series that name one, if they agree: some families carry no model."""
        label = self.engine.model_label
        models = {
            value
            for key in self.layout.keys
            if self.engine.owns(key.name) or key.name in self.engine.vocabulary
            for name, value in key.labels
            if name == label and value
        }
        return models.pop() if len(models) == 1 else ""

    def without_repeated_ranks(self, indices: Iterable[int]) -> list[int]:
        """One position for each set of ranks that report the same: the lowest rank's, in the layout's order."""
        ranks = self.engine.rank_labels
        if not ranks:
            return list(indices)
        lowest: dict[tuple[tuple[str, str], ...], tuple[tuple[int, ...], int]] = {}
        for index in indices:
            labels = self.labels(index)
            identity = tuple(sorted((name, value) for name, value in labels.items() if name not in ranks))
            rank = tuple(_rank(labels.get(name, "")) for name in ranks)
            known = lowest.get(identity)
            if known is None or rank < known[0]:
                lowest[identity] = (rank, index)
        return [index for _, index in lowest.values()]


def _rank(text: str) -> int:
    return int(text) if text.isdecimal() else -1
