"""What is published of how collections from a source go."""

from __future__ import annotations

import pytest

from llm_headroom.model import Cause, Failure, Health, SampleState, Snapshot
from llm_headroom.poll.health import health_points, labels_of

OWN = {"target": "a", "engine": "vllm", "zone": "eu"}


def published(
    health: Health, errors: dict[Cause, int], capped: dict[str, int]
) -> list[tuple[str, dict[str, str], float]]:
    snapshot = Snapshot(target="a", engine="vllm", taken=5.0, health=health)
    found = health_points(snapshot, errors, capped, labels_of(snapshot, {"zone": "eu", "target": "the operator's"}))
    return [
        (
            series.metric.name.removeprefix("llm_"),
            {key: text for key, text in series.labels if OWN.get(key) != text},
            value,
        )
        for series, value, _ in found
        if isinstance(value, float) and OWN.items() <= dict(series.labels).items()
    ]


def test_everything_that_is_known_of_a_source() -> None:
    health = Health(
        up=True, duration_seconds=0.25, last_success=7.0, samples={SampleState.MAPPED: 3, SampleState.INVALID: 1}
    )
    assert published(health, {Cause.TIMEOUT: 2}, {"model": 4}) == [
        ("up", {}, 1.0),
        ("source_duration_seconds", {}, 0.25),
        ("source_last_success_timestamp_seconds", {}, 7.0),
        ("source_errors_total", {"cause": "timeout"}, 2.0),
        ("source_samples", {"state": "mapped"}, 3.0),
        ("source_samples", {"state": "invalid"}, 1.0),
        ("label_values_capped_total", {"label": "model"}, 4.0),
    ]


@pytest.mark.parametrize("at", [None, 0.0])
def test_a_source_that_was_never_read_has_no_time_of_success(at: float | None) -> None:
    health = Health(up=False, error=Failure(Cause.TIMEOUT, "late"), last_success=at)
    found = published(health, {}, {})
    assert found[:2] == [("up", {}, 0.0), ("source_duration_seconds", {}, 0.0)]
    assert found[2:] == ([] if at is None else [("source_last_success_timestamp_seconds", {}, 0.0)])
