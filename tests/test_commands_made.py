"""What commands make of their options, without the programs around them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import math
import threading
from itertools import takewhile
from pathlib import PosixPath
from typing import TYPE_CHECKING

import pytest
import trustme

import bounded
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import bundle, certificates, simulate
from llm_headroom.commands.certificates import Certificates
from llm_headroom.config.endpoint import Endpoint, Tls
from llm_headroom.config.people import Receiver
from llm_headroom.config.settings import Config, OtlpSettings, Target
from llm_headroom.simulate.clock import Clock
from llm_headroom.simulate.hardware import GPUS, MODELS
from llm_headroom.simulate.live import LiveEngine, LiveOllama
from llm_headroom.thresholds import DEFAULT

if TYPE_CHECKING:
    from pathlib import Path


# Simulated engines ---------------------------------------------------------------------------------------------------
def traffic(settings: simulate.Settings, until: float) -> list[tuple[str, float, int, int]]:
    """The model, arrival and tokens of the requests that come until some second."""
    server = simulate.make(settings, Clock(1.0))
    return [(model, one.arrival, one.prompt_tokens, one.output_tokens) for model, one in server.live.feed.until(until)]


@pytest.mark.parametrize("engine", simulate.SIMULATED)
def test_an_engine_is_asked_as_often_as_is_wanted(engine: str) -> None:
    wanted = simulate.Settings(engine=engine, rate=2.0)
    found = traffic(wanted, 600.0)
    assert {model for model, *_ in found} == {"llama-3-8b:latest" if engine == "ollama" else ""}
    assert len(found) == pytest.approx(1200, rel=0.1)
    assert sorted(prompt for *_, prompt, _ in found)[len(found) // 2] == pytest.approx(500, rel=0.1)
    assert sorted(output for *_, output in found)[len(found) // 2] == pytest.approx(200, rel=0.1)
    assert traffic(dataclasses.replace(wanted, seed=1), 600.0) != found
    assert traffic(dataclasses.replace(wanted, rate=None), 600.0) == []


def test_a_trace_is_replayed_again_and_again_at_a_rate(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,1\n2,20,2\n")
    found = traffic(simulate.Settings(trace=str(trace)), 7.5)
    assert [(round(at), prompt) for _, at, prompt, _ in found] == [(0, 10), (2, 20), (3, 10), (5, 20), (6, 10)]
    found = traffic(simulate.Settings(trace=str(trace), rate=2.0), 3.5)
    assert [(round(at), prompt) for _, at, prompt, _ in found] == [(0, 10), (1, 20), (2, 10), (3, 20)]
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n")
    with pytest.raises(ValueError, match="has no requests"):
        simulate.make(simulate.Settings(trace=str(trace)), Clock(1.0))
    bundled = traffic(simulate.Settings(trace="azure_conv"), 30.0)
    assert bundled == [*takewhile(lambda each: each[1] <= 30.0, bundled)]
    assert len(bundled) > 30


def test_an_engine_is_made_as_it_is_wanted() -> None:
    settings = simulate.Settings(gpu="h100")
    for engine in ("vllm", "sglang"):
        live = simulate.make(dataclasses.replace(settings, engine=engine), Clock(1.0)).live
        assert isinstance(live, LiveEngine)
        config = live.engine.config
        assert (config.scheduler, config.cost.gpu) == (engine, GPUS["h100"])  # type: ignore[attr-defined]
    live = simulate.make(simulate.Settings(engine="ollama", gpu="l4"), Clock(1.0)).live
    assert isinstance(live, LiveOllama)
    ollama = live.server.config
    assert (ollama.gpu, ollama.models) == (GPUS["l4"], {"llama-3-8b:latest": MODELS["llama-3-8b"]})


def test_clients_keep_an_engine_busy() -> None:
    for clients in (0, 3):
        server = simulate.make(simulate.Settings(clients=clients), Clock(1.0))
        server.live.catch_up()
        reading = server.live.read()
        assert reading.running + reading.waiting == clients  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="--clients is for vLLM and SGLang"):
        simulate.make(simulate.Settings(engine="ollama", clients=1), Clock(1.0))


# The bundle ----------------------------------------------------------------------------------------------------------
def test_thresholds_and_the_factor_on_times_are_numbers_that_can_be() -> None:
    made = bundle.settings(["kv_usage_high=0.5"], 'a="b", c!~"d.*"', for_scale=0.5)
    assert made == BundleSettings(
        thresholds=dataclasses.replace(DEFAULT, kv_usage_high=0.5), selector='a="b", c!~"d.*"', for_scale=0.5
    )
    assert bundle.settings([], "") == BundleSettings()
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="for-scale: expected a number above 0"):
            bundle.settings([], "", for_scale=wrong)
    for wrong_text in ("inf", "-inf", "x", ""):
        with pytest.raises(ValueError, match="kv_usage_high: expected a number"):
            bundle.settings([f"kv_usage_high={wrong_text}"], "")
    assert {name.partition("/")[0] for name in bundle.files(BundleSettings(), ["alerts"])} == {"alerts"}


def test_a_file_is_renewed_unless_somebody_has_edited_it(tmp_path: Path) -> None:
    def sums() -> dict[str, str]:
        lines = (tmp_path / bundle.WRITTEN).read_text().splitlines()
        return {name: digest for digest, name in (line.split("  ") for line in lines)}

    bundle.renew(tmp_path, {"b/c": "1", "a": "1"})
    assert [*sums()] == ["a", "b/c"]
    bundle.renew(tmp_path, {"a": "2"})
    assert ((tmp_path / "a").read_text(), (tmp_path / "b/c").read_text()) == ("2", "1")
    assert sums() == {"a": hashlib.sha256(b"2").hexdigest(), "b/c": hashlib.sha256(b"1").hexdigest()}
    (tmp_path / "a").write_text("ours")
    with pytest.raises(ValueError, match=r"^a: edited since it was written; --force overwrites it$"):
        bundle.renew(tmp_path, {"a": "3", "d": "1"})
    assert ((tmp_path / "a").read_text(), (tmp_path / "d").exists()) == ("ours", False)
    bundle.renew(tmp_path, {"a": "ours"})
    bundle.renew(tmp_path, {"a": "4"})
    (tmp_path / "a").write_text("ours again")
    bundle.renew(tmp_path, {"a": "5"}, force=True)
    assert (tmp_path / "a").read_text() == "5"
    (tmp_path / "e").write_text("somebody's")
    with pytest.raises(ValueError, match=r"^e: edited"):
        bundle.renew(tmp_path, {"e": "1"})
    (tmp_path / bundle.WRITTEN).write_text("nonsense\n\n")
    bundle.renew(tmp_path, {"a": "5"})
    assert [*sums()] == ["a"]


# Certificates --------------------------------------------------------------------------------------------------------
DAY = 86_400.0
AUTHORITY = trustme.CA()


def certificate(path: Path, days: float, *, whole: float = 1000.0) -> Path:
    """A certificate that runs out in so many days, and is valid for so many as a whole."""
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    issued = AUTHORITY.issue_cert("localhost", not_before=end - dt.timedelta(days=whole), not_after=end)
    path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    return path


@pytest.mark.parametrize(
    ("days", "whole", "said"),
    [
        (DEFAULT.certificate_soon / DAY + 1, 1000.0, None),
        (DEFAULT.certificate_soon / DAY - 0.1, 1000.0, "runs out in "),
        (10 * DEFAULT.certificate_share + 0.5, 10.0, None),
        (10 * DEFAULT.certificate_share - 0.5, 10.0, "runs out in "),
        (-3.001, 1000.0, "ran out 3 d ago"),
        (1003.001, 1000.0, "is not valid before 3 d have passed"),
    ],
)
def test_what_runs_out_soon_is_said(tmp_path: Path, days: float, whole: float, said: str | None) -> None:
    file = certificate(tmp_path / "a.pem", days, whole=whole)
    target = Target(name="a", endpoint=Endpoint(url="https://a", tls=Tls(cert_file=file)))
    certificates = Certificates(lambda: Config(targets=(target,)))
    bounded.run(certificates.look())
    found = [*certificates.problems()]
    assert [each.startswith(f"The certificate in {file} {said}") for each in found] == ([] if said is None else [True])


def test_a_look_at_a_disk_that_hangs_ends_and_the_next_one_finds_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    class Hanging(PosixPath):
        def __fspath__(self) -> str:
            answers.wait(bounded.LIMIT)
            return super().__fspath__()

    file = Hanging(certificate(tmp_path / "a.pem", 90.0))
    target = Target(name="a", endpoint=Endpoint(url="https://a", tls=Tls(cert_file=file)))
    looking = Certificates(lambda: Config(targets=(target,)))
    monkeypatch.setattr(certificates, "LOOK_AGAIN", 0.01)
    bounded.run(looking.look())
    assert [*looking.points()] == []
    answers.set()
    monkeypatch.setattr(certificates, "LOOK_AGAIN", bounded.LIMIT)
    bounded.run(looking.look())
    assert len([*looking.points()]) == 2


def test_every_certificate_that_is_shown_is_looked_at_once(tmp_path: Path) -> None:
    served, shown, pushed, told = (certificate(tmp_path / f"{name}.pem", 90.0) for name in ("s", "t", "p", "n"))
    web = tmp_path / "web.yml"
    web.write_text(f"tls_server_config: {{cert_file: {served}, key_file: {served}}}\n")
    targets = [Target(name=name, endpoint=Endpoint(url="https://a", tls=Tls(cert_file=shown))) for name in "ab"]
    bare = Target(name="c", endpoint=Endpoint(url="https://a"))
    missing = Target(name="d", endpoint=Endpoint(url="https://a", tls=Tls(cert_file=tmp_path / "none.pem")))
    config = Config(
        web_config=web,
        targets=(*targets, bare, missing),
        notify=(Receiver(url="https://a", tls=Tls(cert_file=told)),),
        otlp=OtlpSettings(endpoint="https://a", tls=Tls(cert_file=pushed)),
    )
    certificates = Certificates(lambda: config)

    def files() -> list[str]:
        bounded.run(certificates.look())
        names = [point.series.label("file") for point in certificates.points()]
        assert names[::2] == names[1::2], "a begin and an end of each"
        return names[::2]

    assert files() == [str(each) for each in (served, shown, told, pushed)]
    web.write_text("tls_server_config: {cert_file: none}\n")
    assert files()[0] == str(shown)
    web.write_text("basic_auth_users: {}\n")
    assert files()[0] == str(shown)
    config = Config()
    assert files() == []
