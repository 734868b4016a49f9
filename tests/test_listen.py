"""Sockets that listen, calls in threads of their own, and TLS of connections that we open."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from bounded import run
from free_port import has_ipv6
from llm_headroom.net.listen import BACKLOG, ListenError, bind, bind_all, bound_address, hold
from llm_headroom.net.threads import in_thread
from llm_headroom.net.tls import TlsFileError, client_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


def closed(listeners: Iterable[socket.socket]) -> None:
    for each in listeners:
        each.close()


# Addresses -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "address",
    ["", "9836", ":65536", ":123456", "h:", "[::1]", "[]:1", "::1:1", "[[::1]]:1", "h:1x", "h:-1", "[::1:1", "h]:1"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    async def test() -> None:
        with pytest.raises(ListenError, match="is not a valid listen address"):
            await bind(address)

    run(test())


@pytest.mark.parametrize("address", ["127.0.0.1:65535", "127.0.0.1:00000"])
def test_every_port_is_valid(address: str) -> None:
    async def test() -> None:
        said = ""
        try:
            closed(await bind(address))
        except ListenError as error:  # somebody else may have it
            said = str(error)
        assert "not a valid" not in said

    run(test())


def test_a_host_without_sockets_of_both_families_listens_on_every_address_of_the_older(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)

    async def test() -> None:
        (listener,) = await bind(":0")
        assert bound_address(listener).rpartition(":")[0] == "0.0.0.0"
        listener.close()

    run(test())


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
@pytest.mark.parametrize(
    ("address", "bound", "only"),
    [(":0", "[::]", 0), ("[::]:0", "[::]", 0), ("[::1]:0", "[::1]", 1), ("0.0.0.0:0", "0.0.0.0", None)],
)
def test_every_address_is_of_both_families_and_one_is_of_its_own(address: str, bound: str, only: int | None) -> None:
    async def test() -> None:
        (listener,) = await bind(address)
        assert bound_address(listener).rpartition(":")[0] == bound
        assert listener.gettimeout() == 0.0
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        if only is not None:
            assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only
        listener.close()

    run(test())


def test_a_port_is_free_again_while_its_connections_end() -> None:
    async def test() -> None:
        (listener,) = await bind("127.0.0.1:0")
        address = bound_address(listener)
        with socket.create_connection(listener.getsockname()) as client:
            await asyncio.sleep(0)
            accepted, _ = listener.accept()
            accepted.close()  # the side that closes first is the one whose port waits
            assert client.recv(1) == b""
        listener.close()
        closed(await bind(address))

    run(test())


def test_a_port_that_is_held_neither_listens_nor_is_free() -> None:
    async def test() -> None:
        with hold(socket.AF_INET, ("127.0.0.1", 0)) as held:
            assert held.gettimeout() == 0.0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(held.getsockname()).close()
            held.listen()
            with pytest.raises(ListenError, match="the address is in use"):
                await bind(bound_address(held))
            with pytest.raises(OSError, match="in use") as raised:
                hold(socket.AF_INET, held.getsockname())
            assert raised.value.errno == errno.EADDRINUSE

    run(test())


def test_where_one_address_cannot_be_had_none_stays_bound() -> None:
    async def test() -> None:
        with hold(socket.AF_INET, ("127.0.0.1", 0)) as free, hold(socket.AF_INET, ("127.0.0.1", 0)) as taken:
            address, other = bound_address(free), bound_address(taken)
            free.close()
            taken.listen()
            with pytest.raises(ListenError, match=f"cannot listen on {other}: the address is in use"):
                await bind_all([address, other])
            closed(await bind_all([address]))
            with pytest.raises(ListenError, match="no address"):
                await bind_all([])

    run(test())


class Names(ThreadPoolExecutor):
    """A name server that knows `host.example` by these addresses."""

    def __init__(self, *addresses: str) -> None:
        super().__init__(1)
        self.addresses = addresses

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 - the base's
        """Answer for the one name."""
        if fn is not socket.getaddrinfo or args[0] != "host.example":
            return super().submit(fn, *args, **kwargs)
        future: Future[object] = Future()
        future.set_result([(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, args[1])) for each in self.addresses])
        return future


NOT_HERE = "192.0.2.1"
"""An address of documents, which no host has."""


@pytest.mark.parametrize(
    ("addresses", "bound"),
    [
        (("127.0.0.1", "127.0.0.2"), ["127.0.0.1", "127.0.0.2"]),
        (("127.0.0.1", "127.0.0.1"), ["127.0.0.1"]),
        ((NOT_HERE, "127.0.0.1"), ["127.0.0.1"]),
        (("127.0.0.1", NOT_HERE), ["127.0.0.1"]),
        ((NOT_HERE,), None),
    ],
)
def test_a_name_is_listened_on_at_each_of_its_addresses_that_there_is(
    addresses: tuple[str, ...], bound: list[str] | None
) -> None:
    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(Names(*addresses))
        if bound is None:
            with pytest.raises(ListenError, match="EADDRNOTAVAIL"):
                await bind("host.example:0")
            return
        listeners = await bind("host.example:0")
        assert [bound_address(each).rpartition(":")[0] for each in listeners] == bound
        closed(listeners)

    run(test())


def test_a_name_whose_addresses_are_not_all_free_is_not_listened_on() -> None:
    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(Names("127.0.0.2", "127.0.0.1"))
        with hold(socket.AF_INET, ("127.0.0.1", 0)) as taken:
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ListenError, match=f"cannot listen on host.example:{port}: the address is in use"):
                await bind(f"host.example:{port}")
            closed(await bind(f"127.0.0.2:{port}"))

    run(test())


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_a_port_that_one_family_has_taken_is_not_listened_on_by_the_other_alone() -> None:
    async def test() -> None:
        with socket.socket(socket.AF_INET6) as taken:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind(("::", 0))
            taken.listen()
            with pytest.raises(ListenError, match="the address is in use"):
                await bind(f":{taken.getsockname()[1]}")

    run(test())


def test_connections_wait_in_a_queue_that_a_burst_does_not_fill() -> None:
    assert 64 <= BACKLOG <= 1024


# Threads -------------------------------------------------------------------------------------------------------------
def test_a_blocking_call_has_a_thread_of_its_own_name_and_its_result_or_error() -> None:
    async def test() -> None:
        assert await in_thread(lambda: threading.current_thread().name, "reader") == "reader"
        await in_thread(lambda: None, "reader")
        with pytest.raises(SystemExit):
            await in_thread(sys.exit, "reader")

    run(test())


def test_a_call_that_nobody_waits_for_any_more_ends_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        gate, over = threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            assert gate.wait(60)
            loop.call_soon_threadsafe(lambda: loop.call_soon(loop.call_soon, over.set))

        future = in_thread(work, "late")
        future.cancel()
        gate.set()
        await over.wait()

    run(test())
    assert caplog.records == []


def test_a_call_that_blocks_for_ever_does_not_keep_the_process() -> None:
    program = (
        "import asyncio, threading\n"
        "from llm_headroom.net.threads import in_thread\n"
        "async def main():\n"
        "    in_thread(threading.Event().wait, 'stuck')\n"
        "asyncio.run(main())\n"
        "print('ended')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=90)
    assert (done.stdout, done.stderr) == ("ended\n", "")


def test_a_call_that_ends_after_the_loop_ends_in_silence() -> None:
    gate, ended = threading.Event(), threading.Event()
    seen: list[object] = []
    before = threading.excepthook

    def work() -> None:
        assert gate.wait(60)

    async def begin() -> None:
        in_thread(work, "late")

    threading.excepthook = seen.append
    try:
        asyncio.run(begin())
        (thread,) = [each for each in threading.enumerate() if each.name == "late"]
        gate.set()
        thread.join(60)
        ended.set()
    finally:
        threading.excepthook = before
    assert not seen


# TLS -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Tls:
    """What a client is configured with."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure_skip_verify: bool = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, client.crt, client.key, both in client.pem, other.key, and text.pem."""
    path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(path / "ca.pem")
    issued = authority.issue_cert("client")
    issued.private_key_and_cert_chain_pem.write_to_path(path / "client.pem")
    issued.private_key_pem.write_to_path(path / "client.key")
    issued.cert_chain_pems[0].write_to_path(path / "client.crt")
    authority.issue_cert("other").private_key_pem.write_to_path(path / "other.key")
    (path / "text.pem").write_text("text")
    return path


def test_a_server_is_verified_unless_that_is_turned_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for skip, mode in ((False, ssl.CERT_REQUIRED), (True, ssl.CERT_NONE)):
        context = client_context(Tls(ca_file=folder / "ca.pem", insecure_skip_verify=skip))
        assert (context.verify_mode, context.check_hostname) == (mode, not skip)
    assert client_context(Tls(ca_file=folder / "ca.pem")).cert_store_stats()["x509_ca"] == 1
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(folder / "none"))
    assert client_context(Tls()).cert_store_stats()["x509_ca"] == 0


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, ""),
        ({"cert_file": "client.pem"}, ""),
        ({"cert_file": "client.crt", "key_file": "client.key"}, ""),
        ({"cert_file": "client.crt"}, "cannot use file {0}/client.crt: its key does not fit or is encrypted"),
        ({"cert_file": "client.crt", "key_file": "other.key"}, "cannot use file {0}/client.crt: its key does not fit"),
        ({"ca_file": "text.pem"}, "cannot use file {0}/text.pem: it holds no certificate in PEM"),
        ({"ca_file": "none.pem"}, "cannot read file {0}/none.pem: No such file"),
        ({"cert_file": "none.pem"}, "cannot read file {0}/none.pem: No such file"),
        ({"cert_file": "client.crt", "key_file": "none.pem"}, "cannot read file {0}/none.pem: No such file"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_cannot_be_used_is_named(folder: Path, files: dict[str, str], problem: str, *, skip: bool) -> None:
    tls = Tls(**{name: folder / file for name, file in files.items()}, insecure_skip_verify=skip)
    unused = skip and "text.pem" in files.values()  # no authority is looked at where none is asked
    if not problem or unused:
        client_context(tls)
    else:
        with pytest.raises(TlsFileError) as raised:
            client_context(tls)
        assert str(raised.value).startswith(problem.format(folder))
