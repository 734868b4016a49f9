"""How an engine is described: what to fetch of it, and the rules by which its words become the schema's. Data only."""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from llm_headroom.model import Kind, Metric, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from llm_headroom.exposition.text import Layout


class Combine(StrEnum):
    """How several upstream series that map to one of ours are combined, once repeated ranks are gone."""

    SUM = "sum"
    MAX = "max"
    FIRST = "first"


Reader: TypeAlias = "Callable[[Sequence[Mapping[str, str]]], Iterable[float | None]]"
"""The labels of info series → a value for each of them, None for unknown."""
Lister: TypeAlias = "Callable[[Mapping[str, str]], Iterable[Mapping[str, str]]]"
"""The labels of one info series → our labels of each thing that it lists."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one canonical metric is found in an exposition.

    names: what the signal has been called, newest first, in the spelling of the engine's first prefix. The first name
        that is present, in the first spelling that is present, is used; no other is added to it.
    where: regular expressions that whole label values must match; an absent label counts as an empty value.
    labels: upstream label → ours. Other labels: see `Engine.adds_up`.
    sums: True if series are summed over every label that is not named here, known or not: a user's own rule.
    fixed: labels that every series of this rule gets.
    rewrite: our label → what turns an upstream value into ours (a status code into its class).
    plus: names whose values are added to those of the name found, where they are present.
    less: names whose values are taken off that of the name found, where they are present: parts that a counter counts
        among the rest. What is left of a counter never falls, although its parts may be counted before it is.
    times: names, newest first, of a second signal: each value is multiplied with that of the series with the same
        upstream labels. A series of ours is absent if one of its values has no such partner.
    also: True if the rule adds series to those of an earlier rule of the same metric. Otherwise the first rule of a
        metric (and of the same `fixed` labels) that finds something is the only one.
    scale: what a value is multiplied with to come into the metric's unit.
    combine: how several upstream series that map to one of ours are combined.
    per_rank: True if each tensor- or pipeline-parallel rank reports its own GPU. Otherwise ranks repeat one
        another and the lowest one speaks for all.
    read: for info metrics: the labels of all the series present → a value for each of them, None for unknown.
    newest: for info metrics whose values are times, of which the latest one holds: what that one's labels list. Each
        thing listed gets the value 1.
    needs: what has to be switched on for the signal to be there, for people.
    note: a trap worth knowing, for METRICS.md.
    """

    metric: Metric
    names: tuple[str, ...]
    _: KW_ONLY
    where: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    rewrite: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    plus: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    also: bool = False
    scale: float = 1.0
    combine: Combine = Combine.SUM
    per_rank: bool = False
    sums: bool = False
    read: Reader | None = None
    newest: Lister | None = None
    needs: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuses a metric that others give, whose series would stand there twice, and a product of histograms."""
        if not self.metric.exposed_by_engines:
            raise ValueError(f"{self.metric.name} is not a metric that an engine exposes ({self.metric.subject})")
        if self.times and (self.metric.kind is Kind.HISTOGRAM or self.read is not None):
            raise ValueError(f"{self.metric.name}: only a rule for plain numbers can multiply two of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Something to fetch from an engine.

    key: what the engine's functions call it.
    path, body: the request, a POST where it has a body.
    text: True for an exposition, False for JSON.
    every: seconds between fetches; 0 with each poll.
    tolerated: status codes which are an answer too (a feature that is off), not a failure of the source.
    optional: True if the source is up without it.
    leads: True if what else is asked for depends on its newest answer.
    wakes: True if the engine takes the request for work that keeps it from going to sleep.
    model: the model of its series that name none, where it is not that of the whole engine.
    after: the usual path, which has been asked for in vain; messages name it.
    form: the type of a JSON document's content, see `answers`: what it does not name is not retained. Bodies can
        contain keys and prompts.
    read: what of that content is retained, and in which shape.
    """

    key: str
    path: str
    body: bytes | None = None
    text: bool = False
    every: float = 0.0
    tolerated: tuple[int, ...] = ()
    optional: bool = False
    leads: bool = False
    wakes: bool = False
    model: str = ""
    after: str = ""
    form: Any = None
    read: Callable[[Any], Any] = lambda content: content


def always(*documents: Document) -> Callable[[Mapping[str, Any]], Iterable[Document]]:
    """The `documents` of an engine that serves the same ones whatever it has answered so far."""
    return lambda _known: documents


class Absent(NamedTuple):
    """In the place of a document that the engine does not serve: the status that it answered with."""

    status: int


class Fact(NamedTuple):
    """A value out of a document that is no exposition; `labels` in our names, without engine and target."""

    metric: Metric
    labels: Mapping[str, str]
    value: float
    origin: str


class Beside(StrEnum):
    """What the engine's host shows of it that its own endpoint does not."""

    RUNNERS = "runners"
    """It starts a `llama-server` for each model that it has loaded, with endpoints of its own."""
    COMMAND_LINE = "command line"
    """It is a `llama-server`: how its process was started says whether its slots share one KV cache."""


ENOUGH_BARE_NAMES: Final = 4
"""Names without a prefix that together identify an engine."""


def _families(name: str) -> tuple[str, ...]:
    """What a sample's name may be written as in a rule: itself, and its histogram's."""
    return (name, *(name.removesuffix(part) for part in ("_bucket", "_sum", "_count") if name.endswith(part)))


def _no_facts(_documents: Mapping[str, Any]) -> Iterable[Fact]:
    return ()


def _unknown(_documents: Mapping[str, Any]) -> str:
    return ""


def _no_complaint(_layout: Layout) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Engine:
    """All that is known of one kind of engine, as data and a few pure functions.

    prefixes: the spellings of its metrics' prefix; rules use the first one. An empty one: names without a prefix.
    marks: prefixes that only this kind of engine uses. Without them a prefix that ends in a colon is such a mark, and
        any other (`vllm_`, which `vllm_router_` and `vllm_mlx_` begin with, too) only in names that its rules know.
    port: where it listens by default; several engines may have the same one.
    later_port: where newer releases listen by default, 0 if nowhere else.
    releases: those that its rules know, for people.
    colour: the word of the colour that its series have on every dashboard, out of `HUES` in
        bundle/dashboards/colours.py; no two engines have the same.
    model_parts: labels that distinguish parts of a model that are models of their own (stages of a pipeline).
    adds_up: labels whose series are parts that add up. Any other label that no rule knows, and that
        distinguishes series, separates them as replicas; if it names ranks (`local_rank`, `tp`), the series repeat one
        another, and the largest is used (of histograms the lowest rank's).
    labels_requests: True if operators can have it label requests as they like: of counters and histograms every label
        that is not known and names no ranks adds up then, and none of them is exported.
    documents: what to fetch next, given what has been read of the engine so far (empty at first).
    owned_by: what `/v1/models` says of who owns its models, to recognise it where it has no metrics.
    greeting: what `GET /` answers, likewise.
    facts: values out of its JSON documents, and of the target's settings under the key `settings`. Rules go before
        facts: a fact is used if no rule gave its metric.
    subject: what its metrics speak of: an engine that holds models, or a router that holds none.
    limit_per_model: True if the engine's facts make use of the configured `requests_running_limit` themselves.
    fact_sources: canonical name → where facts find it, for people.
    version: the engine's version out of its documents, "" if unknown.
    model: the model of series that name none, out of its documents, "" if unknown.
    refuse: why an exposition is not this engine's although it looks like it, "" if it is.
    silent: message for the operator if an exposition holds none of the engine's own metrics.
    hints: status → what it means when this engine answers it with an empty body, and what to do.
    ignored: glob → why families of that name are passed over on purpose.
    interval: the shortest interval at which it may be polled, seconds.
    timeout: the shortest deadline that makes sense for it, seconds.
    queue_limit: the most requests that wait in it by default before it turns more away, None for any number.
    slotted: True if each of its requests has a slot with a whole context, so that no KV cache is shared.
    proxy_flag: llm-headroom's flag for a measuring proxy in front of it, if it reports no requests by itself. What the
        proxy sees then stands among the engine's own series; that of others has a target of its own, since one series
        must not mix two rulers.
    loads_on_demand: True if it loads models when they are asked for, and shows at each poll which are in memory.
    hides_loads: True if it does not show that a model is being loaded, so that any silence may be just that.
    default_tag: what it adds to a model's name that has no tag.
    reserves: True if it prefills first, and reserves room for an answer before it admits the request.
    beside: what is looked at beside its endpoint where it runs on this host, None for nothing.
    vocabulary: every name that its rules use, in every spelling.
    """

    name: str
    title: str
    port: int
    releases: str = ""
    colour: str = ""
    prefixes: tuple[str, ...]
    documents: Callable[[Mapping[str, Any]], Iterable[Document]]
    later_port: int = 0
    marks: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    model_label: str = "model_name"
    replica_label: str = ""
    model_parts: tuple[str, ...] = ()
    adds_up: tuple[str, ...] = ()
    labels_requests: bool = False
    rank_labels: tuple[str, ...] = ()
    owned_by: str = ""
    greeting: str = ""
    facts: Callable[[Mapping[str, Any]], Iterable[Fact]] = _no_facts
    subject: Subject = Subject.ENGINE
    limit_per_model: bool = False
    fact_sources: Mapping[str, str] = field(default_factory=dict)
    version: Callable[[Mapping[str, Any]], str] = _unknown
    model: Callable[[Mapping[str, Any]], str] = _unknown
    refuse: Callable[[Layout], str] = _no_complaint
    silent: str = ""
    hints: Mapping[int, str] = field(default_factory=dict)
    interval: float = 0.0
    timeout: float = 0.0
    queue_limit: int | None = None
    proxy_flag: str = ""
    loads_on_demand: bool = False
    hides_loads: bool = False
    default_tag: str = ""
    slotted: bool = False
    reserves: bool = False
    beside: Beside | None = None
    vocabulary: frozenset[str] = field(init=False)
    _bare: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Index the names that rules use, in every spelling."""
        names = [name for rule in self.rules for name in (*rule.names, *rule.plus, *rule.less, *rule.times)]
        first = self.prefixes[0] if self.prefixes else ""
        object.__setattr__(self, "vocabulary", frozenset(each for name in names for each in self.spellings(name)))
        bare = frozenset(name.removeprefix(first) for name in names if first and name.startswith(first))
        object.__setattr__(self, "_bare", bare)

    @property
    def ports(self) -> frozenset[int]:
        """Every port on which it listens by default."""
        return frozenset((self.port, self.later_port)) - {0}

    def spellings(self, name: str) -> tuple[str, ...]:
        """Every way in which an endpoint may write a name that a rule uses; interned, as all targets remember them."""
        first = self.prefixes[0] if self.prefixes else ""
        if not first or not name.startswith(first):
            return (name,)
        rest = name.removeprefix(first)
        return tuple(sys.intern(prefix + rest) for prefix in self.prefixes)

    def owns(self, name: str) -> bool:
        """Whether a sample of this name can only come from this kind of engine."""
        if self.marks:
            return name.startswith(self.marks)
        colons = tuple(prefix for prefix in self.prefixes if prefix.endswith(":"))
        if name.startswith(colons):
            return True
        named = name.startswith(tuple(filter(None, self.prefixes)))
        return named and any(base in self.vocabulary for base in _families(name))

    def recognises(self, names: Collection[str]) -> bool:
        """Whether an exposition with samples of these names is this kind of engine's.

        One name that can only be its is enough. Names without a prefix can be anybody's: it takes `ENOUGH_BARE_NAMES`.
        """
        if any(map(self.owns, names)):
            return True
        if "" not in self.prefixes:
            return False
        families = {base for name in names for base in _families(name)}
        return len(families & self.vocabulary & self._bare) >= ENOUGH_BARE_NAMES
