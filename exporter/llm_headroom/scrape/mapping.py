"""From an engine's own words to the canonical schema: rules as data, compiled once for each layout of an exposition.

An exposition keeps its layout from scrape to scrape while its values move. So names, labels, aliases, ranks and units
are resolved when a layout is first seen, into a `Plan`; from then on a poll picks values by position.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Final, TypeVar

from llm_headroom.engines.rules import Combine
from llm_headroom.model import Across, Kind, Point, SampleState, Series
from llm_headroom.scrape.label_cap import OVERFLOW
from llm_headroom.scrape.plan import (
    MOST,
    Buckets,
    Derived,
    Mapped,
    Newest,
    Plan,
    Read,
    Rest,
    Scalar,
    beyond,
    is_share,
    possible,
    product,
)
from llm_headroom.scrape.sources import Sources
from llm_headroom.scrape.vocabulary import Vocabulary, family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from llm_headroom.engines.rules import Engine, Fact, Lister, Reader, Rule
    from llm_headroom.exposition.text import Exposition, Layout
    from llm_headroom.scrape.label_cap import LabelCap

MOST_BOUNDS: Final = 200
"""Bounds of a histogram: each is a series of whoever scrapes us. vLLM's longest have 40."""
MOST_SERIES: Final = 20_000
"""Series of one exposition; 64 replicas, each with every series that it can expose, make 5,000."""


_Part = TypeVar("_Part", float, Scalar, Buckets)


class TooManySeries(Exception):  # noqa: N818 - what was answered, not an error of ours
    """An exposition makes more than `MOST_SERIES` series."""


@lru_cache(maxsize=64)
def _compiled(engine: Engine) -> tuple[Vocabulary, Sequence[Mapping[str, re.Pattern[str]]]]:
    """The vocabulary, and of each rule the patterns of labels: the same for all targets of an engine."""
    return Vocabulary(engine), [
        {label: re.compile(pattern) for label, pattern in rule.where.items()} for rule in engine.rules
    ]


@lru_cache(maxsize=4096)
def _same(parts: tuple[_Part, ...]) -> tuple[_Part, ...]:
    """Bounds, or how values are read, as all targets of an engine have them, once in memory."""
    return parts


@lru_cache(maxsize=4096)
def _picker(indices: tuple[int, ...]) -> Callable[[Sequence[float]], tuple[float, ...]]:
    """The same for all targets of an engine, too."""
    if len(indices) == 1:
        (only,) = indices
        return lambda values: (values[only],)
    return itemgetter(*indices)


class Mapper:
    """Maps the expositions and documents of one target; keeps the plan of the layout seen last.

    Of values it remembers only what `Rule.less` left of a counter, so that this never falls within one life of it.

    `base` are the labels that every series of the target gets (engine, target, the operator's own), `model` is the
    model's name where the engine's own is not to be used.
    """

    def __init__(self, engine: Engine, base: Mapping[str, str], *, cap: LabelCap, model: str = "") -> None:
        self.engine = engine
        self.cap = cap
        self._base = dict(base)
        self._model = model
        self._vocabulary, self._where = _compiled(engine)
        self._planned: tuple[Layout, str, Plan] | None = None
        self._facts: dict[tuple[str, tuple[tuple[str, str], ...]], Series] = {}
        self._rests: dict[Series, tuple[float, float]] = {}

    def plan(self, layout: Layout, *, model: str = "") -> Plan:
        """The plan for a layout; `model` is the model of series that name none, if another document has it."""
        if self._planned is not None and self._planned[0] is layout and self._planned[1] == model:
            return self._planned[2]
        plan = self._compile(layout, model)
        self._planned = (layout, model, plan)
        return plan

    def map(self, exposition: Exposition, *, model: str = "") -> tuple[Plan, Mapped]:
        """Points of a scrape."""
        plan = self.plan(exposition.layout, model=model)
        mapped = plan.apply(exposition.values)
        rests: dict[Series, tuple[float, float]] = {}
        for rest, whole, left in plan.left(exposition.values):
            rests[rest.series] = (whole, self._risen(rest.series, whole, left))
            mapped.points.append(Point(rest.series, rests[rest.series][1], rest.origin))
        self._rests = rests
        return plan, mapped

    def _risen(self, series: Series, whole: float, left: float) -> float:
        before, highest = self._rests.get(series, (math.inf, 0.0))
        return max(left, highest) if whole >= before else left

    def forget(self) -> None:
        """Resolve every mapping again: the label cap has free places."""
        self._planned = None
        self._facts.clear()

    def place(self, facts: Iterable[Fact], given: Iterable[Point]) -> Mapped:
        """Facts as points; those whose metric is among the points `given` are left out."""
        present = {point.series.metric.name for point in given}
        points = []
        problems = []
        for metric, labels, number, origin in facts:
            if metric.name in present or not 0.0 <= number < math.inf:
                continue
            value = possible(number, metric)
            if value is None:
                problems.append(beyond(origin, metric))
                continue
            key = (metric.name, tuple(labels.items()))
            series = self._facts.get(key)
            if series is None:
                if len(self._facts) > 10 * self.cap.limit * len(metric.labels or (1,)):
                    self._facts.clear()
                named = {**labels, "model": self._model} if self._model and labels.get("model") else labels
                capped = {name: self.cap.admit(name, text) if text else "" for name, text in named.items()}
                series = self._facts[key] = Series(metric, self._base | capped)
            points.append(Point(series, value, origin))
        return Mapped(_merged(points), len(problems), tuple(problems))

    def _compile(self, layout: Layout, model: str) -> Plan:
        sources = Sources(self.engine, layout, tuple(zip(self.engine.rules, self._where, strict=True)))
        problems: list[str] = []
        taken: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
        placed: dict[Series, Read | Rest | Point] = {}
        newest: list[Newest] = []
        for rule, where in zip(self.engine.rules, self._where, strict=True):
            identity = (rule.metric.name, tuple(sorted(rule.fixed.items())))
            if identity in taken and not rule.also:
                continue
            if rule.newest is not None:
                newest += self._newest(sources, rule, rule.newest, where, model)
                continue
            found = self._found(sources, rule, where, model, problems)
            if found:
                taken.add(identity)
            for made in found:
                placed.setdefault(made.series, made)
            if len(placed) > MOST_SERIES:
                raise TooManySeries(self.engine.title)
        states, unmapped = self._census(sources)
        read = [made for made in placed.values() if isinstance(made, Read)]
        return Plan(
            tuple(made.series for made in read if isinstance(made.how, Scalar)),
            _same(tuple(made.how for made in read if isinstance(made.how, Scalar))),
            tuple(made.series for made in read if isinstance(made.how, Buckets)),
            _same(tuple(made.how for made in read if isinstance(made.how, Buckets))),
            tuple(made for made in placed.values() if isinstance(made, Point)),
            states,
            unmapped,
            (*layout.problems, *problems, *sources.withheld, *_strange(sources)),
            self.engine.recognises({key.name for key in layout.keys}),
            tuple(sources.derived),
            tuple(made for made in placed.values() if isinstance(made, Rest)),
            tuple(newest),
        )

    def _found(
        self,
        sources: Sources,
        rule: Rule,
        where: Mapping[str, re.Pattern[str]],
        model: str,
        problems: list[str],
    ) -> Sequence[Read | Rest | Point]:
        if rule.metric.kind is Kind.HISTOGRAM:
            return self._histograms(sources, rule, where, model, problems)
        if rule.read is not None:
            return self._constants(sources, rule, rule.read, where, model)
        if rule.less:
            return self._differences(sources, rule, where, model)
        return self._scalars(sources, rule, where, model)

    def _differences(
        self, sources: Sources, rule: Rule, where: Mapping[str, re.Pattern[str]], model: str
    ) -> Sequence[Rest]:
        origin, indices = self._present(sources, rule, where)
        parts: dict[Series, list[int]] = {}
        for name in rule.less:
            part, taken = self._present_as((name,), sources, where)
            origin += f" - {part}" if part else ""
            for series, group in self._groups(sources, rule, taken, model).items():
                parts.setdefault(series, []).extend(group)
        return [
            Rest(series, origin, tuple(group), tuple(parts.get(series, ())))
            for series, group in self._groups(sources, rule, indices, model).items()
        ]

    def _newest(
        self, sources: Sources, rule: Rule, listed: Lister, where: Mapping[str, re.Pattern[str]], model: str
    ) -> Iterable[Newest]:
        origin, indices = self._present(sources, rule, where)
        if not indices:
            return
        found: list[tuple[Point, ...]] = []
        for index in indices:
            base = dict(self._series(sources, rule, index, model).labels)
            things = [
                Series(rule.metric, base | {name: self._admit(name, text) for name, text in each.items()})
                for each in listed(sources.labels(index))
            ]
            found.append(tuple(Point(series, 1.0, origin) for series in dict.fromkeys(things)))
        yield Newest(tuple(indices), tuple(found))

    def _census(self, sources: Sources) -> tuple[Mapping[SampleState, int], tuple[str, ...]]:
        layout, strange = sources.layout, {*sources.apart, *sources.repeats}
        states: Counter[SampleState] = Counter()
        unmapped: dict[str, None] = {}
        for index, key in enumerate(layout.keys):
            if index in sources.duplicates:
                continue
            state = self._vocabulary.state(key.name, key.type)
            if strange and state is SampleState.MAPPED and not strange.isdisjoint(name for name, _ in key.labels):
                state = SampleState.UNKNOWN_LABEL
            states[state] += 1
            if state is SampleState.UNKNOWN:
                unmapped[family(key.name, key.type)] = None
        states[SampleState.INVALID] += layout.invalid + len(sources.duplicates) + len(sources.withheld)
        return dict(states), tuple(unmapped)

    def _present(
        self, sources: Sources, rule: Rule, where: Mapping[str, re.Pattern[str]], suffix: str = ""
    ) -> tuple[str, list[int]]:
        return self._present_as(rule.names, sources, where, suffix)

    def _present_as(
        self, names: tuple[str, ...], sources: Sources, where: Mapping[str, re.Pattern[str]], suffix: str = ""
    ) -> tuple[str, list[int]]:
        for name in names:
            for spelling in self.engine.spellings(name):
                indices = sources.matching(spelling + suffix, where)
                if indices:
                    return spelling, indices
        return "", []

    def _series(self, sources: Sources, rule: Rule, index: int, model: str) -> Series:
        engine = self.engine
        upstream = sources.labels(index)
        ours = dict(self._base)
        if "model" in rule.metric.labels:
            whole = self._model or upstream.get(engine.model_label) or sources.only_model or model
            parts = (upstream[name] for name in engine.model_parts if name not in rule.labels and upstream.get(name))
            ours["model"] = self._admit("model", "/".join((whole, *parts)))
        if "replica" in rule.metric.labels:
            ours["replica"] = self._admit("replica", sources.replica(rule, index))
        for name, label in rule.labels.items():
            value = upstream.get(name, "")
            ours[label] = self._admit(label, rule.rewrite[label](value) if label in rule.rewrite else value)
        ours.update(rule.fixed)
        return Series(rule.metric, ours)

    def _admit(self, label: str, value: str) -> str:
        return self.cap.admit(label, value) if value else ""

    def _scalars(self, sources: Sources, rule: Rule, where: Mapping[str, re.Pattern[str]], model: str) -> list[Read]:
        origin, indices = self._present(sources, rule, where)
        groups = self._groups(sources, rule, indices, model)
        for name in rule.plus:
            added, indices = self._present_as((name,), sources, where)
            for series, group in self._groups(sources, rule, indices, model).items():
                if series in groups:
                    groups[series] += group
                    origin = f"{origin} + {added}" if added not in origin else origin
        if rule.times:
            factor, groups = self._multiplied(sources, rule, groups)
            origin = f"{origin} × {factor}"
        ratio = rule.combine is Combine.SUM and rule.metric.unit == "1"  # ratios are never summed
        return [
            Read(
                series,
                Scalar(
                    origin,
                    tuple(group[:1] if rule.combine is Combine.FIRST else group),
                    rule.scale,
                    Combine.MAX if ratio else rule.combine,
                    1.0 / rule.scale if is_share(rule.metric) else MOST,
                ),
            )
            for series, group in groups.items()
        ]

    def _multiplied(
        self, sources: Sources, rule: Rule, groups: Mapping[Series, list[int]]
    ) -> tuple[str, dict[Series, list[int]]]:
        """The second signal's name, and the positions of products for the groups in which each series has a partner."""
        name, indices = self._present_as(rule.times, sources, {})
        partners = {frozenset(sources.labels(index).items()): index for index in indices}
        found: dict[Series, list[int]] = {}
        for series, group in groups.items():
            pairs = [(index, partners.get(frozenset(sources.labels(index).items()))) for index in group]
            products = [
                sources.position(Derived(product, (index, partner))) for index, partner in pairs if partner is not None
            ]
            if len(products) == len(pairs):
                found[series] = products
        return name, found

    def _groups(self, sources: Sources, rule: Rule, indices: Iterable[int], model: str) -> dict[Series, list[int]]:
        groups: dict[Series, list[int]] = {}
        for index, read in sources.once(indices, rule):
            groups.setdefault(self._series(sources, rule, index, model), []).append(read)
        return groups

    def _constants(
        self,
        sources: Sources,
        rule: Rule,
        read: Reader,
        where: Mapping[str, re.Pattern[str]],
        model: str,
    ) -> list[Point]:
        origin, indices = self._present(sources, rule, where)
        chosen = list(indices) if rule.per_rank else sources.without_repeated_ranks(indices)
        points = []
        for index, number in zip(chosen, read([sources.labels(index) for index in chosen]), strict=True):
            if number is None or not 0.0 <= number < math.inf:
                continue
            value = possible(number * rule.scale, rule.metric)
            if value is None:
                sources.withheld.append(beyond(origin, rule.metric))
            else:
                points.append(Point(self._series(sources, rule, index, model), value, origin))
        return points

    def _histograms(
        self,
        sources: Sources,
        rule: Rule,
        where: Mapping[str, re.Pattern[str]],
        model: str,
        problems: list[str],
    ) -> list[Read]:
        origin, buckets = self._present(sources, rule, where, "_bucket")
        sums = self._groups(sources, rule, sources.matching(origin + "_sum", where), model)
        found = []
        for series, indices in self._groups(sources, rule, buckets, model).items():
            by_bound: dict[float, list[int]] = {}
            for index in indices:
                bound = _bound(sources.labels(index).get("le", ""))
                if bound is not None:
                    by_bound.setdefault(bound, []).append(index)
            bounds = tuple(sorted(by_bound))
            parts = {len(by_bound[bound]) for bound in bounds}
            whole = bool(bounds) and bounds[-1] == math.inf and len(parts) == 1 and series in sums
            if not whole or len(sums[series]) != parts.pop():
                problems.append(
                    f"{origin}: a histogram without its +Inf bucket, its sum or one of its bounds was dropped"
                )
                continue
            if len(bounds) > MOST_BOUNDS:
                problems.append(
                    f"{origin}: a histogram of {len(bounds)} bounds was dropped; {MOST_BOUNDS} are the most"
                )
                continue
            found.append(
                Read(
                    series,
                    Buckets(
                        origin,
                        _same(tuple(bound * rule.scale for bound in bounds)),
                        tuple(map(_picker, zip(*[by_bound[bound] for bound in bounds], strict=True))),
                        tuple(sums[series]),
                        rule.scale,
                    ),
                )
            )
        return found


def _strange(sources: Sources) -> Iterator[str]:
    """What there is to say of series exposed twice, and of labels that no rule knows."""
    if sources.duplicates:
        names = sorted({sources.layout.keys[index].name for index in sources.duplicates})
        yield f"exposed more than once with the same labels, the first is read: {', '.join(names[:3])}"
    if sources.apart:
        yield f"no rule knows the label {', '.join(sources.apart)}: its series are separated as replicas"
    if sources.repeats:
        yield (
            f"no rule knows the label {', '.join(sorted(sources.repeats))}: the largest of what it repeats is read, "
            "of histograms the lowest rank's"
        )


def _bound(text: str) -> float | None:
    try:
        bound = float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) else bound


def _merged(points: list[Point]) -> list[Point]:
    """Points with one for each series: of those that the label cap made fall together the sum, or the largest.

    Amounts add up, as they do over replicas; ratios, contexts and times do not.
    """
    by_series: dict[Series, Point] = {}
    for each in points:
        known = by_series.get(each.series)
        if known is None:
            by_series[each.series] = each
            continue
        metric = each.series.metric
        if metric.kind is not Kind.HISTOGRAM and any(text == OVERFLOW for _, text in each.series.labels):
            one, other = float(known.value), float(each.value)  # type: ignore[arg-type]  # no histograms
            value = one + other if metric.across is Across.SUM else max(one, other)
            by_series[each.series] = known._replace(value=value)
    return list(by_series.values())
