"""The judge of the load headroom: figures out of rows, and a true limit on a simulated engine."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from evaluate.scenarios import A100_8B
from headroom import autoscaler, loops, report, score
from headroom.ladder import OURS, Row
from headroom.loops import Outcome
from headroom.scenarios import HELD_OUT, STEADY, TUNING, Scenario
from headroom.truth import ALLOWED, limit, slow_share
from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.traffic import Request

ROW = Row("s", "g", "held out", 0.8, 1500.0, OURS, 1.25, 1.25)


def at(level: float, *factors: float) -> list[Row]:
    """Estimates at a load that are off by some factors."""
    return [replace(ROW, level=level, true=1 / level, said=factor / level) for factor in factors]


def test_errors_are_logarithms_and_bounded_as_the_metric_is() -> None:
    assert score.errors(at(0.5, 1.0, 2.0)) == pytest.approx([0.0, 0.693], abs=1e-3)
    assert score.errors([replace(ROW, said=1e9, true=1.0)]) == pytest.approx([2.77], abs=0.01)
    assert score.middle(at(0.5, 0.5, 1.0, 1.0)) == 0.0
    assert score.bias(at(0.5, 1.1, 1.1, 0.5)) == pytest.approx(0.0953, abs=1e-3)
    assert score.worst_bias([*at(0.5, 1.1), *at(1.0, 0.5)]) == pytest.approx(-0.693, abs=1e-3)


def test_ranking_is_the_chance_that_overload_is_said_to_have_less_room() -> None:
    assert score.ranking([*at(0.6, 1.0), *at(1.0, 1.0), *at(1.2, 1.0)]) == 1.0
    assert score.ranking([replace(row, said=1.7) for row in (*at(0.6, 1.0), *at(1.0, 1.0))]) == 0.5
    assert score.cried([*at(0.6, 0.5), *at(0.6, 1.0), *at(1.0, 0.5)]) == 0.5


def test_intervals_are_over_traces() -> None:
    good = [replace(row, group="good", scenario="a") for row in at(0.8, 1.0, 1.0)]
    bad = [replace(row, group="bad", scenario="b") for row in at(0.8, 2.0, 2.0)]
    low, high = score.interval([*good, *bad], score.middle)
    assert low == 0.0
    assert high == pytest.approx(0.693, abs=1e-3)


def test_gates_and_tables_are_written() -> None:
    rows = [*at(0.6, 1.1), *at(1.0, 1.0), *(replace(row, kind="steady") for row in at(0.6, 1.0))]
    written = report.document(rows)
    assert "| median of the error | ≤ 0.18 | 0.048 | yes |" in written
    assert "by a factor of 1.05 at the median (95 % interval 1.05 to\n1.05, over 1 traces), and of 1.11 " in written
    assert f"| {OURS} |" in written


def test_tuning_and_judging_share_no_trace() -> None:
    assert {one.group for one in TUNING} == {"azure_llm_2023_conv", "servegen_mlarge_day6"}
    assert not {one.group for one in TUNING} & {one.group for one in (*HELD_OUT, *STEADY)}


def test_the_true_limit_is_where_the_allowed_share_is_slow() -> None:
    scenario = Scenario("steady 8000 + 20", A100_8B, sizes=(8000, 20))
    found = limit(scenario)
    assert slow_share(scenario, 0.9 * found) < ALLOWED < slow_share(scenario, 1.1 * found)
    assert len(scenario.traffic(found)) > len(scenario.traffic(0.5 * found))


def loop(rule: str, slow: float, hours: float, group: str = "g", seed: int = 1) -> Outcome:
    return Outcome(f"{group} @ engine", group, seed, rule, slow, hours)


def test_the_fixed_size_that_does_as_well_is_the_smallest_with_few_slow_first_tokens() -> None:
    fixed = [loop("always 2", 0.2, 6.0), loop("always 3", 0.004, 9.0), loop("always 4", 0.0, 12.0)]
    assert loops.as_good([*fixed, loop(loops.OURS, 0.0, 1.0)], 1) == 9.0
    assert loops.as_good(fixed[:1], 1) == 6.0


def test_workloads_count_once_however_many_seeds_they_have() -> None:
    rows = [loop("r", 0.1, 5.0, "a", seed) for seed in range(1, 4)] + [loop("r", 0.3, 7.0, "b")]
    assert loops.mean(rows, lambda row: row.slow) == pytest.approx(0.2)
    low, high = loops.interval(rows, lambda row: row.slow)
    assert (low, high) == pytest.approx((0.1, 0.3))


def test_the_goal_of_the_autoscaler_is_judged_in_each_workload() -> None:
    good = [loop("always 2", 0.001, 6.0, "good"), loop(loops.OURS, 0.005, 6.3, "good")]
    dear = [loop("always 2", 0.001, 6.0, "dear"), loop(loops.OURS, 0.0, 6.4, "dear")]
    written = loops.section([*good, *dear])
    assert "| good @ engine | 0.50% | 6.3 | 6.0 hours | yes |" in written
    assert "| dear @ engine | 0.00% | 6.4 | 6.0 hours | **no** |" in written
    assert written.startswith(f"{loops.TITLE}\n")


def looped(rule: autoscaler.Rule | None, balance: str = "at random") -> autoscaler.Loop:
    scenario = Scenario("steady 500 + 20", A100_8B, sizes=(500, 20))
    return autoscaler.Loop(scenario, rule, 1, autoscaler.BALANCERS[balance])


@pytest.mark.parametrize("figure", [None, 0.8])
def test_an_autoscaler_grows_with_what_it_looks_at_and_a_fixed_size_does_not(figure: float | None) -> None:
    requests = (Request(at, 500, 20) for at in (60.0, 7000.0))
    loop = looped(None if figure is None else autoscaler.Rule(lambda _: 2.0 * figure, figure))
    slow, hours = loop.run(requests, 1)
    assert (slow, len(loop.replicas)) == (0.0, 1 if figure is None else autoscaler.MOST)
    assert hours == pytest.approx(autoscaler.HOURS, rel=1e-6) if figure is None else hours > 7.0 * autoscaler.HOURS


def test_an_autoscaler_grows_by_no_more_at_once_than_the_chart_says() -> None:
    loop = looped(autoscaler.Rule(lambda _: 2.0, 0.8))
    sizes = []
    for minute in range(1, 9):
        loop.replicas = loop.replicas or [looped_replica(loop)]
        loop.ready.append(sum(one.ready <= 60.0 * minute for one in loop.replicas))
        loop._scale(60.0 * minute)  # noqa: SLF001 - minute by minute; a whole run shows the end alone
        sizes.append(len(loop.replicas))
    assert sizes == [3, 3, 3, 5, 5, 5, 7, 7]


@pytest.mark.parametrize(("seconds", "wanted"), [(0.0, 8), (autoscaler.SHARED_SECONDS, 6)])
def test_the_load_of_five_minutes_is_that_of_the_engines_which_shared_it(seconds: float, wanted: int) -> None:
    """Four engines at their limits wanted five, and are six for a minute: two that have just begun add no load."""
    loop = looped(autoscaler.Rule(lambda _: 1.0, 0.8, seconds=seconds))
    loop.replicas = [looped_replica(loop) for _ in range(6)]
    polls = int(60.0 / autoscaler.POLL_SECONDS)
    loop.ready.extend([4] * 4 * polls + [6] * polls)
    assert loop._wanted(600.0) == wanted  # noqa: SLF001 - one decision; a run takes hundreds


def looped_replica(loop: autoscaler.Loop) -> autoscaler.Replica:
    return autoscaler.Replica(Engine(loop.scenario.setup.config(), seed=1), 0.0, loop.scenario.objective)


@pytest.mark.parametrize("balance", autoscaler.BALANCERS)
@pytest.mark.parametrize("hour", [0.5, 1.5])
def test_slow_first_tokens_count_in_both_hours_whoever_shares_them_out(hour: float, balance: str) -> None:
    burst = (Request(3600.0 * hour, 8000, 20) for _ in range(100))
    slow, _ = looped(None, balance).run(burst, 2)
    assert 0.5 < slow < 1.0


def test_the_less_loaded_of_two_is_the_one_with_fewer_requests_under_way() -> None:
    loop = looped(None)
    idle, busy = looped_replica(loop), looped_replica(loop)
    busy.under_way = 1
    chance = random.Random(1)
    given = [autoscaler.less_loaded([idle, busy], chance, 1.0) for _ in range(200)]
    assert 0.65 < sum(one is idle for one in given) / 200 < 0.85


def test_the_least_loaded_one_has_the_fewest_requests_under_way_and_any_of_equal_ones_is_taken() -> None:
    loop = looped(None)
    first, busy, last = looped_replica(loop), looped_replica(loop), looped_replica(loop)
    busy.under_way = 1
    given = [autoscaler.least_loaded([first, busy, last], random.Random(seed), 1.0) for seed in range(40)]
    assert busy not in given
    assert first in given
    assert last in given


def test_an_engine_that_starts_quickly_serves_sooner() -> None:
    loop = looped(autoscaler.Rule(lambda _: 2.0, 0.8))
    quick = replace(loop, start=autoscaler.QUICK_START, replicas=[], wanted=[], added=[])
    for each in (loop, quick):
        each.replicas = [looped_replica(each)]
        each.ready.append(1)
        each._scale(60.0)  # noqa: SLF001 - one minute; a whole run shows the end alone
    assert [one.ready for one in loop.replicas] == [0.0, 240.0, 240.0]
    assert [one.ready for one in quick.replicas] == [0.0, 120.0, 120.0]


def test_each_balancer_has_tables_of_its_own() -> None:
    rows = [loop("always 2", 0.001, 6.0), loop(loops.OURS, 0.005, 6.3)]
    less = [replace(row, balancer="the less loaded of two", hours=5.0) for row in rows]
    written = loops.section([*rows, *less])
    assert written.count(f"| {loops.OURS} | 0.50%") == 2
    random_one, less_loaded = written.index("engine at random;"), written.index("engine the less loaded of two;")
    assert random_one < written.index("| g @ engine | 0.50% | 6.3") < less_loaded


def test_a_quick_start_is_judged_beside_the_fixed_sizes_that_start_no_engine() -> None:
    rows = [loop("always 2", 0.001, 6.0), loop(loops.OURS, 0.006, 6.3), loop(loops.CAREFUL, 0.002, 9.0)]
    quick = replace(rows[1], start=60.0, slow=0.004)
    written = loops.section([*rows, quick])
    assert "| at random | 180 s | 0.8 | 0.60% | 0.60% | 6.3 | 6.0 hours | 0 of 1 |" in written
    assert "| at random | 180 s | 0.65 | 0.20% | 0.20% | 9.0 | 6.0 hours | 0 of 1 |" in written
    assert "| at random | 60 s | 0.8 | 0.40% | 0.40% | 6.3 | 6.0 hours | 1 of 1 |" in written
    assert written.count("| always 2 |") == 2


def test_what_was_played_in_part_is_left_out() -> None:
    names = (*autoscaler.RULES, *autoscaler.FIXED)
    rows = [loop(name, 0.0, 1.0) for name in names] + [loop(name, 0.0, 1.0, seed=2) for name in names[1:]]
    quick = [replace(loop(name, 0.0, 1.0, seed=2), start=60.0) for name in autoscaler.STARTS[60.0]]

    def of_rules(rows: list[Outcome]) -> set[tuple[float, int]]:
        return {(row.start, row.seed) for row in autoscaler.whole(rows) if row.rule in autoscaler.RULES}

    assert of_rules(rows) == {(180.0, 1)}
    assert of_rules([*rows, *quick[1:]]) == {(180.0, 1)}
    assert of_rules([*rows, *quick]) == {(180.0, 1), (60.0, 2)}
    assert not autoscaler.whole([row for row in rows if row.rule != "always 2"])
