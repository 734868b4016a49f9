"""What simulated engines serve, beside what the real ones served."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

import captures
from llm_headroom import schema
from llm_headroom.engines.answers import decode
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.rules import Absent
from llm_headroom.exposition.text import Parser
from llm_headroom.exposition.text_lines import parse_series
from llm_headroom.model import Histogram, Point
from llm_headroom.simulate import ollama_api
from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import EngineConfig, EngineReading
from llm_headroom.simulate.exposition import Exposition, renamed
from llm_headroom.simulate.hardware import A100_80GB, GIB, L4, LLAMA_3_8B, TINY_LLAMA, Roofline, plan_memory
from llm_headroom.simulate.measures import HistogramBounds
from llm_headroom.simulate.ollama_model import OllamaConfig, OllamaServer
from llm_headroom.simulate.templates import versions
from llm_headroom.simulate.traffic import Lengths, Request, Synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_headroom.simulate.measures import HistogramReading

START = 1_795_000_000.0
MODEL = 'org/model "one" at 50%'
CAPTURED = {
    "vllm/0.32.0": "vllm/0.32.0/saturated",
    "vllm/0.32.0-dp2": "vllm/0.32.0-dp2-api2/saturated",
    "vllm/0.12.0": "vllm/0.12.0/saturated",
    "vllm/0.8.5-V0": "vllm/0.8.5-V0/after_load",
    "sglang/0.5.23": "sglang/0.5.23/saturated",
    "sglang/0.5.23-dp2": "sglang/0.5.23-dp2/saturated",
    "sglang/0.5.10": "sglang/0.5.10/saturated",
    "sglang/0.5.2": "sglang/0.5.2/saturated",
}
CONFIGURED = {  # labels that tell of the model and of how the engine was started
    "model_name",
    "block_size",
    "effective_attention_block_size",
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "kv_cache_max_concurrency",
    "kv_cache_memory_bytes",
    "kv_cache_size_tokens",
    "num_gpu_blocks",
    "num_gpu_blocks_override",
    "num_pages",
    "page_size",
}
FIRST_EVENTS = "sglang:num_retracted_", "sglang:num_aborted_requests_total"
VERSIONS = tuple(CAPTURED)


def engine_of(version: str) -> str:
    return version.partition("/")[0]


def config_of(version: str) -> EngineConfig:
    """A small pool, so that it fills: vLLM preempts and SGLang retracts."""
    cost = Roofline(TINY_LLAMA, L4)
    if engine_of(version) == "vllm":
        return EngineConfig(cost, total_blocks=65, block_tokens=32, max_num_seqs=8, max_step_tokens=512)
    return EngineConfig(
        cost, "sglang", 2000, 1, 8, 512, schedule_conservativeness=0.1
    )  # little is reserved, so that it has to retract


class Run:
    """A simulated server of a version under load, and its exposition."""

    def __init__(self, version: str) -> None:
        config = config_of(version)
        self.exposition = Exposition(version, model=MODEL, config=config, start=START)
        self.config = replace(config, bounds=self.exposition.bounds)
        self.engines = [Engine(self.config, seed) for seed in range(self.exposition.ranks)]
        traffic = Synthetic(60.0, Lengths(150, 0.5), Lengths(120, 0.5), max_tokens=150, prefixes=2, prefix_tokens=64)
        for seed, engine in enumerate(self.engines):
            for request in traffic.requests(seed):
                if request.arrival > 6.0:
                    break
                engine.submit(request)
        self.gone = [engine.submit(Request(1.0, 100, 400)) for engine in self.engines]

    def at(self, moment: float) -> tuple[list[EngineReading], bytes]:
        """Readings and exposition of a moment; each engine drops one request at 2 s."""
        for engine, gone in zip(self.engines, self.gone, strict=True):
            if engine.now < 2.0 <= moment:
                engine.advance(2.0)
                engine.abort(gone)
            engine.advance(moment)
        readings = [engine.read() for engine in self.engines]
        return readings, self.exposition.render(readings, now=START + moment)


def shape(body: bytes) -> list[object]:
    """Comments as they are, samples without values."""
    return [line if line.startswith(b"#") else parse_series(line.rpartition(b" ")[0]) for line in body.splitlines()]


def without_configured(lines: list[object]) -> list[object]:
    return [
        line
        if isinstance(line, bytes)
        else (line[0], tuple((name, "" if name in CONFIGURED else value) for name, value in line[1]))  # type: ignore[index]
        for line in lines
    ]


def samples(body: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    parsed = Parser().parse(body)
    return {(key.name, key.labels): value for key, value in zip(parsed.layout.keys, parsed.values, strict=True)}


def test_bounds_that_are_not_given_are_those_of_vllm() -> None:
    """Lengths go up in steps of 1, 2, 5, as far as the model's context, which is small in the capture."""
    captured = Exposition("vllm/0.32.0", model=MODEL, config=config_of("vllm/0.32.0"), start=START).bounds
    for field in fields(HistogramBounds):
        ours, theirs = getattr(HistogramBounds(), field.name), getattr(captured, field.name)
        assert ours[: len(theirs)] == theirs, field.name
        steps = tuple(one * 10.0**power for power in range(5) for one in (1, 2, 5))
        assert ours[len(theirs) :] in {(), steps[len(theirs) :]}, field.name


def test_every_captured_version_can_be_imitated() -> None:
    assert sorted(versions()) == sorted(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("moment", [0.0, 6.0])
def test_a_simulated_exposition_and_the_capture_have_the_same_lines(version: str, moment: float) -> None:
    captured = (captures.CAPTURES / f"{CAPTURED[version]}.prom").read_bytes()
    _, body = Run(version).at(moment)
    added = shape(body)[len(shape(captured)) :]
    assert without_configured(shape(body)[: len(shape(captured))]) == without_configured(shape(captured))
    names = {line[0] for line in added if not isinstance(line, bytes)}  # type: ignore[index]
    assert all(name.startswith(FIRST_EVENTS) for name in names)
    assert not moment or version.startswith("vllm") or version == "sglang/0.5.2" or names
    if moment == 0.0:
        assert added == []


@pytest.mark.parametrize("version", VERSIONS)
def test_both_parsers_read_the_same_values(version: str) -> None:
    _, body = Run(version).at(6.0)
    parsed = Parser().parse(body)
    assert (parsed.layout.invalid, parsed.layout.problems) == (0, ())
    theirs = [
        (sample.name, sample.labels, repr(sample.value))
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    ]
    ours = [
        (key.name, dict(key.labels), repr(value)) for key, value in zip(parsed.layout.keys, parsed.values, strict=True)
    ]
    assert sorted(map(repr, theirs)) == sorted(map(repr, ours))


@pytest.mark.parametrize("version", VERSIONS)
def test_numbers_are_written_as_the_real_server_writes_them(version: str) -> None:
    """Of prometheus_client's own writer, on the numbers of the capture and of the simulation."""
    _, body = Run(version).at(6.0)
    for line in body.decode().splitlines():
        if not line.startswith("#"):
            text = line.rpartition(" ")[2]
            assert text == floatToGoString(float(text)), line


def histograms(reading: EngineReading, version: str) -> Iterator[tuple[str, HistogramReading]]:
    """Which canonical histograms the version exposes, with what the simulator says."""
    read = reading.histograms
    yield "llm_time_to_first_token_seconds", read.ttft
    yield "llm_inter_token_latency_seconds", read.itl
    yield "llm_request_duration_seconds", read.e2e
    if version != "sglang/0.5.2":
        yield "llm_request_queue_seconds", read.queue
        yield "llm_request_prefill_seconds", read.prefill
    if version not in ("vllm/0.8.5-V0", "sglang/0.5.10", "sglang/0.5.2"):
        yield "llm_time_per_output_token_seconds", read.tpot
    if version != "sglang/0.5.10":
        yield "llm_request_prompt_tokens", read.prompt
        yield "llm_request_generation_tokens", read.generation
    if version.startswith("vllm"):
        yield "llm_request_decode_seconds", read.decode
        yield "llm_engine_step_tokens", read.step_tokens


ALONE = [one for one in VERSIONS if "dp2" not in one]
MOMENTS = pytest.mark.parametrize("moment", [0.0, 3.0, 6.0, 40.0])


def mapped(version: str, moment: float) -> tuple[EngineReading, list[Point]]:
    (reading,), body = Run(version).at(moment)
    return reading, captures.mapped(engine_of(version), body)


@pytest.mark.parametrize("version", ALONE)
def test_the_load_of_these_tests_exercises_what_is_told(version: str) -> None:
    busy, _ = mapped(version, 6.0)
    drained, _ = mapped(version, 40.0)
    assert busy.running
    assert busy.waiting
    assert busy.counters.preemptions
    assert busy.counters.cache_hits
    assert (drained.running, drained.waiting) == (0, 0)
    assert min(drained.counters.finished[reason] for reason in ("stop", "length", "abort")) > 0


@pytest.mark.parametrize("version", ALONE)
@MOMENTS
def test_the_exporter_reads_the_queues_and_histograms_of_the_simulator(version: str, moment: float) -> None:
    reading, points = mapped(version, moment)
    assert captures.value(points, "llm_requests_running") == reading.running
    assert captures.value(points, "llm_requests_waiting") == reading.waiting
    assert {point.series.label("model") for point in points} <= {MODEL, ""}
    for name, expected in histograms(reading, version):
        found = captures.histogram(points, name)
        assert found.bounds == (*expected.bounds, math.inf), name
        assert found.counts == tuple(accumulate(expected.counts)), name
        assert found.sum == pytest.approx(expected.total), name


@pytest.mark.parametrize("version", [one for one in ALONE if engine_of(one) == "vllm"])
@MOMENTS
def test_the_exporter_reads_the_numbers_of_a_simulated_vllm(version: str, moment: float) -> None:
    reading, points = mapped(version, moment)
    counters, finished = reading.counters, reading.counters.finished
    expected = {
        "llm_kv_cache_capacity_tokens": reading.total_tokens + 32,  # with the null block
        "llm_kv_cache_usage_ratio": pytest.approx(reading.usage),
        "llm_preemptions_total": counters.preemptions,
        "llm_prompt_tokens_total": counters.prompt_tokens,
        "llm_generation_tokens_total": counters.generated_tokens,
        "llm_engine_steps_total": counters.steps,
        "llm_engine_gpu_memory_reservation_ratio": 0.9,
    }
    if version != "vllm/0.8.5-V0":
        expected |= {
            "llm_prefix_cache_queries_total": counters.cache_queries,
            "llm_prefix_cache_hits_total": counters.cache_hits,
            "llm_engine_start_time_seconds": START,
        }
    if version == "vllm/0.32.0":
        expected |= {"llm_prompt_tokens_cached_total": counters.cached_tokens}
        assert captures.values(points, "llm_processed_tokens_total", "phase") == {
            "prefill": counters.prompt_tokens - counters.cached_tokens,
            "decode": counters.generated_tokens,
        }
    assert {name: captures.value(points, name) for name in expected} == expected
    told = captures.values(points, "llm_requests_finished_total", "reason")
    assert (told["stop"], told["length"]) == (finished.get("stop", 0), finished.get("length", 0))


@pytest.mark.parametrize("version", [one for one in ALONE if engine_of(one) == "sglang"])
@MOMENTS
def test_the_exporter_reads_the_numbers_of_a_simulated_sglang(version: str, moment: float) -> None:
    reading, points = mapped(version, moment)
    counters, finished = reading.counters, reading.counters.finished
    expected = {
        "llm_kv_cache_used_tokens": reading.used_tokens,
        "llm_kv_cache_usage_ratio": pytest.approx(
            reading.usage if version == "sglang/0.5.2" else reading.used_tokens / reading.total_tokens
        ),
        "llm_prompt_tokens_total": counters.finished_prompt_tokens,
        "llm_generation_tokens_total": counters.finished_generated_tokens,
        "llm_prompt_tokens_cached_total": counters.cached_tokens,
        "llm_requests_finished_total": sum(finished.get(reason, 0) for reason in ("stop", "length")),
    }
    if counters.preemptions or version == "sglang/0.5.2":
        expected |= {"llm_preemptions_total": counters.preemptions}
    if finished.get("abort"):
        expected |= {"llm_requests_failed_total": finished["abort"]}
    if version != "sglang/0.5.2":
        expected |= {
            "llm_kv_cache_capacity_tokens": reading.total_tokens,
            "llm_engine_steps_total": counters.steps,
            "llm_prefix_cache_queries_total": counters.prefill_tokens + counters.cache_hits,
            "llm_prefix_cache_hits_total": counters.cache_hits,
        }
        assert captures.values(points, "llm_processed_tokens_total", "phase") == {
            "prefill": counters.prefill_tokens,
            "decode": counters.generated_tokens - reading.histograms.ttft.count,
        }
    if version == "sglang/0.5.23":
        expected |= {"llm_kv_cache_evictable_tokens": reading.evictable_tokens}
    assert {name: captures.value(points, name) for name in expected} == expected


@pytest.mark.parametrize("version", ["vllm/0.32.0-dp2", "sglang/0.5.23-dp2"])
def test_each_replica_has_series_of_its_own(version: str) -> None:
    run = Run(version)
    run.engines[1].submit(Request(0.0, 1000, 3000 if version.startswith("vllm") else 500))
    readings, body = run.at(5.0)
    points = captures.mapped(engine_of(version), body)
    assert readings[0].counters.generated_tokens != readings[1].counters.generated_tokens
    running = captures.values(points, "llm_requests_running", "replica")
    assert running == {str(rank): one.running for rank, one in enumerate(readings)}
    capacity = captures.values(points, "llm_kv_cache_capacity_tokens", "replica")
    per_rank = run.config.total_blocks * run.config.block_tokens
    assert capacity == {"0": per_rank, "1": per_rank}
    if version.startswith("vllm"):  # the blocks of both, told by each
        assert body.count(b'num_gpu_blocks="130"') == 2
    ttft = captures.values(points, "llm_time_to_first_token_seconds", "replica")
    counts = [one.histograms.ttft.cumulative() for one in readings]
    told = {replica: value.counts for replica, value in ttft.items() if isinstance(value, Histogram)}
    if version.startswith("vllm"):
        assert told == {"0": counts[0], "1": counts[1]}
    else:  # the tokenizer counts for all of them
        assert told == {"": tuple(map(sum, zip(*counts, strict=True)))}
        decoded = captures.values(points, "llm_kv_cache_used_tokens", "replica")
        assert decoded == {str(rank): one.used_tokens for rank, one in enumerate(readings)}


def test_the_first_event_of_one_replica_shows_the_counters_of_all() -> None:
    run = Run("sglang/0.5.23-dp2")
    (idle, _), _ = run.at(0.0)
    (_, busy), _ = run.at(6.0)
    assert busy.counters.preemptions > 0
    body = run.exposition.render([idle, busy], now=START + 6.0)
    retracted = [value for (name, _), value in samples(body).items() if name == "sglang:num_retracted_requests_total"]
    assert retracted == [0.0, busy.counters.preemptions]


@pytest.mark.parametrize("version", VERSIONS)
def test_counters_only_grow_over_a_run_and_histograms_stay_cumulative(version: str) -> None:
    run = Run(version)
    before: Mapping[Any, float] = {}
    for step in range(16):
        _, body = run.at(step * 0.5)
        parsed = Parser().parse(body)
        now = {
            key: value
            for key, value in zip(parsed.layout.keys, parsed.values, strict=True)
            if key.type in ("counter", "histogram")
        }
        assert [key for key, value in before.items() if now[key] < value] == []
        before = now
    assert sum(value for key, value in before.items() if key.type == "counter") > 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_crash_sets_counters_back_and_moves_the_times_of_creation(version: str) -> None:
    run = Run(version)
    run.at(5.0)
    for engine in run.engines:
        engine.crash(2.5)
    _, body = run.at(7.5)
    parsed = Parser().parse(body)
    found = zip(parsed.layout.keys, parsed.values, strict=True)
    fresh = [(key.name, value) for key, value in found if key.type in ("counter", "histogram") and value]
    assert fresh == []
    made = {value for (name, _), value in samples(body).items() if name.endswith("_created")}
    assert made == ({START + 7.5} if version in ("vllm/0.32.0", "vllm/0.12.0") else set())


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_simulated_reads_as_on_an_idle_engine(version: str) -> None:
    """No number of the capture remains but those that are the same on every server."""
    _, body = Run(version).at(0.0)
    moving = {
        name: value
        for (name, _), value in samples(body).items()
        if value and not math.isnan(value) and not name.endswith("_created")
    }
    assert moving.keys() <= {
        "python_info", "process_virtual_memory_bytes", "process_resident_memory_bytes", "process_open_fds",
        "process_max_fds", "process_start_time_seconds", "vllm:engine_sleep_state", "vllm:cache_config_info",
        "vllm:lora_requests_info", "sglang:cache_config_info", "sglang:max_total_num_tokens", "sglang:page_size",
        "sglang:num_pages", "sglang:context_len", "sglang:new_token_ratio", "sglang:kv_available_tokens",
    }  # fmt: skip


def test_sglangs_throughput_is_that_since_the_last_scrape() -> None:
    run = Run("sglang/0.5.23")
    (first,), _ = run.at(2.0)
    (second,), body = run.at(4.0)
    expected = (second.counters.generated_tokens - first.counters.generated_tokens) / 2.0
    assert expected > 0
    found = captures.value(captures.mapped("sglang", body), "llm_decode_tokens_per_second")
    assert found == pytest.approx(expected)


def test_memory_of_the_plan_is_told_by_sglang() -> None:
    plan = plan_memory(LLAMA_3_8B, A100_80GB)
    config = EngineConfig(Roofline(LLAMA_3_8B, A100_80GB), "sglang", plan.kv_tokens, 1)
    exposition = Exposition("sglang/0.5.23", model="m", config=config, start=START, memory=plan)
    body = exposition.render([Engine(replace(config, bounds=exposition.bounds)).read()], now=START)
    told = captures.values(captures.mapped("sglang", body), "llm_model_memory_bytes", "kind")
    assert told["weights"] == pytest.approx(plan.weights)
    assert told["kv_cache"] == pytest.approx(plan.kv_pool)


# Documents -----------------------------------------------------------------------------------------------------------
def read_of(engine: str, answers: Mapping[str, Any]) -> dict[str, Any]:
    """What our engine keeps of the documents, as if each had been fetched."""
    known: dict[str, Any] = {}
    for document in BUILT_IN[engine].documents({}):
        path = document.path.partition("?")[0]
        if path in answers:
            known[document.key] = decode(document, json.dumps(answers[path]).encode())
    return known


@pytest.mark.parametrize("version", VERSIONS)
def test_documents_tell_version_model_and_limits(version: str) -> None:
    run = Run(version)
    readings, _ = run.at(5.0)
    engine = BUILT_IN[engine_of(version)]
    answers = dict(run.exposition.documents(readings))
    if version == "sglang/0.5.2":
        answers["/server_info"] = answers["/get_server_info"]  # the exporter asks for it by this name too
    known = read_of(engine.name, answers)
    facts = list(engine.facts(known))
    assert engine.version(known) == version.partition("/")[2].partition("-")[0]
    assert engine.model(known) == MODEL
    context = {fact.value for fact in facts if fact.metric is schema.MODEL_CONTEXT}
    assert context == {float(run.config.longest)}
    limits = [fact.value for fact in facts if fact.metric is schema.REQUESTS_RUNNING_LIMIT]
    assert limits == [8.0] * (0 if version == "vllm/0.8.5-V0" else run.exposition.ranks)


def test_sglangs_load_document_stands_in_for_its_metrics() -> None:
    run = Run("sglang/0.5.23-dp2")
    readings, _ = run.at(5.0)
    engine = BUILT_IN["sglang"]
    loads = run.exposition.documents(readings)["/v1/loads"]
    document = next(one for one in engine.documents({"metrics": Absent(404)}) if one.key == "loads")
    facts = list(engine.facts({"loads": decode(document, json.dumps(loads).encode())}))
    told = {(fact.metric.name, fact.labels["replica"]): fact.value for fact in facts}
    for rank, reading in enumerate(readings):
        assert told["llm_requests_running", str(rank)] == reading.running
        assert told["llm_requests_waiting", str(rank)] == reading.waiting
        assert told["llm_kv_cache_used_tokens", str(rank)] == reading.used_tokens


# Misuse --------------------------------------------------------------------------------------------------------------
def test_an_unknown_version_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no simulated vllm/9\.9; known: sglang/0\.5\.10, .*vllm/0\.32\.0"):
        Exposition("vllm/9.9", model="m", config=config_of("vllm/0.32.0"), start=START)


def test_a_version_of_the_other_scheduler_is_refused() -> None:
    with pytest.raises(ValueError, match="does not schedule as vllm does"):
        Exposition("sglang/0.5.23", model="m", config=config_of("vllm/0.32.0"), start=START)


def test_readings_must_be_one_of_each_replica_with_the_versions_bounds() -> None:
    run = Run("sglang/0.5.23-dp2")
    readings, _ = run.at(0.0)
    with pytest.raises(ValueError, match="has 2 replicas, not 1"):
        run.exposition.render(readings[:1], now=START)
    with pytest.raises(ValueError, match="ttft histogram has other bounds"):
        run.exposition.render([Engine(config_of("sglang/0.5.23")).read()] * 2, now=START)


# Renamed metrics -----------------------------------------------------------------------------------------------------
def test_renamed_families_vanish_from_the_mapping_and_the_rest_stays() -> None:
    _, body = Run("vllm/0.32.0").at(5.0)
    changed = renamed(
        body,
        {
            "vllm:num_requests_running": "vllm:requests_in_batch",
            "vllm:time_to_first_token_seconds": "vllm:first_token_seconds",
            "vllm:prompt_tokens_total": "vllm:input_tokens_total",
            "vllm:num_preemptions_total": "",
        },
    )
    before = {point.series.metric.name for point in captures.mapped("vllm", body)}
    after = {point.series.metric.name for point in captures.mapped("vllm", changed)}
    assert before - after == {
        "llm_requests_running",
        "llm_time_to_first_token_seconds",
        "llm_prompt_tokens_total",
        "llm_preemptions_total",
    }
    text = changed.decode()
    assert "# TYPE vllm:requests_in_batch gauge\nvllm:requests_in_batch{" in text
    assert 'vllm:first_token_seconds_bucket{engine="0",le="0.001"' in text
    assert "vllm:input_tokens_created{" in text
    assert "vllm:prompt_tokens_by_source_total{" in text
    assert "vllm:num_requests_waiting{" in text
    assert "num_preemptions_" not in text.replace("request_num_preemptions_", "")
    assert len(samples(changed)) == len(samples(body)) - 2


def test_without_renames_nothing_changes() -> None:
    _, body = Run("sglang/0.5.2").at(5.0)
    assert renamed(body, {}) == body
    assert renamed(body, {"sglang:no_such_metric": "sglang:other"}) == body


# Ollama --------------------------------------------------------------------------------------------------------------
SMALL, LARGE = "small:latest", "llama3:8b"


def ollama(keep_alive: float) -> OllamaServer:
    config = OllamaConfig(
        {SMALL: TINY_LLAMA, LARGE: LLAMA_3_8B}, replace(L4, memory_bytes=12 * GIB), keep_alive=keep_alive
    )
    server = OllamaServer(config)
    server.submit(LARGE, Request(0.0, 100, 20))
    server.advance(60.0)
    return server


def facts_of(server: OllamaServer) -> dict[tuple[str, str], float]:
    answers = json.loads(json.dumps(ollama_api.documents(server.read(), server.config, start=START)))
    engine = BUILT_IN["ollama"]
    known = {}
    for document in engine.documents({}):
        if document.path in answers:
            known[document.key] = decode(document, json.dumps(answers[document.path]).encode())
    for document in engine.documents(known):
        if document.path == "/api/show" and document.body:
            shown = ollama_api.show(json.loads(document.body)["model"], server.config)
            known[document.key] = decode(document, json.dumps(shown).encode())
    assert engine.version(known) == "0.33.0-rc2"
    return {
        (fact.metric.name, "/".join([fact.labels.get("model", ""), fact.labels.get("kind", "")]).strip("/")): fact.value
        for fact in engine.facts(known)
    }


def test_ollamas_documents_say_what_the_server_holds() -> None:
    server = ollama(keep_alive=300.0)
    (loaded,) = server.read().loaded
    facts = facts_of(server)
    assert 0 < loaded.size_vram < loaded.size
    assert facts["llm_models_loaded", ""] == 1
    assert facts["llm_model_loaded", LARGE] == 1
    assert facts["llm_model_loaded", SMALL] == 0
    assert facts["llm_model_memory_bytes", f"{LARGE}/total"] == loaded.size
    assert facts["llm_model_memory_bytes", f"{LARGE}/device"] == loaded.size_vram
    assert facts["llm_model_offload_ratio", LARGE] == loaded.size_vram / loaded.size
    assert facts["llm_model_context_tokens", LARGE] == 4096
    assert facts["llm_model_parameters", LARGE] == LLAMA_3_8B.parameters
    assert facts["llm_model_trained_context_tokens", LARGE] == 8192
    assert facts["llm_model_expiry_timestamp_seconds", LARGE] == pytest.approx(START + loaded.expires_at, abs=1e-5)


def test_a_model_kept_for_ever_expires_centuries_ahead_and_not_for_the_exporter() -> None:
    server = ollama(keep_alive=-1.0)
    (row,) = ollama_api.documents(server.read(), server.config, start=START)["/api/ps"]["models"]
    assert row["expires_at"].startswith("2319-")
    assert ("llm_model_expiry_timestamp_seconds", LARGE) not in facts_of(server)


def test_virtual_time_that_runs_faster_expires_sooner() -> None:
    server = ollama(keep_alive=300.0)
    (loaded,) = server.read().loaded
    (row,) = ollama_api.documents(server.read(), server.config, start=START, speed=10.0)["/api/ps"]["models"]
    assert row["expires_at"] == ollama_api.timestamp(START + loaded.expires_at / 10.0)


def test_an_empty_server_answers_as_the_captured_one() -> None:
    server = OllamaServer(OllamaConfig({}, None))
    answers = ollama_api.documents(server.read(), server.config, start=START)
    directory = captures.CAPTURES / "ollama" / "0.33.0-rc2"
    assert answers["/api/ps"] == json.loads((directory / "ps_empty.json").read_bytes())
    assert answers["/api/tags"] == json.loads((directory / "tags_empty.json").read_bytes())
    assert answers["/api/version"] == json.loads((directory / "version.json").read_bytes())


def keys(document: object) -> object:
    if isinstance(document, dict):
        return {name: keys(value) for name, value in document.items()}
    return [keys(document[0])] if isinstance(document, list) and document else type(document).__name__


@pytest.mark.parametrize(("path", "captured"), [("/api/ps", "ps_loaded"), ("/api/tags", "tags")])
def test_ollamas_documents_have_the_fields_of_the_captures_in_their_order(path: str, captured: str) -> None:
    server = ollama(keep_alive=300.0)
    answer = keys(ollama_api.documents(server.read(), server.config, start=START)[path])
    assert json.dumps(answer) == json.dumps(keys(captures.document(f"ollama/0.33.0-rc2/{captured}")))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        *((13_203_072, "13.20M"), (2_640_000, "2.64M"), (8_030_261_248, "8.0B"), (7_000_000_000, "7B")),
        *((1_000_000_000, "1B"), (999_999_999, "1000.00M"), (1_000_000, "1M"), (999_499, "999K"), (1_000, "1K")),
        (999, "999"),
    ],
)
def test_sizes_are_in_ollamas_words(parameters: int, words: str) -> None:
    config = OllamaConfig({SMALL: replace(TINY_LLAMA, parameters=parameters)}, None)
    assert ollama_api.show(SMALL, config)["details"]["parameter_size"] == words


def test_a_model_that_is_not_there_is_not_shown() -> None:
    with pytest.raises(KeyError):
        ollama_api.show("nobody:latest", OllamaConfig({SMALL: TINY_LLAMA}, None))


@pytest.mark.parametrize(
    ("unix", "text"), [(0.0, "1970-01-01T00:00:00Z"), (1.5, "1970-01-01T00:00:01.5Z"), (START, "2026-11-18T11:06:40Z")]
)
def test_times_are_written_as_go_writes_them(unix: float, text: str) -> None:
    assert ollama_api.timestamp(unix) == text
