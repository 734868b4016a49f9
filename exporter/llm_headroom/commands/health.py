"""Whether an exporter answers: the health check of containers, in which no shell and no curl need to be."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import click

from llm_headroom.commands.exits import SOME_SOURCE_FAILED, fail
from llm_headroom.config.endpoint import Endpoint, Tls
from llm_headroom.config.settings import Config
from llm_headroom.scrape.http import Client, FetchError

ANY_ADDRESS: Final = frozenset({"", "0.0.0.0", "[::]"})
OK: Final = 200
ANSWERED: Final = frozenset({401, 429})
"""Statuses of an exporter that is well and wants a password first, or has been asked too much."""


def url(listen: str | None) -> str:
    """Where the exporter of this host is, by its setting `LLM_HEADROOM_LISTEN` (of several addresses the first)."""
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
    tls = Tls(insecure_skip_verify=True, cert_file=cert_file, key_file=key_file)
    return asyncio.run(_problem(Client(Endpoint(url=exporter, tls=tls)), timeout))


async def _problem(client: Client, timeout: float) -> str | None:  # noqa: ASYNC109 - the client keeps it
    try:
        answer = await client.get("/-/healthy", timeout=timeout)
    except FetchError as error:
        return str(error)
    finally:
        await client.close()
    return None if answer.status == OK or answer.status in ANSWERED else f"/-/healthy answered {answer.status}"


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
    """Tell whether an exporter answers: a container's health check.

    Exit status: 0 it does, 1 it does not, 2 the usage is wrong.
    """
    try:
        address = exporter or url(os.environ.get("LLM_HEADROOM_LISTEN"))
        found = problem(address, timeout, cert_file=cert_file, key_file=key_file)
    except ValueError as error:
        fail(str(error))
    if found is not None:
        click.echo(f"llm-headroom: {found}", err=True)
        sys.exit(SOME_SOURCE_FAILED)
