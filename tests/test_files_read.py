"""Files that whoever runs the exporter may replace: none of them stops all else, and none needs `/proc`."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trustme

import bounded
from exporter_process import Exporter
from llm_headroom.config.endpoint import Basic, Bearer, Secret, Tls
from llm_headroom.config.errors import Problems
from llm_headroom.config.yaml_nodes import Document, root
from llm_headroom.net.files import content
from llm_headroom.net.threads import in_thread
from llm_headroom.net.tls import client_context
from llm_headroom.scrape.credentials import authorization
from llm_headroom.web.access import Access
from llm_headroom.web.config import parse
from llm_headroom.web.users import Proved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType


@contextmanager
def alarm() -> Iterator[None]:
    """Something that must not wait for anything outside: it is interrupted if it does."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(bounded.LIMIT // 2)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def settings(path: Path) -> object:
    """The configuration."""
    return root(path, Document(Problems(), lambda _role, _name: None, lambda _value, _place: None))


def web(path: Path) -> object:
    """The web configuration, or one of its files."""
    if path.name == "web.yml":
        return parse(path)
    text = "tls_server_config: {cert_file: cert, key_file: key}\n"
    (path.parent / "web.yml").write_text(text)
    return Access(parse(path.parent / "web.yml"), Proved())


def pair(folder: Path) -> None:
    """Writes a certificate and its key."""
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(folder / "cert")
    issued.private_key_pem.write_to_path(folder / "key")


READERS: dict[str, Callable[[Path], object]] = {
    "config.yml": settings,
    "web.yml": web,
    "cert": web,
    "key": web,
    "token": lambda path: authorization(Bearer(Secret(file=path))),
    "password": lambda path: authorization(Basic("name", Secret(file=path))),
    "ca": lambda path: client_context(Tls(ca_file=path)),
    "shown": lambda path: client_context(Tls(cert_file=path, key_file=path.parent / "key")),
}
"""By the name of a file: what reads it while engines are polled and clients are answered."""


@pytest.mark.parametrize("name", READERS)
def test_a_fifo_in_a_file_s_place_is_refused_where_all_would_wait_for_it(tmp_path: Path, name: str) -> None:
    pair(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)

    async def test() -> None:
        with alarm(), pytest.raises(Exception, match=f"{name}.*is a FIFO"):  # of each reader's own kind
            READERS[name](tmp_path / name)

    bounded.run(test())


def test_a_fifo_is_refused_in_a_thread_beside_what_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yml")

    async def test() -> None:
        async with asyncio.timeout(bounded.LIMIT // 2):
            with pytest.raises(OSError, match="is a FIFO"):
                await in_thread(lambda: content(tmp_path / "config.yml"), "reload")

    bounded.run(test())


def test_a_fifo_is_as_good_as_any_file_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"{}",), daemon=True)
    writer.start()
    with alarm():
        assert content(path) == b"{}"
    writer.join(bounded.LIMIT)


def test_a_file_may_be_so_long_and_no_longer(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert content(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="is larger than 4 bytes") as raised:
        content(tmp_path / "file", 4)
    assert raised.value.errno == errno.EFBIG
    with pytest.raises(IsADirectoryError):
        content(tmp_path)


SERVES = """
import sys
from pathlib import Path
from llm_headroom.config.errors import ConfigError
from llm_headroom.web.access import Access
from llm_headroom.web.config import parse
from llm_headroom.web.users import Proved
try:
    print(Access(parse(Path(sys.argv[1])), Proved()).tls is not None)
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls_server_config: {cert_file: cert, key_file: key}", "True"),
        (
            'tls_server_config: {cert: "-----BEGIN CERTIFICATE-----", key_file: key}',
            "tls_server_config.cert: text can be used only where /proc is mounted; give files instead",
        ),
    ],
)
def test_tls_needs_no_proc(tmp_path: Path, text: str, said: str) -> None:
    hidden = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")
    if subprocess.run([*hidden, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespace in which /proc could be hidden (unshare -rm)")
    pair(tmp_path)
    (tmp_path / "web.yml").write_text(text)
    command = [*hidden, sys.executable, "-c", SERVES, str(tmp_path / "web.yml")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout
    assert shown.strip().endswith(said)


def test_files_that_changed_while_descriptors_were_short_are_read_when_there_are_some(tmp_path: Path) -> None:
    web, main, shown = tmp_path / "web.yml", tmp_path / "main.yml", tmp_path / "client.pem"
    settings = "gpu: false\nhost: false\nweb_config: web.yml\ntargets: [{url: 'https://127.0.0.1:9', engine: vllm"
    web.write_text("http_server_config: {headers: {X-Frame-Options: deny}}\n")
    main.write_text(f"{settings}}}]\n")
    shown.write_bytes(trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    with Exporter("--config", str(main), strict=False) as exporter:
        host, port = exporter.url.removeprefix("http://").split(":")
        client = http.client.HTTPConnection(host, int(port), timeout=bounded.LIMIT)

        def framing() -> str | None:
            client.request("GET", "/-/healthy")
            answer = client.getresponse()
            answer.read()
            return answer.getheader("X-Frame-Options")

        assert framing() == "deny"
        _, most = limits = resource.prlimit(exporter.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(exporter.process.pid, resource.RLIMIT_NOFILE, (3, most))
        web.write_text("http_server_config: {headers: {X-Frame-Options: sameorigin}}\n")
        main.write_text(f"{settings}, tls: {{cert_file: client.pem}}, labels: {{team: a}}}}]\n")
        assert framing() == "deny"
        exporter.logged("web configuration not reloaded", error=f"{web}: Too many open files")
        exporter.logged("configuration not reloaded", error=f"{main}: Too many open files")
        resource.prlimit(exporter.process.pid, resource.RLIMIT_NOFILE, limits)
        exporter.logged("configuration reloaded")
        exporter.until(lambda: framing() == "sameorigin")
        exporter.until(
            lambda: exporter.value("llm_certificate_not_after_timestamp_seconds", file=str(shown)) is not None
        )
        client.close()
        assert len([each for each in exporter.log if each["msg"].endswith("not reloaded")]) == 2
