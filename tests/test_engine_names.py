"""By which names an engine is known, and what its rules may be for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom import schema
from llm_headroom.engines.rules import Engine, Rule, always

if TYPE_CHECKING:
    from llm_headroom.model import Metric


def strange(*, prefixes: tuple[str, ...] = ("x:", "x_"), marks: tuple[str, ...] = (), later: int = 0) -> Engine:
    """An engine whose rules use seven names."""
    rules = (
        Rule(schema.PROMPT_TOKENS, ("x:a_total", "x:old_a"), plus=("x:b_total",), less=("x:c_total",)),
        Rule(schema.KV_CACHE_USED, ("x:seconds",), times=("x:factor", "unprefixed")),
    )
    return Engine(
        name="x", title="X", port=7, later_port=later, prefixes=prefixes, marks=marks, documents=always(), rules=rules
    )


def test_the_names_of_an_engine_in_every_spelling() -> None:
    names = ("a_total", "old_a", "b_total", "c_total", "seconds", "factor")
    engine = strange()
    assert engine.vocabulary == {"unprefixed", *(prefix + name for prefix in ("x:", "x_") for name in names)}
    assert (engine.spellings("x:a_total"), engine.spellings("y")) == (("x:a_total", "x_a_total"), ("y",))
    assert strange(prefixes=()).spellings("x:a_total") == ("x:a_total",)
    assert [sorted(each.ports) for each in (strange(), strange(later=9))] == [[7], [7, 9]]
    assert list(engine.documents({})) == []


@pytest.mark.parametrize(
    ("metric", "more", "complaint"),
    [
        (schema.KV_CACHE_USED, {"times": ("y",)}, ""),
        (schema.REQUEST_DURATION, {}, ""),
        (schema.GPU_POWER, {}, "not a metric that an engine exposes"),
        (schema.REQUEST_DURATION, {"times": ("y",)}, "plain numbers"),
        (schema.KV_CACHE_CAPACITY, {"times": ("y",), "read": lambda _: ()}, "plain numbers"),
        (schema.KV_CACHE_CAPACITY, {"read": lambda _: ()}, ""),
    ],
)
def test_what_a_rule_may_be_for(metric: Metric, more: dict[str, Any], complaint: str) -> None:
    if complaint:
        with pytest.raises(ValueError, match=f"{metric.name}.* {complaint}"):
            Rule(metric, ("x",), **more)
    else:
        assert Rule(metric, ("x",), **more).scale == 1.0


@pytest.mark.parametrize(
    ("engine", "name", "owned"),
    [
        (strange(), "x:whatever", True),
        (strange(), "x_a_total", True),
        (strange(), "x_seconds_bucket", True),
        (strange(), "x_seconds_sum", True),
        (strange(), "x_seconds_count", True),
        (strange(), "x_seconds_other", False),
        (strange(), "x_whatever", False),
        (strange(), "unprefixed", False),
        (strange(marks=("y_", "z:")), "z:whatever", True),
        (strange(marks=("y_", "z:")), "x:a_total", False),
    ],
)
def test_which_samples_can_only_be_an_engine_s(engine: Engine, name: str, *, owned: bool) -> None:
    assert engine.owns(name) is owned
    assert engine.recognises({"up", name}) is owned


@pytest.mark.parametrize(
    ("names", "recognised"),
    [
        (("a_total", "b_total", "c_total", "seconds_sum"), True),
        (("a_total", "b_total", "seconds_sum", "seconds_count", "up"), False),
        (("a_total", "b_total", "c_total", "unprefixed"), False),
        ((), False),
    ],
)
def test_names_without_a_prefix_are_an_engine_s_if_there_are_enough(
    names: tuple[str, ...], *, recognised: bool
) -> None:
    assert strange(prefixes=("x:", "")).recognises(names) is recognised
    assert strange().recognises(names) is False
