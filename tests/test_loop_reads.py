"""No disk that hangs stops polls: which files the thread of the event loop looks at once the exporter listens."""

from __future__ import annotations

import os
import signal
import ssl
import sys
import sysconfig
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

import loop_reads
from exporter_process import Exporter
from free_port import free_port
from otlp_receiver import HttpReceiver
from scripted_server import EngineServer, reply, running
from webhook_receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Iterable

METRICS = reply(b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n")
BY_THE_KERNEL = ("/proc/", "/sys/", "/dev/null")
"""On no disk."""
BY_PYTHON = tuple(
    {f"{Path(each).resolve()}/" for each in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())}
)
"""Its own modules and ours: where these cannot be read, nothing runs."""


def ours(files: Iterable[str]) -> set[str]:
    """Those that may lie on a disk of somebody's."""
    package = f"{Path(__file__).resolve().parents[1]}/exporter/"
    return {each for each in files if not each.startswith((*BY_THE_KERNEL, *BY_PYTHON, package))}


def test_what_may_be_replaced_is_read_beside_the_event_loop(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    for name in ("served.pem", "shown.pem"):
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / name)
    served, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    issued.configure_cert(served)
    authority.configure_trust(trusting)
    (tmp_path / "token").write_text("token")
    (tmp_path / "word").write_text("w")
    (tmp_path / "header").write_text("7")
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: served.pem, key_file: served.pem}\n")
    tls = "tls: {ca_file: ca.pem, cert_file: shown.pem, key_file: shown.pem}"
    with (
        free_port() as proxy,
        free_port() as refused,
        running(EngineServer({"/metrics": METRICS, "/b/metrics": METRICS}, tls=served)) as engine,
        Receiver(tls=served) as receiver,
        HttpReceiver(tls=served) as collector,
    ):
        (tmp_path / "hook").write_text(receiver.url)
        main = tmp_path / "main.yml"
        main.write_text(f"""
            gpu: false
            web_config: web.yml
            interval: 200ms
            targets:
             - {{name: up, url: "{engine.url}", engine: vllm, {tls}, auth: {{bearer_token_file: token}}}}
             - {{name: b, url: "{engine.url}/b", engine: vllm, {tls}, auth: {{username: a, password_file: word}}}}
             - {{name: system, url: "{engine.url}/c", engine: vllm}}
             - {{name: down, url: "http://127.0.0.1:{refused}", engine: vllm}}
            proxies: [{{listen: "127.0.0.1:{proxy}", target: up}}]
            notify: [{{url_file: hook, least: warning, after: 100ms, {tls}, auth: {{bearer_token_file: token}}}}]
            otlp: {{endpoint: "{collector.url}", interval: 200ms, {tls}, headers_file: {{tenant: header}}}}
            """)
        with Exporter("--config", str(main), tls=trusting, through=loop_reads.__file__) as exporter:
            exporter.until(lambda: exporter.value("llm_up", target="b") == 1)
            exporter.until(lambda: exporter.value("llm_up", target="system") == 0)
            with urllib.request.urlopen(f"http://127.0.0.1:{proxy}/metrics", timeout=90) as answer:
                assert answer.status == 200
            collector.wait()
            exporter.logged("notification sent")
            for each in tmp_path.iterdir():
                os.utime(each, (1.0, 1.0))
            exporter.process.send_signal(signal.SIGHUP)
            exporter.logged("configuration reloaded")
            exporter.get("/")
            exporter.logged("web configuration reloaded")
            exporter.until(lambda: exporter.value("llm_up", target="up") == 1)
        listens = next(number for number, line in enumerate(exporter.log) if line["msg"] == "listening")
        seen = {line["file"] for line in exporter.log[listens:] if line["msg"] == loop_reads.SAID}

    assert "/proc/self/fd" in seen, "what the kernel shows is looked at there: so what is looked at is seen"
    assert ours(seen) == set()
