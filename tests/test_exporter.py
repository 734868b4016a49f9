"""The exporter end to end: real processes, real sockets, captured engines."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

import nvml_library
import refused_calls
from captures import Capture
from engine_server import EngineServer, Reply, as_json, garbage, half, hang, huge, replayed
from exporter_process import COMMAND, DEADLINE, Exporter, check
from free_port import free_port
from llm_headroom import schema
from llm_headroom.model import Subject
from llm_headroom.proxy import measures
from llm_headroom.scrape import coverage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine_server import Behaviour

VLLM = Capture("vllm", "0.32.0", "saturated")
SGLANG = Capture("sglang", "0.5.23", "saturated")
ROUTER = Capture("sglang_router", "smg-1.13.0", "saturated")
OLLAMA = Capture("ollama", "0.33.0-rc2", "ps_loaded")
LLAMACPP = Capture("llamacpp", "b10488", "load_5")
FAST = ("--interval", "100ms", "--no-gpu")


@pytest.fixture
def vllm() -> Iterator[EngineServer]:
    """A saturated vLLM server."""
    with EngineServer(replayed(VLLM)) as server:
        yield server


# What is served ------------------------------------------------------------------------------------------------------
def test_every_engine_is_found_out_and_served_side_by_side() -> None:
    captured = (VLLM, SGLANG, ROUTER, OLLAMA, LLAMACPP)
    servers = {capture.engine: EngineServer(replayed(capture)) for capture in captured}
    for server in servers.values():
        server.__enter__()
    try:
        with Exporter(*(f"--target={server.url}" for server in servers.values()), "--no-gpu") as exporter:
            exporter.until(exporter.all_up)
            metrics = exporter.metrics()
    finally:
        for server in servers.values():
            server.__exit__()

    assert {(dict(key)["engine"], dict(key)["target"]): up for key, up in metrics["llm_up"].items()} == {
        (engine, server.name): 1.0 for engine, server in servers.items()
    }, exporter.log
    waiting = {dict(key)["engine"]: value for key, value in metrics["llm_requests_waiting"].items()}
    assert waiting == {"vllm": 39, "sglang": 12, "llamacpp": 4}
    assert metrics["llm_time_to_first_token_seconds_count"] != {}


def test_formats_are_negotiated(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu") as exporter:
        exporter.until(exporter.all_up)
        _, plain_headers, plain = exporter.get("/metrics")
        _, om_headers, om = exporter.get("/metrics", Accept="application/openmetrics-text;version=1.0.0,*/*;q=0.1")
        _, zip_headers, zipped = exporter.get("/metrics", Accept_Encoding="gzip")

    assert plain_headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert om_headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert zip_headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped).decode().splitlines()[0] == plain.decode().splitlines()[0]
    families = {family.name: family for family in openmetrics_families(om.decode())}
    assert families["llm_prompt_tokens"].type == "counter"
    assert families["llm_kv_cache_usage_ratio"].unit == "ratio"


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends (prometheus/prometheus, scrape/scrape.go, acceptHeader)."""


def test_whatever_is_accepted_there_is_an_answer_in_one_of_two_formats() -> None:
    text, openmetrics = "text/plain; version=0.0.4", "application/openmetrics-text; version=1.0.0"
    wanted = {
        PROMETHEUS_3: openmetrics,
        "application/openmetrics-text": openmetrics,
        "application/openmetrics-text;version=2.0.0": openmetrics,
        "text/plain;version=1.0.0;escaping=allow-utf-8": text,
        "text/html,*/*;q=0.8": text,
        "application/openmetrics-text;version=soon": text,
        "text/plain;version=1.x": text,
        ";;=,": text,
    }
    with Exporter("--no-gpu", "--no-discover") as exporter:
        answers = {accept: exporter.get("/metrics", Accept=accept) for accept in wanted}
        refused = exporter.get("/metrics", Accept_Encoding="gzip;q=0")

    assert {accept: (status, headers["content-type"]) for accept, (status, headers, _) in answers.items()} == {
        accept: (200, f"{form}; charset=utf-8") for accept, form in wanted.items()
    }
    assert "content-encoding" not in refused[1]


def test_a_name_that_utf8_cannot_hold_costs_nobody_the_scrape(vllm: EngineServer) -> None:
    routes = replayed(OLLAMA)
    loaded = (OLLAMA.directory / "ps_loaded.json").read_bytes().replace(b"small:latest", b"\\ud83d:latest")
    routes["/api/ps"] = Reply(loaded, content_type="application/json")
    with (
        EngineServer(routes) as ollama,
        Exporter(f"--target=ollama={ollama.url}", f"--target=vllm={vllm.url}", *FAST) as exporter,
    ):
        exporter.until(lambda: exporter.value("llm_model_loaded", model="?:latest") == 1)
        exporter.until(lambda: exporter.value("llm_requests_waiting", engine="vllm") == 39)
        assert exporter.get("/")[0] == exporter.get("/api/v1/snapshot")[0] == 200


def test_promtool_finds_nothing_in_what_is_served(vllm: EngineServer) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install the Debian package `prometheus`")
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu") as exporter:
        exporter.until(exporter.all_up)
        body = exporter.get("/metrics")[2]
    checked = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_snapshot_pages_and_unknown_paths(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu") as exporter:
        exporter.until(exporter.all_up)
        snapshot = json.loads(exporter.get("/api/v1/snapshot")[2])
        status, headers, page = exporter.get("/")
        missing = exporter.get("/nothing")[0]
        healthy = exporter.get("/-/healthy")[0]

    (source,) = snapshot["sources"]
    assert (source["target"], source["engine"], source["version"], source["up"]) == (vllm.name, "vllm", "0.32.0", True)
    assert ("llm_requests_running", 8.0) in [(point["metric"], point.get("value")) for point in source["points"]]
    assert (status, missing, healthy) == (200, 404, 200)
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert b"tiny-llama" in page
    assert page.count(b"<script") == page.count(b'<script src="static/page.js" defer></script>') == 1


# One source never costs another one ----------------------------------------------------------------------------------
def test_broken_engines_cost_only_themselves(vllm: EngineServer) -> None:
    body = VLLM.exposition.read_bytes()
    broken: dict[str, dict[str, Reply | Behaviour]] = {
        "timeout": {"/metrics": hang},
        "protocol": {"/metrics": garbage},
        "truncated": {"/metrics": half(body)},
        "too_large": {"/metrics": huge(100)},
        "status": {"/metrics": Reply(b"oops", 500)},
        "auth": {"/metrics": Reply(b"who are you", 401)},
        "format": {"/metrics": Reply(b"0 hello")},
        "not_this_engine": {"/metrics": Reply(b"<html><body>hello</body></html>", content_type="text/html")},
    }
    with ExitStack() as stack:
        targets = {cause: stack.enter_context(EngineServer(routes)).url for cause, routes in broken.items()}
        targets["refused"] = f"http://127.0.0.1:{stack.enter_context(free_port())}"
        arguments = [f"--target=vllm={url}" for url in (*targets.values(), vllm.url)]
        with Exporter(*arguments, "--no-gpu", "--interval", "1s") as exporter:
            served = exporter.logged("source up", target=vllm.name)
            for cause, url in targets.items():
                exporter.logged("source down", target=url.removeprefix("http://"), cause=cause)
            metrics = exporter.metrics()

    assert served["points"] > 30
    up = {dict(key)["target"]: value for key, value in metrics["llm_up"].items()}
    assert up == {url.removeprefix("http://"): 0.0 for url in targets.values()} | {vllm.name: 1.0}
    assert {dict(key)["target"] for key in metrics["llm_requests_running"]} == {vllm.name}


def test_a_hung_engine_does_not_hang_metrics() -> None:
    with EngineServer({"/metrics": hang}) as server, Exporter(f"--target=vllm={server.url}", "--no-gpu") as exporter:
        while not server.requests:  # the poll is under way, and stays so for the five seconds of its timeout
            exporter.get("/metrics")

        assert exporter.value("llm_build_info") == 1
        assert exporter.value("llm_up") is None


def test_series_go_with_the_engine_and_come_back_with_it(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", *FAST) as exporter:
        exporter.until(lambda: exporter.value("llm_requests_running") == 8)
        vllm.routes["/metrics"] = Reply(b"starting", 503)
        exporter.until(lambda: exporter.value("llm_up") == 0)
        gone = exporter.metrics()
        states = gone.pop("llm_engine_state")
        vllm.routes |= replayed(Capture("vllm", "0.12.0", "saturated"))
        exporter.until(lambda: exporter.value("llm_up") == 1)
        back = exporter.metrics()

    assert not any(name.startswith(("llm_requests", "llm_kv", "llm_engine", "llm_time")) for name in gone)
    assert sum(states.values()) == 1
    assert gone["llm_source_errors_total"] != {}
    assert [dict(key)["version"] for key in back["llm_engine_info"]] == ["0.12.0"]  # read anew after the restart


@pytest.mark.waits(10)
def test_the_state_of_an_engine_is_the_same_in_metrics_and_json_and_outlives_its_answers(vllm: EngineServer) -> None:
    def told(exporter: Exporter) -> tuple[set[tuple[str, str]], list[tuple[str, str]]]:
        flags = exporter.metrics()["llm_engine_state"]
        holds = {(dict(key)["model"], dict(key)["state"]) for key, on in flags.items() if on}
        (source,) = json.loads(exporter.get("/api/v1/snapshot")[2])["sources"]
        assert all(each["reason"] and each["since"] > 0 for each in source["states"])
        return holds, [(each["model"], each["state"]) for each in source["states"]]

    with Exporter(f"--target=vllm={vllm.url}", *FAST) as exporter:
        exporter.until(lambda: exporter.value("llm_requests_running") == 8)
        working = told(exporter)
        vllm.routes["/metrics"] = Reply(b"a web page", 200)
        logged = exporter.logged("state", state="misread")
        misread = told(exporter)

    ((model, state),) = working[0]
    assert state == "unknown"  # what it has does not move
    assert working == ({(model, state)}, [(model, state)])
    assert misread == ({(model, "misread")}, [(model, "misread")])
    assert (logged["before"], logged["model"]) == (state, model)


def test_a_target_for_batches_has_no_objective_of_latency(vllm: EngineServer, tmp_path: Path) -> None:
    config = tmp_path / "headroom.yml"
    config.write_text(f"targets:\n  - {{url: '{vllm.url}', engine: vllm, purpose: batch}}\n")
    with Exporter("--config", str(config), *FAST) as exporter:
        exporter.until(lambda: exporter.value("llm_requests_running") == 8)
        metrics = exporter.metrics()

    assert "llm_engine_state" in metrics
    assert not {name for name in metrics if name.startswith("llm_slo_")}


def test_one_broken_family_does_not_cost_the_others(vllm: EngineServer) -> None:
    body = VLLM.exposition.read_bytes().replace(b"vllm:num_requests_waiting{", b"vllm:num_requests_waiting}")
    vllm.routes["/metrics"] = Reply(body)
    with Exporter(f"--target=vllm={vllm.url}", *FAST) as exporter:
        warned = exporter.logged("source incomplete", cause="format")
        metrics = exporter.metrics()

    assert "num_requests_waiting" in warned["error"]
    assert "llm_requests_waiting" not in metrics
    assert [*metrics["llm_requests_running"].values()] == [8]
    samples = {dict(key)["state"]: value for key, value in metrics["llm_source_samples"].items()}
    assert samples["invalid"] == 1


def test_unknown_families_are_counted(vllm: EngineServer) -> None:
    vllm.routes["/metrics"] = Reply(VLLM.exposition.read_bytes() + b"vllm:brand_new 1\n")
    with Exporter(f"--target=vllm={vllm.url}", *FAST) as exporter:
        exporter.until(lambda: exporter.value("llm_source_samples", state="unknown") == 1)


# Manners towards engines ---------------------------------------------------------------------------------------------
def test_polling_asks_for_nothing_that_makes_an_engine_work() -> None:
    with EngineServer(replayed(SGLANG)) as server, Exporter(f"--target=sglang={server.url}", *FAST) as exporter:
        exporter.until(lambda: server.requests.count(("GET", "/metrics")) >= 5)
        asked = list(server.requests)

    assert {path for _, path in asked} == {"/metrics", "/v1/models", "/server_info"}
    assert {method for method, _ in asked} == {"GET"}
    assert asked.count(("GET", "/server_info")) == 1


def test_what_an_engine_does_not_serve_is_not_asked_for_again() -> None:
    with EngineServer({"/metrics": Reply(VLLM.exposition.read_bytes())}) as server:
        with Exporter(f"--target=vllm={server.url}", *FAST) as exporter:
            exporter.until(lambda: server.requests.count(("GET", "/metrics")) >= 5)
        asked = [path for _, path in server.requests if path != "/metrics"]

    assert sorted(asked) == ["/server_info?config_format=json", "/v1/models", "/version"]


def test_secrets_of_an_engine_go_nowhere() -> None:
    secret = "sk-do-not-tell"
    routes = replayed(SGLANG)
    info = json.loads((SGLANG.directory / "server_info.json").read_bytes()) | {
        "api_key": secret,
        "admin_api_key": secret,
    }
    routes["/server_info"] = as_json(info)
    with EngineServer(routes) as server:
        with Exporter(f"--target=sglang={server.url}", *FAST, "--log-level", "debug") as exporter:
            exporter.until(lambda: exporter.value("llm_requests_running_limit") == 8)
            said = exporter.get("/metrics")[2] + exporter.get("/api/v1/snapshot")[2] + exporter.get("/")[2]
        said += json.dumps(exporter.log).encode()
        said += check(f"--target=sglang={server.url}", "--format", "json", "--no-gpu").stdout.encode()

    assert secret.encode() not in said
    assert b"llm_requests_running_limit" in said


def test_sglang_without_metrics_is_read_from_its_loads() -> None:
    loads = (SGLANG.directory / "loads.json").read_bytes()
    routes = {
        "/v1/models": Reply((SGLANG.directory / "models.json").read_bytes(), content_type="application/json"),
        "/v1/loads": Reply(loads, content_type="application/json"),
    }
    with EngineServer(routes) as server, Exporter(f"--target={server.url}", *FAST) as exporter:
        exporter.until(lambda: exporter.value("llm_requests_running") == 8)
        metrics = exporter.metrics()

    assert [*metrics["llm_requests_waiting"].values()] == [12]
    assert [*metrics["llm_waiting_tokens"].values()] == [2764]
    assert [*metrics["llm_kv_cache_capacity_tokens"].values()] == [16384]
    assert [*metrics["llm_requests_running_limit"].values()] == [8]
    assert "--enable-metrics" in exporter.logged("source incomplete")["error"]


def test_sglang_without_metrics_and_without_loads_names_the_option_that_turns_its_metrics_on() -> None:
    """Until 0.5.8 there is no `/v1/loads`: its absence is no sign of a wrong port, nor of an engine that loads."""
    models = Reply((SGLANG.directory / "models.json").read_bytes(), content_type="application/json")
    with EngineServer({"/v1/models": models}) as server:
        report = json.loads(check(f"--target={server.url}", "--format", "json", "--no-gpu").stdout)

    (source,) = report["sources"]
    assert (source["engine"], source["up"]) == ("sglang", True)
    assert [state["state"] for state in source["states"]] == ["unknown"]
    assert ["--enable-metrics" in warning["message"] for warning in source["warnings"]] == [True]


def test_vllm_without_statistics_is_up_and_says_so() -> None:
    routes = replayed(VLLM)
    routes["/metrics"] = Reply(
        b'# TYPE http_requests_total counter\nhttp_requests_total{handler="/v1/completions",status="2xx"} 3\n'
    )
    with EngineServer(routes) as server, Exporter(f"--target={server.url}", *FAST) as exporter:
        warned = exporter.logged("source incomplete")

        assert "--disable-log-stats" in warned["error"]
        assert exporter.value("llm_up") == 1
        assert exporter.value("llm_http_responses_total", code="2xx") == 3


# Configuration -------------------------------------------------------------------------------------------------------
def configured(path: Path, *urls: str, more: str = "") -> Path:
    """A configuration file with some targets."""
    targets = "".join(f"  - {{url: '{url}', engine: vllm}}\n" for url in urls)
    path.write_text(f"interval: 100ms\ngpu: false\ndiscover: false\ntargets:\n{targets}{more}")
    return path


def test_a_wish_to_reload_does_not_end_an_exporter_that_is_only_beginning(tmp_path: Path) -> None:
    given = tmp_path / "given"
    os.mkfifo(given)
    ended, log = os.pipe()
    with subprocess.Popen([*COMMAND, "run", "--config", str(given), "--log-format", "json"], stderr=log) as process:
        os.close(log)
        with given.open("w") as config:  # it waits for what is written here, and listens nowhere yet
            process.send_signal(signal.SIGHUP)
            config.write("gpu: false\nhost: false\ndiscover: false\nlisten: ['127.0.0.1:0']\n")
        with os.fdopen(ended) as lines:
            first = lines.readline()
            process.send_signal(signal.SIGTERM)
    assert json.loads(first)["msg"] == "listening"


@pytest.mark.skipif(refused_calls.PRLIMIT64 is None, reason="the call's number is not known of this machine")
def test_a_process_that_may_not_know_its_limits_has_the_usual_ones(vllm: EngineServer) -> None:
    with Exporter(f"--target={vllm.url}", *FAST, refused=refused_calls.PRLIMIT64) as exporter:
        exporter.until(exporter.all_up)


def test_sighup_reloads_the_configuration_and_a_broken_one_changes_nothing(tmp_path: Path, vllm: EngineServer) -> None:
    path = configured(tmp_path / "headroom.yml", vllm.url)
    with (
        EngineServer(replayed(Capture("vllm", "0.12.0", "saturated"))) as other,
        Exporter("--config", str(path)) as exporter,
    ):
        exporter.until(lambda: exporter.value("llm_up", target=vllm.name) == 1)
        configured(path, vllm.url, other.url)
        exporter.process.send_signal(signal.SIGHUP)
        exporter.until(lambda: exporter.value("llm_up", target=other.name) == 1)
        path.write_text("targets: 7\n")
        exporter.process.send_signal(signal.SIGHUP)
        refused = exporter.logged("configuration not reloaded")
        exporter.until(lambda: exporter.value("llm_config_last_reload_success") == 0)
        kept = exporter.metrics()["llm_up"]
        configured(path, other.url, more="log: {level: debug}\n")
        exporter.process.send_signal(signal.SIGHUP)
        exporter.until(lambda: exporter.value("llm_up", target=vllm.name) is None)
        exporter.until(lambda: exporter.value("llm_config_last_reload_success") == 1)
        ignored = exporter.logged("not applied, restart required")

    assert ignored["keys"] == "log"
    assert f"{path}:1: targets" in refused["error"]
    assert sorted(kept.values()) == [1, 1]


def test_a_changed_file_is_reloaded_by_itself(tmp_path: Path, vllm: EngineServer) -> None:
    path = configured(tmp_path / "headroom.yml")
    path.write_text("gpu: false\ndiscover: false\n")
    with Exporter("--config", str(path)) as exporter:
        configured(path, vllm.url)
        exporter.logged("configuration reloaded", targets=1)
        exporter.until(lambda: exporter.value("llm_up", target=vllm.name) == 1)


def test_aliases_and_engines_from_the_configuration(tmp_path: Path, vllm: EngineServer) -> None:
    vllm.routes["/metrics"] = Reply(VLLM.exposition.read_bytes() + b'myfork:running{model_name="tiny-llama"} 5\n')
    tgi = Reply(b"# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 3\ntgi_queue_size 4\ntgi_other 1\n")
    path = tmp_path / "headroom.yml"
    with EngineServer({"/metrics": tgi}) as server:
        path.write_text(
            f"""
interval: 100ms
gpu: false
targets: ['vllm={vllm.url}', 'tgi={server.url}']
mappings: {{vllm: [{{metric: llm_requests_running, names: ["myfork:running"]}}]}}
engines:
  tgi:
    prefixes: [tgi_]
    rules:
      - {{metric: llm_requests_running, names: [tgi_batch_current_size]}}
      - {{metric: llm_requests_waiting, names: [tgi_queue_size]}}
    ignored: [tgi_other]
"""
        )
        with Exporter("--config", str(path)) as exporter:
            exporter.until(lambda: exporter.value("llm_requests_running", engine="tgi") == 3)
            exporter.until(lambda: exporter.value("llm_requests_running", engine="vllm") == 5)
            assert exporter.value("llm_requests_waiting", engine="tgi") == 4
            assert exporter.value("llm_source_samples", engine="tgi", state="unknown") == 0


def test_operators_know_the_limit_that_vllm_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "headroom.yml"
    with EngineServer({"/metrics": Reply(VLLM.exposition.read_bytes())}) as server:
        path.write_text(
            f"gpu: false\ntargets: [{{url: '{server.url}', name: prod, requests_running_limit: 256, "
            "labels: {team: search}}]\n"
        )
        with Exporter("--config", str(path)) as exporter:
            exporter.until(lambda: exporter.value("llm_requests_running_limit", target="prod", team="search") == 256)
            assert exporter.value("llm_up", target="prod", team="search") == 1


def test_objectives_come_from_the_configuration_and_snap_to_buckets(tmp_path: Path, vllm: EngineServer) -> None:
    path = configured(
        tmp_path / "headroom.yml", vllm.url, more="objectives: {ttft: 900ms, request_duration: 30s, ratio: 0.99}\n"
    )
    with Exporter("--config", str(path)) as exporter:
        exporter.until(lambda: exporter.value("llm_slo_threshold_seconds", slo="ttft") == 1.0)
        assert exporter.value("llm_slo_objective_ratio", slo="ttft") == 0.99
        assert exporter.value("llm_slo_threshold_seconds", slo="request_duration") == 30


def test_environment_variables_configure_too(vllm: EngineServer) -> None:
    extra = {
        "LLM_HEADROOM_TARGETS": f"vllm={vllm.url}, http://127.0.0.1:1",
        "LLM_HEADROOM_GPU": "false",
        "LLM_HEADROOM_INTERVAL": "200ms",
    }
    with Exporter(extra=extra) as exporter:
        exporter.until(lambda: exporter.value("llm_up", target=vllm.name) == 1)
        exporter.until(lambda: exporter.value("llm_up", target="127.0.0.1:1") == 0)


def test_wrong_configuration_ends_with_status_2_and_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "headroom.yml"
    path.write_text("targets:\n  - url: http://a\n    tmeout: 3s\n")
    checked = check("--config", str(path))

    assert checked.returncode == 2
    assert f"{path}:3: targets[0]" in checked.stderr
    assert "tmeout" in checked.stderr


# The end -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(number: signal.Signals) -> None:
    with EngineServer({"/metrics": hang}) as server, Exporter(f"--target=vllm={server.url}", "--no-gpu") as exporter:
        while not server.requests:  # in the middle of a poll
            exporter.get("/metrics")
        exporter.process.send_signal(number)
        assert exporter.process.wait(DEADLINE) == 0
    assert all("msg" in line and "Traceback" not in line["msg"] for line in exporter.log)


# check ---------------------------------------------------------------------------------------------------------------
def test_check_reports_as_json(vllm: EngineServer) -> None:
    vllm.routes["/metrics"] = Reply(VLLM.exposition.read_bytes() + b"vllm:brand_new 1\n")
    checked = check(f"--target=vllm={vllm.url}", "--format", "json", "--no-gpu")
    report = json.loads(checked.stdout)

    assert (checked.returncode, checked.stderr) == (0, "")
    (source,) = report["sources"]
    assert (source["target"], source["engine"], source["version"], source["up"], source["error"]) == (
        vllm.name,
        "vllm",
        "0.32.0",
        True,
        None,
    )
    points = {point["metric"]: point for point in source["points"]}
    assert points["llm_requests_running"] == {
        "metric": "llm_requests_running",
        "labels": {"engine": "vllm", "model": "tiny-llama", "replica": "0", "target": vllm.name},
        "value": 8.0,
        "source": "vllm:num_requests_running",
    }
    histogram = points["llm_time_to_first_token_seconds"]["histogram"]
    assert (histogram["count"], histogram["buckets"][-1]) == (806, ["+Inf", 806])
    missing = {entry["metric"]: entry["reason"] for entry in source["missing"]}
    assert missing["llm_kv_cache_evictable_tokens"] == "vLLM does not expose this metric"
    assert "speculative decoding" in missing["llm_spec_decode_draft_tokens_total"]
    assert missing.keys().isdisjoint(points)
    assert source["unmapped"] == ["vllm:brand_new"]


def test_check_reports_as_text_and_fails_with_a_failed_source(vllm: EngineServer) -> None:
    checked = check(f"--target=vllm={vllm.url}", "--target=sglang=http://127.0.0.1:1", "--no-gpu")

    assert checked.returncode == 1
    assert f"{vllm.name}  vllm 0.32.0  up" in checked.stdout
    judged = "? tiny-llama is unknown: 8 running, 39 waiting; it was not seen yet whether it gets on with them"
    assert judged in checked.stdout, "a single look does not show it"
    assert "llm_requests_waiting{model=tiny-llama, replica=0}" in checked.stdout
    assert "39 requests  vllm:num_requests_waiting" in checked.stdout
    assert "2,048 tokens" in checked.stdout
    assert checked.stdout.index("DOWN") < checked.stdout.index("tiny-llama"), "the worst comes first"
    assert "127.0.0.1:1  sglang  DOWN" in checked.stdout
    assert "error (refused): http://127.0.0.1:1/metrics" in checked.stdout


@pytest.mark.parametrize("capture", [SGLANG, ROUTER, OLLAMA, LLAMACPP], ids=str)
def test_check_names_each_engine(capture: Capture) -> None:
    with EngineServer(replayed(capture)) as server:
        checked = check(f"--target={server.url}", "--format", "json", "--no-gpu")
    (source,) = json.loads(checked.stdout)["sources"]

    assert (checked.returncode, source["engine"], source["up"]) == (0, capture.engine, True)
    assert source["points"]
    assert source["unmapped"] == []


def test_check_with_no_engine_at_all_says_where_it_looked() -> None:
    checked = check("--no-discover", "--no-gpu")

    assert (checked.returncode, checked.stdout) == (
        1,
        "Nothing was found: no engine and no GPU. Name one with `--target`, as in --target vllm=http://HOST:8000\n",
    )


def test_check_says_what_to_do_about_what_is_missing() -> None:
    with EngineServer(replayed(OLLAMA)) as server:
        checked = check(f"--target=ollama={server.url}", "--no-gpu")
    report = " ".join(checked.stdout.split())

    assert "run with `--ollama-proxy :11435` to get it: llm_requests_running" in report
    assert "set `gpu_hour` under `cost`" in report
    assert "llm_engine_state" not in report


def test_what_a_proxy_measures_is_said_to_be_measured_by_one() -> None:
    only_by_proxies = {metric for metric in schema.ALL if metric.subject is Subject.PROXY}
    assert measures.BOUNDS.keys() <= coverage.BY_PROXY | only_by_proxies


def test_check_says_what_answers_if_it_is_no_engine() -> None:
    other = {"/metrics": Reply(b"node_load1 0.5\n"), "/": Reply(b"hello")}
    with EngineServer(other) as server:
        checked = check(f"--target={server.url}", "--format", "json", "--no-gpu")
    (source,) = json.loads(checked.stdout)["sources"]

    assert (checked.returncode, source["engine"], source["error"]["cause"]) == (1, "", "not_this_engine")
    assert "--target ENGINE=URL" in source["error"]["message"]


# GPUs ----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NVML without a GPU."""
    return nvml_library.build(tmp_path_factory.mktemp("nvml"))


def test_gpus_are_found_lost_and_found_again(tmp_path: Path, nvml: Path) -> None:
    machine = nvml_library.Description(tmp_path / "gpus", nvml_library.fixture("h200x8"))
    extra = machine.environment(nvml)
    with Exporter("--no-discover", "--interval", "100ms", extra=extra) as exporter:
        exporter.until(lambda: exporter.value("llm_up", target="nvml") == 1)
        eight = exporter.metrics()
        machine.fail("system", "*", 9)  # NVML_ERROR_DRIVER_NOT_LOADED
        exporter.until(lambda: exporter.value("llm_up", target="nvml") == 0)
        none = exporter.metrics()
        machine.restore("system", "*")
        exporter.until(lambda: exporter.value("llm_up", target="nvml") == 1)
        machine.fail("gpu 3", "*", 15)  # NVML_ERROR_GPU_IS_LOST
        exporter.until(lambda: len(exporter.metrics()["llm_gpu_memory_total_bytes"]) == 7)
        lost = exporter.logged("source incomplete")

    assert len(eight["llm_gpu_memory_total_bytes"]) == 8
    assert set(eight["llm_gpu_memory_total_bytes"].values()) == {150754820096.0}
    assert {name for name in none if name.startswith("llm_gpu")} == {"llm_gpu_state"}
    assert "3" in lost["error"]


def test_no_nvml_is_said_once_and_is_no_failure() -> None:
    with Exporter("--no-discover") as exporter:
        said = exporter.logged("not found", what="GPUs")

        assert said["cause"] in {"library", "driver"}
        assert exporter.value("llm_up") is None


def test_check_shows_gpus(tmp_path: Path, nvml: Path) -> None:
    machine = nvml_library.Description(tmp_path / "gpus", nvml_library.fixture("h100"))
    checked = check("--no-discover", "--format", "json", extra=machine.environment(nvml))
    (source,) = json.loads(checked.stdout)["sources"]

    assert (checked.returncode, source["target"], source["engine"]) == (0, "nvml", "nvml")
    assert {point["metric"] for point in source["points"]} >= {"llm_gpu_memory_reserved_bytes", "llm_gpu_power_watts"}
