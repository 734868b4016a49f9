"""The evaluation of alerts and risks: what counts as an incident, when a rule fires, how both are compared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from evaluate import incidents, probability, prometheus, rules, scoring, trivial
from evaluate.__main__ import main
from evaluate.incidents import Definition, Span
from evaluate.probability import Pair
from evaluate.replay import Firsts, Run, Trouble
from evaluate.scenarios import CALM_DAYS, SCENARIOS, calm_day, trace, traffic

if TYPE_CHECKING:
    from pathlib import Path

RULES = """
groups:
  - name: recorded
    rules:
      - record: engine_model:llm_requests_waiting:sum
        expr: sum by (cluster, engine, model) (llm_requests_waiting)
  - name: alerts
    rules:
      - alert: LLMQueueBuilding
        expr: engine_model:llm_requests_waiting:sum > 10
        for: 1m30s
        keep_firing_for: 5m
      - alert: LLMFirstTokensSlow
        expr: llm_ttft_slow_ratio{window="60s"} >= 0.03
"""


def firsts(*told: tuple[float, bool]) -> list[Firsts]:
    return sorted(Firsts(at, slow) for at, slow in told)


def test_an_incident_of_first_tokens_begins_with_its_first_breach() -> None:
    told = firsts((1, False), (10, True), (20, False), (30, True), (40, True), (200, False))
    assert incidents.slow_firsts(told) == [Span(10, 65)]  # until fewer than 3 are left in the window


def test_two_slow_first_tokens_are_no_incident() -> None:
    assert incidents.slow_firsts(firsts((10, True), (30, True), (40, False))) == []


def test_three_slow_first_tokens_farther_apart_than_the_window_are_none() -> None:
    assert incidents.slow_firsts(firsts((10, True), (40, True), (71, True))) == []


def test_three_slow_first_tokens_among_many_quick_ones_are_none() -> None:
    told = firsts(*((0.5 * count, False) for count in range(240)), (51, True), (52, True), (53, True))
    assert incidents.slow_firsts(told) == []
    assert incidents.slow_firsts(told, Definition(60.0, 0.02, 3)) == [Span(51, 110)]


def test_incidents_with_a_short_gap_are_one() -> None:
    assert incidents.merged([Span(301, 310), Span(0, 50), Span(170, 180)]) == [Span(0, 180), Span(301, 310)]
    assert incidents.merged([Span(0, 50), Span(171, 180)]) == [Span(0, 50), Span(171, 180)]


def test_the_kv_cache_suffers_by_preemptions_or_a_blocked_queue() -> None:
    calm = [Trouble(at, 100, 0, 0, blocked=False) for at in (5, 10, 15)]
    assert incidents.kv_exhaustion(calm) == []
    preempted = [Trouble(5, 100, 0, 1, blocked=False), Trouble(10, 100, 0, 1, blocked=False)]
    assert incidents.kv_exhaustion(preempted) == []
    assert incidents.kv_exhaustion([*preempted, Trouble(15, 100, 0, 1, blocked=False)]) == [Span(5, 60)]
    assert incidents.kv_exhaustion([*calm, Trouble(20, 100, 0, 0, blocked=True)]) == [Span(20, 75)]


def test_slow_tokens_count_from_a_share_on() -> None:
    assert incidents.slow_tokens([Trouble(5, 1000, 49, 0, blocked=False)]) == []
    assert incidents.slow_tokens([Trouble(5, 1000, 50, 0, blocked=False)]) == [Span(5, 60)]
    assert incidents.slow_tokens([Trouble(5, 100, 29, 0, blocked=False)]) == []


def test_a_rule_fires_after_it_has_held_for_its_time() -> None:
    times = [0, 15, 30, 45, 60, 75]
    assert rules.firing(times, 0, 0) == [Span(0, 75)]
    assert rules.firing(times, 60, 0) == [Span(60, 75)]
    assert rules.firing(times, 90, 0) == []


def test_a_rule_that_pauses_begins_anew_unless_it_is_kept() -> None:
    times = [0, 15, 30, 60, 75, 90]
    assert rules.firing(times, 30, 0) == [Span(30, 30), Span(90, 90)]
    assert rules.firing(times, 30, 60) == [Span(30, 150)]
    assert rules.firing([0, 30, 60], 15, 60) == []  # what is pending is not kept


def test_rules_are_read_with_what_they_record(tmp_path: Path) -> None:
    file = tmp_path / "some.rules.yml"
    file.write_text(RULES)
    queue, slow = rules.read(file)
    assert queue.expression == "(sum by (cluster, engine, model) (llm_requests_waiting)) > 10"
    assert (queue.for_seconds, queue.keep_seconds) == (90.0, 300.0)
    assert (slow.name, slow.for_seconds, slow.group) == ("LLMFirstTokensSlow", 0.0, "alerts")
    assert rules.metrics([queue, slow]) == {"llm_requests_waiting", "llm_ttft_slow_ratio"}


def test_a_range_of_a_recorded_series_is_a_subquery_and_a_selector_is_refused() -> None:
    with pytest.raises(ValueError, match="job:llm_x:sum is used with a selector"):
        rules.inlined('job:llm_x:sum{model="m"} > 1', {"job:llm_x:sum": "sum(llm_x)"})
    recorded = {"job:llm_x:sum": "sum(llm_x)"}
    assert rules.inlined("avg_over_time(job:llm_x:sum[1h]) > 1", recorded) == "avg_over_time((sum(llm_x))[1h:1m]) > 1"
    with pytest.raises(ValueError, match="job:llm_y:sum is recorded nowhere"):
        rules.inlined("job:llm_y:sum > 1", {})


@pytest.mark.parametrize("text", ["", "5", "m", "5x", "1h 5m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        rules.seconds(text)


def test_alerts_are_scored_against_incidents() -> None:
    suffered = [Span(1000, 1100), Span(5000, 5060), Span(9000, 9010)]
    fired = [Span(940, 1200), Span(3000, 3030), Span(5030, 5090)]
    told = scoring.score(suffered, fired, 86_700.0)
    assert (told.alerts, told.right, told.incidents, told.caught, told.early) == (3, 2, 3, 2, 1)
    assert list(told.leads) == [60.0, -30.0]
    assert (told.fresh, told.fresh_early) == (3, 1)
    assert told.false_alarms == 1.0
    assert told.f1 == pytest.approx(2 / 3)
    assert told.useful_share == pytest.approx((160 + 30) / 350)


def test_an_alert_soon_after_an_incident_is_right_but_catches_nothing() -> None:
    told = scoring.score([Span(1000, 1100)], [Span(1150, 1160)], 10_000.0)
    assert (told.right, told.caught) == (1, 0)
    assert scoring.score([Span(1000, 1100)], [Span(1221, 1230)], 10_000.0).right == 0


def test_the_warm_up_does_not_count() -> None:
    told = scoring.score([Span(100, 200)], [Span(110, 150)], 10_000.0)
    assert (told.alerts, told.incidents) == (0, 0)
    assert math.isnan(told.precision)
    assert math.isnan(told.recall)


def test_each_scenario_counts_once() -> None:
    good = scoring.Score(alerts=10, right=10, incidents=10, caught=10, days=1.0)
    bad = scoring.Score(alerts=1, right=0, incidents=1, caught=0, days=1.0)
    view = scoring.macro([("a", good), ("b", bad), ("a", good)])
    assert (view.precision, view.recall, view.worst_precision, view.worst_recall) == (0.5, 0.5, 0.0, 0.0)
    assert (view.median_false_alarms, view.most_false_alarms) == (0.5, 1.0)


def test_the_interval_of_runs_that_agree_is_a_point() -> None:
    same = [("a", scoring.Score(alerts=4, right=3))] * 5
    assert scoring.interval(same, lambda one: one.precision) == (0.75, 0.75)


def test_intervals_are_over_traces_and_not_over_runs() -> None:
    scored = [("a", scoring.Score(alerts=4, right=4))] * 50 + [("b", scoring.Score(alerts=4, right=0))] * 50
    assert scoring.interval(scored, lambda one: one.precision) == (0.0, 1.0)
    assert all(math.isnan(end) for end in scoring.interval([], lambda one: one.precision))


def test_an_alert_that_is_still_on_from_the_incident_before_is_not_early() -> None:
    suffered = [Span(1000, 1100), Span(1500, 1600)]
    old = scoring.score(suffered, [Span(1010, 1550)], 10_000.0)
    assert (old.caught, old.early, list(old.leads)) == (2, 0, [-10.0])
    new = scoring.score(suffered, [Span(1010, 1090), Span(1440, 1550)], 10_000.0)
    assert (new.caught, new.early, list(new.leads)) == (2, 1, [-10.0, 60.0])


def test_trivial_rules_look_at_incidents_of_the_past_or_of_other_draws_alone() -> None:
    one, other = (Run("s", "t", 0, seed, tuning=False, span=3000.0, slo=1.0) for seed in (1, 2))
    one.firsts = firsts((1000, True), (1010, True), (1020, True))
    found = trivial.fired([one, other], {(trivial.LIKE, one.target): [Span(1000, 1100), Span(2000, 2050)]})
    assert found[trivial.ALWAYS.name, one.target] == [Span(0, 3000)]
    assert found[trivial.ONE.name, one.target] == [Span(1055, 1655)]
    assert found[trivial.CLOCK.name, one.target] == []
    assert found[trivial.CLOCK.name, other.target] == [Span(1000, 1055)]
    assert found[trivial.RANDOM.name, other.target] == []
    scattered = found[trivial.RANDOM.name, one.target]
    assert sum(end - begin for begin, end in scattered) <= 150.0 + 1e-9
    assert scattered[0].begin >= 0.0
    assert scattered[-1].end <= 3000.0


def test_a_calm_day_has_little_traffic_and_least_at_night() -> None:
    arrivals = [one.arrival for one in calm_day(CALM_DAYS[0], 1)]
    noon = sum(36_000.0 <= at < 50_400.0 for at in arrivals)
    night = sum(at < 7_200.0 or at >= 79_200.0 for at in arrivals)
    assert arrivals == sorted(arrivals)
    assert 0.0 <= arrivals[0] <= arrivals[-1] < 86_400.0
    assert night < 0.5 * noon
    assert not {one.trace for one in CALM_DAYS} & {one.trace for one in SCENARIOS if one.tuning}


def test_probabilities_are_judged() -> None:
    perfect = [Pair(1.0, happened=True), Pair(0.0, happened=False)]
    assert probability.quality(perfect) == (0.5, 1.0, 1.0, 0.0)
    useless = [Pair(0.5, happened=True), Pair(0.5, happened=False)]
    assert probability.quality(useless) == (0.5, 0.5, 0.0, 0.0)
    assert probability.quality([Pair(0.0, happened=True), Pair(1.0, happened=False)]).skill == -3.0


def test_the_fit_finds_the_odds() -> None:
    rows = [(0.0,)] * 4 + [(1.0,)] * 4
    happened = [True, False, False, False, True, True, True, False]
    constant, factor = probability.logistic(rows, happened)
    assert constant == pytest.approx(-math.log(3), abs=0.01)
    assert factor == pytest.approx(2 * math.log(3), abs=0.01)
    with pytest.raises(ValueError, match="cases that happened and cases that did not"):
        probability.logistic(rows, [True] * 8)


def test_traffic_has_the_load_that_was_asked_for() -> None:
    name = SCENARIOS[0].trace
    whole = len(trace(name))
    assert traffic(name, 1.0, 1)[0].arrival == 0.0
    assert len(traffic(name, 0.25, 1)) == pytest.approx(whole / 4, rel=0.1)
    many = traffic(name, 2.5, 1)
    assert len(many) == pytest.approx(2.5 * whole, rel=0.1)
    assert many == sorted(many, key=lambda one: one.arrival)


def test_a_small_scenario_goes_all_the_way(tmp_path: Path) -> None:
    if program := prometheus.missing():
        pytest.skip(f"{program} is not installed (Debian: prometheus)")
    file = tmp_path / "some.rules.yml"
    file.write_text(RULES)
    assert main(["--quick", "--rules", str(file), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "evaluation.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `LLMFirstTokensSlow` |"))
    assert row.split(" | ")[2].startswith("1.00 [")  # an overload that lasts is caught
    assert "1 quiet runs" in text
    calm = text.split("## Whole calm days, 1 of them\n")[1].split("\n## ")[0]
    assert "| `LLMFirstTokensSlow` | 0 | 0 | 0.00 [0.00, 0.00] | 0.0% |" in calm
    assert "| load headroom < 1 | 0 |" in calm
    assert "| trivial: always on | 1 |" in calm
    assert "| azure_llm_2023_code, calm days | " in text
    for name in ("evaluation-reliability.svg", "evaluation-alerts.svg"):
        assert (tmp_path / name).read_text().startswith("<svg ")
