"""What a step costs: learned from latencies."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_headroom.derive.interval import Interval
from llm_headroom.derive.step_cost import Learner, StepCost, non_negative

TRUE = StepCost(step=0.02, token=1e-4, sequence=1e-4, context=2e-8, pair=1e-9)
CAPACITY = 400_000.0


def interval(sequences: float, prompts: float, cost: StepCost = TRUE, *, seconds: float = 5.0) -> Interval:
    """Five seconds of an engine whose steps cost what `cost` says: `prompts` of 1,000 tokens arrive alone."""
    context = 700.0 * sequences
    computed, pairs = 1000.0 * prompts, prompts * 1000.0 * 500.0
    steps = (seconds - cost.prefill_seconds(computed, pairs)) / cost.decode_seconds(sequences, context)
    first = 1.5 * cost.decode_seconds(sequences, context) + cost.prefill_seconds(1000.0, 500_000.0)
    return Interval(
        seconds=seconds,
        firsts=prompts,
        first_seconds=prompts * first,
        prompt=computed,
        tokens=steps * sequences,
        token_seconds=seconds * sequences,
        running=sequences,
        held=(context, context),
    )


def taught(cost: StepCost, polls: int, learner: Learner | None = None) -> Learner:
    learner = learner or Learner()
    for poll in range(polls):
        quiet, busy = 2.0 + poll % 7, 30.0 + poll % 50
        learner = learner.after(interval(busy if poll // 10 % 2 else quiet, float(poll // 5 % 3), cost), CAPACITY)
    return learner


def test_nothing_is_known_before_tokens_were_decoded() -> None:
    learner = Learner()
    for _ in range(50):
        learner = learner.after(Interval(seconds=5.0, firsts=1.0, first_seconds=0.2, prompt=1000.0), CAPACITY)
    assert learner.cost is None
    assert learner.speed_error is None


def test_decoding_and_prefill_are_learned_within_ten_minutes() -> None:
    cost = taught(TRUE, 120).cost
    assert cost is not None
    for sequences in (5.0, 60.0):
        seen, true = cost.decode_seconds(sequences, 700 * sequences), TRUE.decode_seconds(sequences, 700 * sequences)
        assert seen == pytest.approx(true, rel=0.1)
    assert cost.prefill_seconds(1000.0, 500_000.0) == pytest.approx(TRUE.prefill_seconds(1000.0, 500_000.0), rel=0.25)


def test_an_engine_that_gets_slower_is_followed_and_suspect_until_then() -> None:
    slower = StepCost(*(2.0 * each for each in TRUE))
    before = taught(TRUE, 240)
    assert before.speed_error == pytest.approx(1.0, abs=0.05)
    changed = taught(slower, 24, before)
    assert changed.speed_error is not None
    assert changed.speed_error > 1.3
    later = taught(slower, 1500, before)
    assert later.cost is not None
    assert later.cost.decode_seconds(50.0, 35_000.0) == pytest.approx(slower.decode_seconds(50.0, 35_000.0), rel=0.15)


def test_preempted_and_long_intervals_teach_nothing_of_latency() -> None:
    learner = taught(TRUE, 120)
    spoiled = Interval(
        seconds=5.0, tokens=100.0, token_seconds=300.0, running=60.0, held=(42_000.0, 42_000.0), preemptions=3.0
    )
    after = learner
    for _ in range(20):
        after = after.after(spoiled, CAPACITY)
    assert after.cost is not None
    assert after.cost.decode_seconds(60.0, 42_000.0) == pytest.approx(TRUE.decode_seconds(60.0, 42_000.0), rel=0.15)
    assert learner.after(interval(60.0, 0.0, seconds=60.0), CAPACITY).evidence == learner.evidence


@given(
    rows=st.lists(
        st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(-5.0, 5.0)),
        min_size=1,
        max_size=12,
    )
)
def test_least_squares_are_never_negative_and_no_neighbour_is_better(
    rows: list[tuple[float, float, float, float]],
) -> None:
    matrix = [[sum(r[a] * r[b] for r in rows) + (0.1 if a == b else 0.0) for b in range(3)] for a in range(3)]
    right = [sum(r[a] * r[3] for r in rows) for a in range(3)]

    def loss(x: list[float]) -> float:
        quadratic = sum(x[a] * matrix[a][b] * x[b] for a in range(3) for b in range(3))
        return quadratic - 2.0 * sum(x[a] * right[a] for a in range(3))

    found = non_negative(matrix, right)
    assert all(x >= 0.0 and math.isfinite(x) for x in found)
    for index in range(3):
        for change in (-0.01, 0.01):
            near = list(found)
            near[index] = max(0.0, near[index] + change)
            assert loss(found) <= loss(near) + 1e-6
