"""PromQL over our metrics, narrowed to what a dashboard's variables select.

Metrics come as values of the schema, so that a name that does not exist is an error before anything is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import BAD, WARN
from llm_headroom.bundle.dashboards.dashboard import Annotation, Variable
from llm_headroom.bundle.dashboards.panel import NOT_EXPOSED
from llm_headroom.bundle.rule import FAULTS
from llm_headroom.model import Level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.model import Metric, State

WINDOW: Final = "5m"
"""Of every rate, as in the alerts and the recorded series: what is said twice is the same number twice."""
MODEL: Final = "engine, model"
TARGET: Final = "cluster, instance, engine, model, target"
SOURCE: Final = "cluster, instance, engine, target"
"""An address alone is no target: 127.0.0.1:8000 is one on every host."""
EXPORTER: Final = "cluster, namespace, job, instance"
BY_MODEL: Final = "{{engine}} · {{model}}"
BY_TARGET: Final = "{{engine}} · {{instance}} · {{target}}"
BY_GPU: Final = "GPU {{gpu}} · {{instance}}"
ENGINES: Final = 'engine!="nvml"'
"""NVML is a source like the engines; where engines are counted, it is not."""


MOST: Final = 10
"""Curves that can be told apart."""
_PLACE: Final = ("cluster", "namespace", "job", "instance")


@dataclass(frozen=True, slots=True)
class Scope:
    """What is selected: the place, and `choices` among the labels engine, model, target and gpu.

    `extra` are matchers of the user's choice, `job` the exporters'.
    """

    extra: str = ""
    job: str = "llm-headroom"
    choices: tuple[str, ...] = ("engine", "model", "target")

    def once(self) -> Scope:
        """The scope in which each request is counted once where all targets are selected.

        What the measuring proxy saw of an engine with metrics of its own is left out. With all targets the pattern fits
        such a name; with some it fits none, so that these are as they were chosen.
        """
        own = f'target!~".+{schema.PROXY_TARGET}$target"'
        return replace(self, extra=f"{self.extra}, {own}" if self.extra else own)

    def matchers(self, labels: tuple[str, ...], *more: str) -> str:
        """The matchers for series with such labels."""
        chosen = [*_PLACE, *(name for name in self.choices if name in labels)]
        own = [f'{name}=~"${name}"' for name in chosen]
        return ", ".join([*own, *([self.extra] if self.extra else []), *more])

    def of(self, metric: Metric, *more: str, suffix: str = "", **exact: str) -> str:
        """The metric's selected series; `exact` are further labels and the values that they must have."""
        more += tuple(f'{name}="{value}"' for name, value in exact.items())
        return f"{metric.name}{suffix}{{{self.matchers(metric.labels, *more)}}}"

    def rate(self, metric: Metric, *more: str, suffix: str = "", window: str = WINDOW, **exact: str) -> str:
        """The growth per second of the metric's selected series."""
        return f"rate({self.of(metric, *more, suffix=suffix, **exact)}[{window}])"

    def quantile(self, share: float, metric: Metric, by: str = MODEL, *more: str, window: str = WINDOW) -> str:
        """A quantile of a histogram. `by` holds `engine`: the buckets of different engines do not add up."""
        buckets = self.rate(metric, *more, suffix="_bucket", window=window)
        return f"histogram_quantile({share}, sum by ({by}, le) ({buckets}))"

    def recorded_quantile(self, share: float, metric: Metric) -> str:
        """A quantile over a whole fleet, from buckets that a recording rule has added up by engine and model.

        They have no instance and no target; the user's own matchers are in the rule.
        """
        buckets = self.recorded(f"{metric.name}_bucket:rate5m")
        return f"histogram_quantile({share}, sum by ({MODEL}, le) ({buckets}))"

    def recorded(self, name: str, *more: str) -> str:
        """Series that a recording rule has made by engine and model, by their name without its level."""
        chosen = [f'{label}=~"${label}"' for label in ("cluster", "namespace", "job", "engine", "model")]
        return f"engine_model:{name}{{{', '.join([*chosen, *more])}}}"

    def engines_quantile(self, share: float, metric: Metric, window: str = WINDOW) -> str:
        """A quantile of each engine: of a whole fleet from what is recorded, of chosen targets from their own.

        Series of which one selector reads nothing cost nothing. No series has the label `narrowed`, so that a pattern
        fits it if it fits nothing at all: `.*.*` does, which is all instances and all targets; a name does not.
        """
        narrowed = "$instance$target"
        buckets = self.recorded(f"{metric.name}_bucket:rate5m", f'narrowed=~"{narrowed}"')
        whole = buckets if window == WINDOW else f"sum_over_time({buckets}[{window}])"
        chosen = self.rate(metric, f'narrowed!~"{narrowed}"', suffix="_bucket", window=window)
        return f"histogram_quantile({share}, sum by (engine, le) ({whole}) or sum by (engine, le) ({chosen}))"

    def worst(self, metric: Metric, by: str = SOURCE, highest: bool = True, **exact: str) -> str:  # noqa: FBT001, FBT002 - which end
        """A gauge of the few series that had the worst value within the time range: the same at every step."""
        kind, first = ("max", "topk") if highest else ("min", "bottomk")
        series = self.of(metric, **exact)
        ever = f"{kind} by ({by}) ({kind}_over_time({series}[$__range] @ end()))"
        return f"{kind} by ({by}) ({series}) and {first}({MOST}, {ever})"

    def worst_mean(self, metric: Metric, by: str = SOURCE) -> str:
        """The means over five minutes of the few gauges that were highest on average within the time range."""
        series = self.of(metric)
        ever = f"max by ({by}) (avg_over_time({series}[$__range] @ end()))"
        return f"max by ({by}) (avg_over_time({series}[{WINDOW}])) and topk({MOST}, {ever})"

    def worst_rate(self, metric: Metric, by: str = SOURCE) -> str:
        """The growth per second of the few counters that grew most within the time range."""
        ever = f"sum by ({by}) (rate({self.of(metric)}[$__range] @ end()))"
        return f"sum by ({by}) ({self.rate(metric)}) and topk({MOST}, {ever})"

    def mean(self, metric: Metric, by: str = MODEL, *more: str) -> str:
        """The mean of a histogram's observations; of engines with different buckets, too."""
        total, count = (self.rate(metric, *more, suffix=suffix) for suffix in ("_sum", "_count"))
        grouping = f" by ({by})" if by else ""
        return f"sum{grouping} ({total}) / sum{grouping} ({count})"

    def share(self, part: Metric, whole: Metric, by: str, window: str = WINDOW, **exact: str) -> str:
        """The rate of one counter as a share of another's."""
        grouping = f" by ({by})" if by else ""
        rates = (f"sum{grouping} ({self.rate(one, window=window, **exact)})" for one in (part, whole))
        return " / ".join(rates)

    def failed(self) -> str:
        """The greatest share of requests that failed on any target; nothing where no failure is counted.

        The alert on errors takes the same three shares.
        """
        unwanted = self.rate(schema.REQUESTS_FAILED, FAULTS)
        failed = f"sum by ({TARGET}) ({unwanted})"
        finished = f"sum by ({TARGET}) ({self.rate(schema.REQUESTS_FINISHED)})"
        wrong, answers = (
            f"sum by ({TARGET}) ({self.rate(schema.HTTP_RESPONSES, *more)})" for more in (('code="5xx"',), ())
        )
        lost, routed = (
            f"sum by ({TARGET}) ({self.rate(one)})" for one in (schema.ROUTER_ERRORS, schema.ROUTER_REQUESTS)
        )
        shares = (f"{failed} / ({failed} + {finished})", f"{wrong} / {answers}", f"{lost} / {routed}")
        return f"max({' or '.join(apart(share, place) for place, share in enumerate(shares))})"

    def exporters(self) -> str:
        """1 for each exporter that Prometheus reaches and 0 for each other one."""
        own = f'job="{self.job}"'
        return f"up{{{self.matchers((), own)}}}"

    def behind(self, series: str) -> str:
        """The series' last values of the last hour whose exporters are unreachable."""
        return f"(last_over_time({series}[1h]) and on ({EXPORTER}) {self.exporters()} == 0)"

    def reached(self, series: str) -> str:
        """The series of all other exporters: some stores keep what an unreachable one has said last for minutes."""
        return f"({series} unless on ({EXPORTER}) {self.exporters()} == 0)"

    def state(self, metric: Metric, states: Sequence[State], by: str, *more: str, among: str = "") -> str:
        """The place of the worst state from the end of `ranked(states)`: 1 is the best.

        Those behind an unreachable exporter are unknown, unless they were in the worst state. `among` are the only ones
        to be shown, with the labels `by`. What is not in a state is left out before the states are united, and the best
        comes last: `or` compares every series with all before it, at every step.
        """
        order = ranked(states)
        place = {state: len(order) - at for at, state in enumerate(order)}
        seen = " or ".join(
            f"({self.of(metric, *more, state=state)} == 1){f' * {place[state]}' if place[state] > 1 else ''}"
            for state in states
        )
        down = self.behind(self.of(metric, *more, state=states[0]))
        held = f"{down} * {place[states[0]] - place[None]} + {place[None]}"
        every = f"{held} or {seen}"
        return f"max by ({by}) ({f'({every}) and on ({by}) {among}' if among else every})"

    def exposed(self, expr: str, by: str = "", absent: int = NOT_EXPOSED) -> str:
        """The expression, or `absent` if it has no series although a source is up; nothing if none is."""
        grouping = f" by ({by})" if by else ""
        alive = self.of(schema.UP, ENGINES)
        return f"({expr}) or (group{grouping} ({alive} == 1) * 0 - {-absent})"

    def exposed_gpu(self, expr: str) -> str:
        """`exposed` for what NVML provides."""
        alive = f'llm_up{{{self.matchers(())}, engine="nvml"}}'
        return f"({expr}) or (group({alive} == 1) * 0 - {-NOT_EXPOSED})"

    def variables(self, *, single: bool) -> tuple[Variable, ...]:
        """What can be chosen, each narrowed by those before it; with `single` one instance and one target."""
        extra = f", {self.extra}" if self.extra else ""
        place = 'job=~"$job", cluster=~"$cluster", namespace=~"$namespace"'
        some = f'{place}, instance=~"$instance"{extra}'
        where = f"{{{self.extra}}}" if self.extra else ""
        engines = f'{some}, engine=~"$engine"'
        no_gpus = "/^(?!nvml$).*/"
        chosen = {
            "engine": ("Engine", f"label_values(llm_up{{{some}}}, engine)", no_gpus),
            "model": ("Model", f"label_values(llm_model_loaded{{{engines}}}, model)", ""),
            "target": ("Target", f"label_values(llm_up{{{engines}}}, target)", no_gpus),
            "gpu": ("GPU", f"label_values(llm_gpu_memory_total_bytes{{{some}}}, gpu)", ""),
        }
        return (
            Variable("job", "Job", f"label_values(llm_build_info{where}, job)"),
            Variable("cluster", "Cluster", f'label_values(llm_build_info{{job=~"$job"{extra}}}, cluster)'),
            Variable(
                "namespace",
                "Namespace",
                f'label_values(llm_build_info{{job=~"$job", cluster=~"$cluster"{extra}}}, namespace)',
            ),
            Variable("instance", "Instance", f"label_values(llm_build_info{{{place}{extra}}}, instance)", not single),
            *(
                Variable(name, label, query, not (single and name == "target"), regex, name not in self.choices)
                for name, (label, query, regex) in chosen.items()
                if name in self.choices or name != "gpu"
            ),
        )

    def annotations(self, alerts: str) -> tuple[Annotation, ...]:
        """The events that explain a curve; `alerts` selects our alerts in ALERTS."""
        loaded = self.of(schema.MODEL_LOADED)
        xid = self.of(schema.GPU_XID_LAST)
        return (
            Annotation(
                "Alerts",
                f'ALERTS{{alertstate="firing", {alerts}}}',
                "{{alertname}}",
                "{{severity}} {{engine}} {{target}} {{model}}",
                BAD,
            ),
            Annotation(
                "Engine restarts",
                f"changes({self.of(schema.ENGINE_RESTARTS)}[1m]) > 0",
                "{{engine}} restarted",
                "{{target}} {{model}}",
                WARN,
            ),
            Annotation(
                "Model loads",
                f"({loaded} unless ({loaded} offset 1m == 1)) == 1",
                "{{model}} loaded",
                "{{engine}} {{target}}",
                "blue",
            ),
            Annotation("GPU errors (Xid)", f"{xid} * 1000", "Xid {{xid}}", "GPU {{gpu}}", "purple", exact=True),
        )


def ranked(states: Sequence[State]) -> list[State | None]:
    """States, the worst first, and None for one behind an unreachable exporter: after all known trouble.

    Somebody suffers from that now; for unreachable exporters there are a tile and an alert.
    """
    trouble = sum(state.level in {Level.BAD, Level.WARN} for state in states)
    return [*states[:trouble], None, *states[trouble:]]


def apart(expr: str, place: int) -> str:
    """The expression with a label of its own, so that `or` unites it with others of the same labels."""
    return f'label_replace({expr}, "part", "{place}", "", "")'
