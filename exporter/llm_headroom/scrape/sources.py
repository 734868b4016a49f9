"""A layout of an exposition as rules look at it: positions by name, labels by position, labels that nobody knows."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeAlias

from llm_headroom.model import Kind
from llm_headroom.scrape.plan import Derived

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from llm_headroom.engines.rules import Engine, Rule
    from llm_headroom.exposition.text import Layout

Compiled: TypeAlias = "tuple[Rule, Mapping[str, re.Pattern[str]]]"
"""A rule with its patterns compiled."""
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PARALLEL: Final = frozenset({"tp", "pp", "ep", "cp", "sp", "pcp", "dcp"})
"""How frameworks abbreviate the ways of splitting one model; `dp` is not among them, since it makes replicas."""


def _repeats(label: str) -> bool:
    """Whether a label that no rule knows names ranks, which repeat one another: `local_rank`, `RankId`, `tp`.

    Those of data parallelism are replicas.
    """
    words = [word.lower() for word in _WORDS.findall(label)]
    ranks = any(word.endswith("rank") for word in words) or not _PARALLEL.isdisjoint(words[:1])
    return ranks and not any(word.startswith("dp") for word in words) and "data" not in words


class Sources:
    """A layout as rules look at it: positions by name, labels by position."""

    def __init__(self, engine: Engine, layout: Layout, rules: Sequence[Compiled]) -> None:
        self.engine = engine
        self.layout = layout
        self.positions: dict[str, list[int]] = {}
        self.duplicates: set[int] = set()
        """Positions of series that an earlier line has: Prometheus, too, reads the first."""
        met: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        for index, key in enumerate(layout.keys):
            identity = (key.name, frozenset(key.labels))
            if identity in met:
                self.duplicates.add(index)
                continue
            met.add(identity)
            self.positions.setdefault(key.name, []).append(index)
        self.withheld: list[str] = []
        """What there is to say of each value in labels that cannot be."""
        self._labels: dict[int, dict[str, str]] = {}
        self.derived: list[Derived] = []
        self.apart, self.repeats = self._unknown(rules)

    def position(self, derived: Derived) -> int:
        """The position of a value that is made of others'."""
        self.derived.append(derived)
        return len(self.layout.keys) + len(self.derived) - 1

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
            if rule.sums:
                continue
            known = self.known(rule)
            labels: set[str] = set()
            for name in (*rule.names, *rule.plus):
                for spelling in self.engine.spellings(name):
                    for suffix in ("", "_bucket"):
                        labels |= self._telling_apart(self.matching(spelling + suffix, where), known)
            found |= set(filter(_repeats, labels)) if self.sums(rule) else labels
        repeats = frozenset(filter(_repeats, found))
        return tuple(sorted(found - repeats)), repeats

    def sums(self, rule: Rule) -> bool:
        """Whether labels that are not known add up for a rule; of an engine's own rules, those but ranks."""
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
        """One position for each set of known ranks that report the same: the lowest rank's, in the layout's order."""
        known = self.engine.rank_labels
        return [group[0] for group in self._alike(indices, known)] if known else list(indices)

    def once(self, indices: Iterable[int], rule: Rule) -> list[tuple[int, int]]:
        """What a rule reads of positions: for each of them a position with its labels, and the one with its value.

        Of ranks that repeat one another one is read: of known ones the lowest, of others the largest, where that is a
        comparison of plain values.
        """
        if rule.per_rank:
            return [(index, index) for index in indices]
        read = self.without_repeated_ranks(indices)
        if rule.sums or not self.repeats:
            return [(index, index) for index in read]
        plain = not (rule.metric.kind is Kind.HISTOGRAM or rule.times)
        return [
            (group[0], self.position(Derived(max, tuple(group))) if plain and len(group) > 1 else group[0])
            for group in self._alike(read, self.repeats)
        ]

    def _alike(self, indices: Iterable[int], ranks: Collection[str]) -> list[list[int]]:
        """Positions that differ in ranks alone, the lowest rank first."""
        groups: dict[frozenset[tuple[str, str]], list[tuple[tuple[int, ...], int]]] = {}
        for index in indices:
            labels = self.labels(index)
            identity = frozenset(item for item in labels.items() if item[0] not in ranks)
            rank = tuple(_rank(labels.get(name, "")) for name in ranks)
            groups.setdefault(identity, []).append((rank, index))
        return [[index for _, index in sorted(group)] for group in groups.values()]


def _rank(text: str) -> int:
    return int(text) if text.isdecimal() else -1
