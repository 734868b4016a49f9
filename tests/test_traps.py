"""What engines do that makes a naive reader wrong, each trap by its name. Values are those of real captures."""

from __future__ import annotations

import math

import pytest

from captures import CAPTURES, histogram, mapped, mapper, of, origin, value, values
from llm_headroom import schema
from llm_headroom.derive import replicas
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Histogram, Point, SampleState, Series
from llm_headroom.scrape import kv_cache
from llm_headroom.scrape.vocabulary import Vocabulary


def lines(*samples: str) -> bytes:
    return "".join(f"{sample}\n" for sample in samples).encode()


# vLLM ----------------------------------------------------------------------------------------------------------------
def test_openmetrics_renames_samples_and_they_are_found_under_both_prefixes() -> None:
    text = mapped("vllm", "vllm/0.32.0/saturated")
    renamed = mapped("vllm", "vllm/0.32.0/saturated.openmetrics")

    assert any(key.name == "vllm_num_requests_running" for key in of("vllm/0.32.0/saturated.openmetrics").layout.keys)
    assert {point.series for point in text} == {point.series for point in renamed}
    assert value(renamed, "llm_requests_running") == 4  # asked for a moment later


def test_only_one_spelling_of_a_prefix_is_used_if_both_are_there() -> None:
    points = mapped("vllm", lines('vllm:num_requests_running{engine="0"} 3', 'vllm_num_requests_running{engine="0"} 3'))

    assert value(points, "llm_requests_running") == 3


@pytest.mark.parametrize("prefix", ["vllm:", "vllm_", "ray_vllm:", "ray_vllm_"])
def test_names_behind_ray_serve_are_found(prefix: str) -> None:
    points = mapped("vllm", lines(f'{prefix}num_requests_waiting{{model_name="m",ReplicaId="a"}} 4'))

    assert values(points, "llm_requests_waiting", "model") == {"m": 4}


def test_histogram_whose_name_ends_in_total_is_a_histogram() -> None:
    points = mapped("vllm", "vllm/0.32.0/saturated")

    assert histogram(points, "llm_engine_step_tokens").count == 17853
    assert value(points, "llm_engine_steps_total") == 17853


def test_created_companions_are_ignored() -> None:
    vocabulary = Vocabulary(BUILT_IN["vllm"])
    created = [key for key in of("vllm/0.32.0/saturated").layout.keys if key.name.endswith("_created")]

    assert len(created) > 50
    assert {vocabulary.state(key.name, key.type) for key in created} == {SampleState.IGNORED}


def test_families_without_samples_are_absent_not_zero() -> None:
    exposition = of("vllm/0.8.5-V0-hidden-singleproc/idle_after_12s")

    assert exposition.layout.families["vllm:time_to_first_token_seconds"] == "histogram"
    assert value(mapped("vllm", exposition), "llm_time_to_first_token_seconds") is None


def test_a_v0_engine_that_has_not_logged_yet_tells_its_capacity_and_nothing_else() -> None:
    points = mapped("vllm", "vllm/0.8.5-V0/idle_startup")

    reserved = "llm_engine_gpu_memory_reservation_ratio"
    assert {point.series.metric.name for point in points} == {"llm_kv_cache_capacity_tokens", reserved}
    assert value(points, "llm_kv_cache_capacity_tokens") == 2048  # 128 blocks of 16


def test_old_and_new_name_side_by_side_count_once() -> None:
    """0.9.2 to 0.10.2 expose both with the same value."""
    points = mapped(
        "vllm",
        lines(
            'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.25',
            'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25',
            'vllm:gpu_prefix_cache_hits_total{engine="0",model_name="m"} 7',
            'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 7',
        ),
    )

    assert value(points, "llm_kv_cache_usage_ratio") == 0.25
    assert origin(points, "llm_kv_cache_usage_ratio") == "vllm:kv_cache_usage_perc"
    assert value(points, "llm_prefix_cache_hits_total") == 7


def test_retired_names_living_on_lose_to_their_successors() -> None:
    points = mapped(
        "vllm",
        lines(
            "# TYPE vllm:time_per_output_token_seconds histogram",
            'vllm:time_per_output_token_seconds_bucket{le="+Inf"} 5',
            "vllm:time_per_output_token_seconds_sum 1",
            "vllm:time_per_output_token_seconds_count 5",
            "# TYPE vllm:inter_token_latency_seconds histogram",
            'vllm:inter_token_latency_seconds_bucket{le="+Inf"} 9',
            "vllm:inter_token_latency_seconds_sum 2",
            "vllm:inter_token_latency_seconds_count 9",
        ),
    )

    assert histogram(points, "llm_inter_token_latency_seconds") == Histogram((math.inf,), (9.0,), 2.0)
    assert value(points, "llm_time_per_output_token_seconds") is None


def test_time_per_output_token_is_the_old_name_of_inter_token_latency() -> None:
    points = mapped("vllm", "vllm/0.8.5-V0/saturated")

    assert origin(points, "llm_inter_token_latency_seconds") == "vllm:time_per_output_token_seconds"
    assert value(points, "llm_time_per_output_token_seconds") is None


def test_blocks_summed_over_data_parallel_engines_do_not_multiply_the_capacity() -> None:
    """Each of two engines tells num_gpu_blocks="96", its own 48 and the other's."""
    points = mapped("vllm", "vllm/0.32.0-dp2-api2/saturated")

    assert values(points, "llm_kv_cache_capacity_tokens", "replica") == {"0": 1536, "1": 1536}


def test_capacity_from_blocks_is_divided_by_the_engines_where_the_size_in_tokens_is_not_told() -> None:
    labels = 'block_size="32",num_gpu_blocks="96",kv_cache_size_tokens="None"'
    points = mapped(
        "vllm",
        lines(
            f'vllm:cache_config_info{{engine="0",{labels}}} 1',
            f'vllm:cache_config_info{{engine="1",{labels}}} 1',
        ),
    )

    assert values(points, "llm_kv_cache_capacity_tokens", "replica") == {"0": 1536, "1": 1536}


@pytest.mark.parametrize(
    "labels",
    [
        'block_size="16",num_gpu_blocks="None"',  # V1 0.8
        'block_size="16",num_gpu_blocks="128",sliding_window="4096"',
        'block_size="4",num_gpu_blocks="128",mamba_block_size="256"',
        'num_gpu_blocks="128"',
    ],
)
def test_unknown_capacity_is_absent(labels: str) -> None:
    points = mapped("vllm", lines(f"vllm:cache_config_info{{{labels}}} 1"))

    assert value(points, "llm_kv_cache_capacity_tokens") is None


def test_usage_of_data_parallel_engines_is_never_summed() -> None:
    points = mapped("vllm", "vllm/0.32.0-dp2-api2/saturated")

    assert values(points, "llm_kv_cache_usage_ratio", "replica") == {"0": 0.8085106382978724, "1": 0.851063829787234}
    assert value(replicas.combined(points), "llm_kv_cache_usage_ratio") == pytest.approx(0.8297872)


def test_requests_of_data_parallel_engines_are_summed() -> None:
    combined = list(replicas.combined(mapped("vllm", "vllm/0.32.0-dp2-api2/saturated")))

    assert value(combined, "llm_requests_running") == 16
    assert value(combined, "llm_requests_waiting") == 7


def test_series_without_a_model_get_the_only_one_there_is() -> None:
    points = mapped("vllm", "vllm/0.32.0/saturated")

    assert values(points, "llm_kv_cache_capacity_tokens", "model") == {"tiny-llama": 2048}
    assert values(points, "llm_http_responses_total", "model", "code") == {("tiny-llama", "2xx"): 798}


def test_series_without_a_model_stay_without_one_if_there_are_several() -> None:
    points = mapped(
        "vllm",
        lines(
            'vllm:num_requests_running{model_name="a"} 1',
            'vllm:num_requests_running{model_name="b"} 1',
            'vllm:cache_config_info{kv_cache_size_tokens="64"} 1',
        ),
    )

    assert values(points, "llm_kv_cache_capacity_tokens", "model") == {"": 64}


def test_multiprocess_mode_has_no_start_time() -> None:
    assert value(mapped("vllm", "vllm/0.32.0-dp2-api2/saturated"), "llm_engine_start_time_seconds") is None
    assert value(mapped("vllm", "vllm/0.32.0/saturated"), "llm_engine_start_time_seconds") == 1.79545046595e09


def test_prefix_hit_rate_of_minus_one_means_off_and_is_absent() -> None:
    points = mapped("vllm", lines('vllm:gpu_prefix_cache_hit_rate{model_name="m"} -1.0'))

    assert value(points, "llm_prefix_cache_hit_ratio") is None


def test_aborted_and_failed_requests_are_not_among_the_finished_ones() -> None:
    points = mapped("vllm", "vllm/0.32.0/saturated")

    assert values(points, "llm_requests_finished_total", "reason") == {"stop": 42, "length": 756, "repetition": 0}
    assert values(points, "llm_requests_failed_total", "reason") == {
        "abort": 0,
        "error": 0,
        "max_num_queued_reqs": 0,
        "max_num_queued_tokens": 0,
    }


def test_of_adapters_with_timestamps_as_values_the_newest_series_holds() -> None:
    """Combinations that are over stay there for ever, each with the time at which it was seen last."""
    points = mapped("vllm", "vllm/0.32.0-lora/saturated")

    assert values(points, "llm_lora_adapter_active", "adapter", "state") == {
        ("ad1", "running"): 1,
        ("ad1", "waiting"): 1,
    }
    assert values(points, "llm_lora_slots", "model") == {"tiny-llama": 1}


def test_adapters_follow_the_newest_series_from_poll_to_poll() -> None:
    exposition = of("vllm/0.32.0-lora/saturated")
    same = mapper("vllm")
    idle = [
        math.inf if key.name == "vllm:lora_requests_info" and dict(key.labels)["running_lora_adapters"] == "" else value
        for key, value in zip(exposition.layout.keys, exposition.values, strict=True)
    ]

    assert values(same.map(exposition)[1].points, "llm_lora_adapter_active", "adapter", "state")
    assert values(same.plan(exposition.layout).apply(idle).points, "llm_lora_adapter_active", "adapter", "state") == {}


def test_adapters_are_as_many_as_the_label_cap_lets_through() -> None:
    many = ",".join(f"adapter-{number}" for number in range(9))
    body = lines(
        f'vllm:lora_requests_info{{max_lora="9",running_lora_adapters="{many}",waiting_lora_adapters=""}} 1.7e9'
    )

    points = mapper("vllm", limit=3).map(Parser().parse(body))[1].points

    assert values(points, "llm_lora_adapter_active", "adapter") == {
        "adapter-0": 1,
        "adapter-1": 1,
        "adapter-2": 1,
        "other": 1,
    }


def test_hits_behind_a_connector_are_hits() -> None:
    points = mapped("vllm", "vllm/0.32.0-kv-connector/after_load")

    assert value(points, "llm_prefix_cache_queries_total") == value(points, "llm_external_cache_queries_total") == 10122
    assert value(points, "llm_prefix_cache_hits_total") == value(points, "llm_external_cache_hits_total") == 6400
    assert values(points, "llm_prefix_cache_hits_by_tier_total", "cache_tier") == {
        "device": 0,
        "host": 0,
        "peer": 0,
        "storage": 0,
        "external": 6400,
    }


def test_transfers_of_a_connector_are_the_sums_and_counts_of_its_histograms() -> None:
    body = lines(
        "# TYPE vllm:nixl_bytes_transferred histogram",
        'vllm:nixl_bytes_transferred_bucket{engine="0",le="+Inf"} 3',
        'vllm:nixl_bytes_transferred_sum{engine="0"} 6144',
        'vllm:nixl_bytes_transferred_count{engine="0"} 3',
        "# TYPE vllm:nixl_xfer_time_seconds histogram",
        'vllm:nixl_xfer_time_seconds_bucket{engine="0",le="+Inf"} 3',
        'vllm:nixl_xfer_time_seconds_sum{engine="0"} 0.5',
        'vllm:nixl_xfer_time_seconds_count{engine="0"} 3',
        'vllm:nixl_num_failed_transfers_total{engine="0"} 2',
        'vllm:nixl_num_kv_expired_reqs_total{engine="0"} 1',
    )

    points = mapped("vllm", body)

    assert values(points, "llm_kv_transfer_bytes_total", "connector", "operation") == {("nixl", ""): 6144}
    assert values(points, "llm_kv_transfer_seconds_total", "connector") == {"nixl": 0.5}
    assert values(points, "llm_kv_transfers_total", "connector") == {"nixl": 3}
    assert values(points, "llm_kv_transfer_failures_total", "reason") == {"transfer": 2, "expired": 1}


def test_the_old_names_of_offloading_are_not_added_to_the_new_ones() -> None:
    old = (
        'vllm:kv_offload_total_bytes_total{engine="0",transfer_type="CPU_to_GPU"} 100',
        'vllm:kv_offload_total_bytes_total{engine="0",transfer_type="GPU_to_CPU"} 200',
    )
    new = ('vllm:kv_offload_load_bytes_total{engine="0"} 101', 'vllm:kv_offload_store_bytes_total{engine="0"} 201')

    for body, expected in ((old, {"load": 100, "store": 200}), ((*old, *new), {"load": 101, "store": 201})):
        points = mapped("vllm", lines(*body))
        assert values(points, "llm_kv_transfer_bytes_total", "operation") == expected


def test_the_router_of_the_production_stack_is_refused() -> None:
    layout = Parser().parse(lines('vllm:num_requests_running{server="http://a:8000"} 3')).layout

    assert "router" in BUILT_IN["vllm"].refuse(layout)
    assert BUILT_IN["vllm"].refuse(of("vllm/0.32.0/saturated").layout) == ""


def test_waiting_for_an_adapters_place_is_told_from_waiting_for_room() -> None:
    points = mapped("vllm", "vllm/0.32.0-lora/saturated")

    assert values(points, "llm_requests_waiting_by_reason", "reason") == {"capacity": 3, "deferred": 1}
    assert value(points, "llm_requests_waiting") == 4


def test_waiting_by_reason_is_not_added_to_waiting() -> None:
    assert value(mapped("vllm", "vllm/0.32.0/saturated"), "llm_requests_waiting") == 39


def test_used_tokens_follow_from_the_ratio_and_the_capacity() -> None:
    points = list(kv_cache.implied(mapped("vllm", "vllm/0.32.0/saturated")))

    assert value(points, "llm_kv_cache_used_tokens") == pytest.approx(62 / 63 * 2048)


@pytest.mark.parametrize(("capacity", "usage"), [(1.0, [0.5]), (0.0, [])])
def test_a_ratio_follows_from_any_capacity_that_there_is(capacity: float, usage: list[float]) -> None:
    parts = ((schema.KV_CACHE_CAPACITY, capacity), (schema.KV_CACHE_USED, 0.5))
    found = kv_cache.implied(Point(Series(metric, {"replica": "0"}), number, "") for metric, number in parts)

    assert [each.value for each in found] == usage


def test_frozen_metrics_of_a_stopped_engine_are_passed_on_as_told() -> None:
    """Only their not moving gives a dead engine core away: steps and tokens are there to be compared over time."""
    early = mapped("vllm", "vllm/0.32.0-stall-crash/engine_stopped_t8")
    late = mapped("vllm", "vllm/0.32.0-stall-crash/engine_stopped_t20")

    assert value(early, "llm_requests_running") == value(late, "llm_requests_running") == 8
    assert value(early, "llm_engine_steps_total") == value(late, "llm_engine_steps_total")


# SGLang --------------------------------------------------------------------------------------------------------------
def test_tensor_parallel_ranks_repeat_one_another_and_count_once() -> None:
    exposition = of("sglang/0.5.23-tp2-all-schedulers/saturated")
    points = mapped("sglang", exposition)
    upstream = [
        (dict(key.labels)["tp_rank"], found)
        for key, found in zip(exposition.layout.keys, exposition.values, strict=True)
        if key.name == "sglang:num_running_reqs"
    ]

    assert sorted(rank for rank, _ in upstream) == ["0", "1"]
    assert value(points, "llm_requests_running") == dict(upstream)["0"]
    assert value(points, "llm_kv_cache_capacity_tokens") == 16384


def test_histograms_of_repeated_ranks_count_once() -> None:
    exposition = of("sglang/0.5.23-tp2-all-schedulers/saturated")
    counts = [
        found
        for key, found in zip(exposition.layout.keys, exposition.values, strict=True)
        if key.name == "sglang:queue_time_seconds_count"
    ]

    assert len(counts) == 2
    assert histogram(mapped("sglang", exposition), "llm_request_queue_seconds").count == counts[0]


def test_memory_of_each_rank_is_of_a_gpu_of_its_own_and_adds_up() -> None:
    exposition = of("sglang/0.5.23-tp2-all-schedulers/saturated")
    gigabytes = [
        found
        for key, found in zip(exposition.layout.keys, exposition.values, strict=True)
        if key.name == "sglang:kv_cache_memory_usage_gb"
    ]

    assert len(gigabytes) == 2
    found = values(mapped("sglang", exposition), "llm_model_memory_bytes", "kind")["kv_cache"]
    assert found == pytest.approx(sum(gigabytes) * 2**30)


def test_data_parallel_ranks_are_replicas_also_where_each_has_a_tensor_parallel_rank_of_its_own() -> None:
    """With DP attention dp_rank 5 is tp_rank 5: a filter on tp_rank 0 would lose seven of eight."""
    points = mapped(
        "sglang",
        lines(
            *(f'sglang:num_running_reqs{{dp_rank="{rank}",tp_rank="{rank}",pp_rank="0"}} {rank}' for rank in range(8))
        ),
    )

    assert values(points, "llm_requests_running", "replica") == {str(rank): rank for rank in range(8)}
    assert value(replicas.combined(points), "llm_requests_running") == 28


def test_pipeline_stages_repeat_one_another() -> None:
    points = mapped(
        "sglang",
        lines('sglang:num_queue_reqs{tp_rank="0",pp_rank="1"} 5', 'sglang:num_queue_reqs{tp_rank="0",pp_rank="0"} 5'),
    )

    assert value(points, "llm_requests_waiting") == 5


def test_sglang_s_requests_wait_wherever_they_queue_before_they_run() -> None:
    """A decode worker whose prefill worker is gone has nothing in its own queue, and all of its clients wait."""
    queues = {"queue": 1, "grammar_queue": 2, "decode_prealloc_queue": 3, "decode_transfer_queue": 4}
    queues |= {"prefill_bootstrap_queue": 5, "prefill_inflight_queue": 60}
    points = mapped("sglang", lines(*(f"sglang:num_{name}_reqs {n}" for name, n in queues.items())))

    assert value(points, "llm_requests_waiting") == 15


def test_priorities_are_not_added_to_their_total() -> None:
    points = mapped(
        "sglang",
        lines(
            'sglang:num_queue_reqs{priority="",tp_rank="0"} 8',
            'sglang:num_queue_reqs{priority="0",tp_rank="0"} 6',
            'sglang:num_queue_reqs{priority="1",tp_rank="0"} 1',
            'sglang:num_queue_reqs{priority="5",tp_rank="0"} 1',
        ),
    )

    assert value(points, "llm_requests_waiting") == 8


def test_custom_labels_are_summed_away_and_never_exported() -> None:
    points = mapped(
        "sglang",
        lines(
            'sglang:prompt_tokens_total{model_name="m",tenant="alice",priority="1"} 3',
            'sglang:prompt_tokens_total{model_name="m",tenant="",priority="None"} 4',
        ),
    )

    assert value(points, "llm_prompt_tokens_total") == 7
    assert {name for point in points for name, _ in point.series.labels} == {"engine", "model", "target"}


def test_non_streaming_requests_do_not_pollute_ttft_where_they_can_be_told_apart() -> None:
    points = mapped("sglang", "sglang/0.5.23/saturated")

    assert histogram(points, "llm_time_to_first_token_seconds").count == 23  # 5 others were not streamed


def test_ttft_without_the_label_is_taken_as_it_is() -> None:
    points = mapped("sglang", "sglang/0.5.10/saturated")

    assert histogram(points, "llm_time_to_first_token_seconds").count > 0


def test_counters_that_appear_only_after_their_first_event_stay_absent_until_then() -> None:
    before = mapped("sglang", "sglang/0.5.23/idle")
    after = mapped("sglang", "sglang/0.5.23/saturated")

    for metric in ("llm_prompt_tokens_cached_total", "llm_requests_failed_total", "llm_preemptions_total"):
        assert value(before, metric) is None
    assert value(after, "llm_prompt_tokens_cached_total") == 305


def test_gauges_that_go_stale_when_idle_are_passed_on_as_told() -> None:
    """0.5.2 says 6 running on an idle server. Other names are no better: that they are stale shows over time only."""
    assert value(mapped("sglang", "sglang/0.5.2/after_load"), "llm_requests_running") == 6


def test_usage_leaves_reusable_cache_out() -> None:
    points = mapped("sglang", "sglang/0.5.23/saturated")
    used, evictable = value(points, "llm_kv_cache_used_tokens"), value(points, "llm_kv_cache_evictable_tokens")

    assert (used, evictable) == (2015, 2915)
    assert value(points, "llm_kv_cache_usage_ratio") == pytest.approx(2015 / 16384)


def test_hit_ratio_of_the_last_batch_does_not_stand_in_for_the_counters() -> None:
    points = mapped("sglang", "sglang/0.5.23/saturated")

    assert value(points, "llm_prefix_cache_queries_total") == 3888 + 668
    assert value(points, "llm_prefix_cache_hits_total") == 668
    assert value(points, "llm_prefix_cache_hit_ratio") == pytest.approx(0.184694, abs=1e-6)


def test_prefix_counters_fall_back_by_version() -> None:
    points = mapped("sglang", "sglang/0.5.2/saturated")

    assert origin(points, "llm_prefix_cache_queries_total") == "sglang:prompt_tokens_total"
    assert origin(points, "llm_prefix_cache_hits_total") == "sglang:cached_tokens_total"


def test_gigabytes_are_gibibytes() -> None:
    points = mapped("sglang", lines('sglang:weight_memory_usage_gb{tp_rank="0"} 2'))

    assert value(points, "llm_model_memory_bytes") == 2 * 2**30


def test_gauges_with_le_labels_are_no_histograms() -> None:
    exposition = of("sglang/0.5.23-all-features-collector-only/all")
    vocabulary = Vocabulary(BUILT_IN["sglang"])
    keys = [key for key in exposition.layout.keys if "routing_key" in key.name]

    assert any(name == "le" for key in keys for name, _ in key.labels)
    assert {vocabulary.state(key.name, key.type) for key in keys} == {SampleState.IGNORED}


def test_a_family_that_was_a_gauge_before_it_became_a_histogram_is_read_as_the_latter_alone() -> None:
    """SGLang's transfers until 0.5.9: the latest one's latency, which adds up to nothing."""
    gauge = mapped("sglang", lines("# TYPE sglang:kv_transfer_latency_ms gauge", "sglang:kv_transfer_latency_ms 250"))

    assert value(gauge, "llm_kv_transfer_seconds_total") is None
    assert value(gauge, "llm_kv_transfers_total") is None


def test_nan_is_absent_and_counted() -> None:
    mapping = mapper("sglang")
    _, (points, invalid, _) = mapping.map(
        Parser().parse(lines("sglang:num_queue_reqs NaN", "sglang:num_running_reqs 2"))
    )

    assert value(points, "llm_requests_waiting") is None
    assert value(points, "llm_requests_running") == 2
    assert invalid == 1


def test_process_ids_in_labels_are_passed_over() -> None:
    assert Vocabulary(BUILT_IN["sglang"]).state("sglang:num_retracted_reqs", "gauge") is SampleState.IGNORED


def test_a_router_that_turned_colons_into_underscores_is_read_alike() -> None:
    body = (CAPTURES / "sglang/0.5.23/saturated.prom").read_bytes()
    kept, turned = mapped("sglang", body), mapped("sglang", body.replace(b"sglang:", b"sglang_"))

    assert [(point.series, point.value) for point in turned] == [(point.series, point.value) for point in kept]


def test_aborted_requests_are_taken_off_the_finished_ones() -> None:
    """400 ended, of which clients aborted 35 while they ran or waited."""
    points = mapped("sglang", "sglang/0.5.23-abort/after_load")

    assert value(points, "llm_requests_finished_total") == 400 - 35
    assert values(points, "llm_requests_failed_total", "reason") == {"abort": 35}


def test_aborted_requests_of_several_series_are_taken_off_their_sum() -> None:
    whole = [f'sglang:num_requests_total{{zone="{zone}"}} {10 * zone}' for zone in (1, 2, 3)]
    parts = [f'sglang:num_aborted_requests_total{{zone="{zone}"}} {zone}' for zone in (1, 2, 3)]

    assert value(mapped("sglang", lines(*whole, *parts)), "llm_requests_finished_total") == 60 - 6


def test_finished_requests_never_fall_while_an_abort_is_on_its_way() -> None:
    """An abort is counted when it is asked for, the request's end when the scheduler has heard of it."""
    same = mapper("sglang")
    found = []
    for ended, aborted in ((10, 2), (10, 3), (11, 3), (13, 3), (1, 0)):
        body = lines(f"sglang:num_requests_total {ended}", f"sglang:num_aborted_requests_total {aborted}")
        found.append(value(same.map(Parser().parse(body))[1].points, "llm_requests_finished_total"))

    assert found == [8, 8, 8, 10, 1]  # the last one is a new life


def test_finished_requests_go_on_when_the_first_abort_brings_its_series() -> None:
    same = mapper("sglang")
    before = same.map(Parser().parse(lines("sglang:num_requests_total 10")))[1].points
    after = same.map(Parser().parse(lines("sglang:num_requests_total 10", "sglang:num_aborted_requests_total 1")))[
        1
    ].points

    assert value(before, "llm_requests_finished_total") == value(after, "llm_requests_finished_total") == 10


def test_the_parts_of_a_queue_by_priority_stand_beside_the_whole() -> None:
    """SGLang repeats the whole under an empty priority."""
    parts = {"": 8, "0": 6, "1": 1, "5": 1}
    points = mapped("sglang", lines(*(f'sglang:num_queue_reqs{{priority="{each}"}} {n}' for each, n in parts.items())))

    assert value(points, "llm_requests_waiting") == 8
    assert values(points, "llm_requests_waiting_by_priority", "request_priority") == {"0": 6, "1": 1, "5": 1}


def test_hits_of_hicache_are_told_by_tier() -> None:
    body = lines(
        'sglang:prefill_effective_tokens_total{mode="input",tp_rank="0"} 100',
        'sglang:prefill_effective_tokens_total{mode="device_hit",tp_rank="0"} 50',
        'sglang:prefill_effective_tokens_total{mode="host_hit",tp_rank="0"} 30',
        'sglang:prefill_effective_tokens_total{mode="storage_hit",tp_rank="0"} 20',
    )

    points = mapped("sglang", body)

    hits = values(points, "llm_prefix_cache_hits_by_tier_total", "cache_tier")
    assert hits == {"device": 50, "host": 30, "storage": 20}
    assert value(points, "llm_prefix_cache_hits_total") == 100
    assert value(points, "llm_prefix_cache_queries_total") == 200


@pytest.mark.parametrize("role", ["unified", "prefill", "decode"])
def test_the_role_in_disaggregated_serving_is_told(role: str) -> None:
    points = mapped("sglang", lines(f'sglang:num_running_reqs{{engine_type="{role}",tp_rank="0"}} 3'))

    assert values(points, "llm_engine_role", "engine_role") == {role: 1}


def test_bytes_of_ranks_add_up_and_their_seconds_do_not() -> None:
    body = lines(
        *(
            f'sglang:{name}{{cache_type="radix",tp_rank="{rank}"}} {value}'
            for rank in (0, 1)
            for name, value in (("load_back_bytes_total", 1024), ("load_back_duration_seconds_sum", 2))
        )
    )

    points = mapped("sglang", body)

    assert values(points, "llm_kv_transfer_bytes_total", "connector", "operation") == {("hicache", "load"): 2048}
    assert values(points, "llm_kv_transfer_seconds_total", "connector", "operation") == {("hicache", "load"): 2}


def test_megabytes_and_milliseconds_of_transfers_become_bytes_and_seconds() -> None:
    body = lines("sglang:kv_transfer_total_mb_sum 3", "sglang:kv_transfer_latency_ms_sum 250")

    points = mapped("sglang", body)

    assert value(points, "llm_kv_transfer_bytes_total") == 3 * 1048576
    assert value(points, "llm_kv_transfer_seconds_total") == pytest.approx(0.25)


# Routers -------------------------------------------------------------------------------------------------------------
def test_a_worker_that_was_removed_is_absent_not_minus_one() -> None:
    points = mapped("sglang_router", lines('smg_worker_health{worker="a"} 1', 'smg_worker_health{worker="b"} -1'))

    assert values(points, "llm_router_worker_healthy", "worker") == {"a": 1}


def test_ttft_as_a_summary_is_absent() -> None:
    points = mapped(
        "sglang_router",
        lines(
            "# TYPE smg_router_ttft_seconds summary",
            'smg_router_ttft_seconds{quantile="0.5"} 1',
            "smg_router_ttft_seconds_sum 9",
            "smg_router_ttft_seconds_count 9",
        ),
    )

    assert value(points, "llm_time_to_first_token_seconds") is None


def test_what_the_router_repeats_of_its_engines_is_passed_over() -> None:
    vocabulary = Vocabulary(BUILT_IN["sglang_router"])

    assert vocabulary.state("smg_engine_running_requests", "gauge") is SampleState.IGNORED
    assert value(mapped("sglang_router", "sglang/smg-1.13.0/saturated"), "llm_requests_running") is None


def test_age_buckets_of_the_router_are_no_histogram() -> None:
    state = Vocabulary(BUILT_IN["sglang_router"]).state("smg_http_inflight_request_age_count", "gauge")

    assert state is SampleState.IGNORED


def test_a_routers_dead_worker_shows_in_error_codes_and_exhausted_retries() -> None:
    points = mapped("sglang_router", "sglang/smg-1.13.0/worker_dead")

    assert value(points, "llm_router_retries_total") == 4
    assert value(points, "llm_router_retries_exhausted_total") == 1
    assert values(points, "llm_router_error_responses_total", "reason") == {
        "client_closed_request": 4,
        "model_not_found": 4,
        "integer_below_min_value": 4,
        "call_upstream_connection_failed": 1,
    }


# llama.cpp -----------------------------------------------------------------------------------------------------------
def test_cached_prompt_tokens_are_added_where_they_are_counted_apart() -> None:
    points = mapped(
        "llamacpp", lines("llamacpp:prompt_tokens_total 600", "llamacpp:prompt_tokens_cached_total 400"), model="m"
    )

    assert value(points, "llm_prompt_tokens_total") == 1000
    assert value(points, "llm_prefix_cache_hits_total") == 400
    assert values(points, "llm_processed_tokens_total", "phase") == {"prefill": 600}


def test_averages_that_reset_when_they_are_read_are_ignored() -> None:
    vocabulary = Vocabulary(BUILT_IN["llamacpp"])

    assert vocabulary.state("llamacpp:predicted_tokens_seconds", "gauge") is SampleState.IGNORED
    assert vocabulary.state("llamacpp:prompt_tokens_seconds", "gauge") is SampleState.IGNORED


def test_a_high_water_mark_that_is_called_a_counter_is_ignored() -> None:
    assert Vocabulary(BUILT_IN["llamacpp"]).state("llamacpp:n_tokens_max", "counter") is SampleState.IGNORED


# Any engine ----------------------------------------------------------------------------------------------------------
def test_a_histogram_cut_in_the_middle_is_dropped_and_said() -> None:
    mapping = mapper("vllm")
    plan, found = mapping.map(
        Parser().parse(
            lines(
                "# TYPE vllm:time_to_first_token_seconds histogram",
                'vllm:time_to_first_token_seconds_bucket{le="0.1"} 1',
                'vllm:time_to_first_token_seconds_bucket{le="0.5"} 2',
                "vllm:num_requests_running 1",
            )
        )
    )

    assert {point.series.metric.name for point in found.points} == {"llm_requests_running"}
    assert "vllm:time_to_first_token_seconds" in plan.problems[0]


def test_a_histogram_whose_counts_fall_is_dropped_and_counted() -> None:
    found = mapper("vllm").map(
        Parser().parse(
            lines(
                "# TYPE vllm:time_to_first_token_seconds histogram",
                'vllm:time_to_first_token_seconds_bucket{le="0.1"} 3',
                'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 2',
                "vllm:time_to_first_token_seconds_sum 1",
                "vllm:time_to_first_token_seconds_count 2",
            )
        )
    )[1]

    assert (found.points, found.invalid) == ([], 2)


def test_label_values_beyond_the_cap_become_other_and_are_counted() -> None:
    mapping = mapper("ollama", limit=2)
    _, found = mapping.map(
        Parser().parse(lines(*(f'ollama_prompt_tokens_total{{model="m{number}"}} 10' for number in range(5))))
    )

    assert values(found.points, "llm_prompt_tokens_total", "model") == {"m0": 10, "m1": 10, "other": 30}
    assert mapping.cap.capped() == {"model": 3}


def test_label_values_of_monstrous_length_are_cut() -> None:
    points = mapped("vllm", lines(f'vllm:num_requests_running{{model_name="{"x" * 5000}"}} 1'))

    ((model, found),) = values(points, "llm_requests_running", "model").items()
    assert (len(model), found) == (256, 1)
