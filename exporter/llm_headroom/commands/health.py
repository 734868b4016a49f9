"""Health check of a running exporter, for containers without a shell or curl."""

from __future__ import annotations

import os
import sys
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Final

import click

from llm_headroom.commands.exits import SOME_SOURCE_FAILED, fail
from llm_headroom.config.endpoint import Endpoint, Tls, check, parse_target
from llm_headroom.config.settings import Config
from llm_headroom.net.lean_httpx import httpx
from llm_headroom.net.tls import TlsFileError, client_context
from llm_headroom.scrape.refusals import broken, root, unconnected

ANY_ADDRESS: Final = frozenset({"", "0.0.0.0", "[::]"})
PATH: Final = "/-/healthy"
ANSWERED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS})
"""Statuses of a healthy exporter that requires a password, or that limits its rate."""


def url(listen: str | None) -> str:
    """URL of this host's exporter, from `LLM_HEADROOM_LISTEN` (the first of several addresses)."""
    first = (listen or Config().listen[0]).partition(",")[0].strip()
    host, _, port = first.rpartition(":")
    return f"http://{'127.0.0.1' if host in ANY_ADDRESS else host}:{port}"


def problem(
    exporter: str, timeout: float, *, cert_file: Path | None = None, key_file: Path | None = None
) -> str | None:
    """What is wrong with the exporter at a URL, or None. Its certificate is not looked at, and a password not needed.

    `cert_file` and `key_file` are for an exporter that insists on a client's certificate.

    Raises:
        ValueError: it is no URL, or a key has no certificate.
    """
    endpoint = Endpoint(url=exporter, tls=Tls(insecure_skip_verify=True, cert_file=cert_file, key_file=key_file))
    origin, _, prefix = parse_target(exporter)
    check(endpoint)
    address = f"{origin}{prefix}{PATH}"
    found: list[str | None] = [f"{address}: no response within {timeout:g} s"]
    # httpx's limits are per step; abandoning a thread after the timeout limits all of them together.
    thread = threading.Thread(target=lambda: found.append(_problem(address, endpoint.tls)), daemon=True)
    thread.start()
    thread.join(timeout)
    return found[-1]


def _problem(address: str, tls: Tls) -> str | None:
    encrypted = address.startswith("https:")
    try:
        with httpx.stream("GET", address, verify=client_context(tls), trust_env=False, timeout=None) as answer:
            status = answer.status_code
    except TlsFileError as error:
        return f"{address}: {error}"
    except httpx.ConnectError as error:
        return f"{address}: {unconnected(root(error), encrypted=encrypted)}"
    except httpx.NetworkError as error:
        return f"{address}: {broken(root(error))}"
    except httpx.HTTPError as error:
        hint = "" if encrypted else "; does it speak TLS (https://)?"
        return f"{address}: the response is not valid HTTP/1.1: {error}{hint}"
    return None if status == HTTPStatus.OK or status in ANSWERED else f"{PATH} returned {status}"


@click.command("health")
@click.option(
    "--url",
    "exporter",
    envvar="LLM_HEADROOM_URL",
    metavar="URL",
    help="[default: this host, by LLM_HEADROOM_LISTEN]",
)
@click.option("--timeout", type=float, default=3.0, show_default=True, help="Seconds.")
@click.option(
    "--cert-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Client certificate, if the exporter requires one.",
)
@click.option("--key-file", type=click.Path(path_type=Path), metavar="FILE", help="Private key for --cert-file.")
def command(exporter: str | None, timeout: float, cert_file: Path | None, key_file: Path | None) -> None:
    """Health check of a running exporter, for containers.

    Exit status: 0 healthy, 1 not healthy, 2 wrong usage.
    """
    try:
        address = exporter or url(os.environ.get("LLM_HEADROOM_LISTEN"))
        found = problem(address, timeout, cert_file=cert_file, key_file=key_file)
    except ValueError as error:
        fail(str(error))
    if found is not None:
        click.echo(f"llm-headroom: {found}", err=True)
        sys.exit(SOME_SOURCE_FAILED)
