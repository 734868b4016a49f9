"""Which engine answers at an address: by the names of its metrics, else by what its API says of itself.

What answers and is none of the engines is described all the same: a wrong port is the commonest mistake.
"""

from __future__ import annotations

import re
import time
from html import unescape
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from llm_headroom.engines.answers import NotUnderstood, decode
from llm_headroom.engines.openai_api import MODELS
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Cause, Failure
from llm_headroom.scrape.credentials import HINT
from llm_headroom.scrape.http import Client, FetchError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from llm_headroom.config.endpoint import Endpoint
    from llm_headroom.engines.rules import Engine
    from llm_headroom.scrape.http import Response

LONGEST_TITLE: Final = 60
MOST_LOOKED_AT: Final = 1 << 19
"""Bytes of an exposition: its first names show whose it is."""
_OTHER_EXPORTERS: Final = {
    "llm_up": "another llm-headroom",
    "grafana_": "Grafana's own metrics",
    "prometheus_": "Prometheus' own metrics",
    "alertmanager_": "Alertmanager's own metrics",
    "DCGM_FI_": "NVIDIA's dcgm-exporter",
    "nvidia_smi_": "nvidia_gpu_exporter",
    "node_": "node_exporter",
    "litellm_": "LiteLLM's proxy",
    "envoy_": "Envoy",
    "nv_inference_": "NVIDIA's Triton",
    "tgi_": "Text Generation Inference, an engine that is not built in",
    "vllm_mlx_": "vllm-mlx, an engine that is not built in",
}
"""Prefix of a metric's name → who exposes such metrics; the first one that is found speaks."""
_TITLE: Final = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_HTML: Final = re.compile(r"\s*(<!doctype html|<html|<head|<body)", re.IGNORECASE)
_LOGIN: Final = re.compile(r"type=[\"']?password|\b(log|sign) ?in\b", re.IGNORECASE)


class Look(NamedTuple):
    """What answers at an address: an engine, or what it looks like, in words (empty if like nothing that is known)."""

    engine: Engine | None
    like: str
    statuses: tuple[int, ...]

    @property
    def words(self) -> str:
        """For a message: `this looks like vLLM`; empty if nothing can be said."""
        like = self.engine.title if self.engine is not None else self.like
        return f"this looks like {like}" if like else ""


async def look(client: Client, engines: Iterable[Engine], deadline: float) -> Look:
    """What answers, with at most three requests until a deadline of the monotonic clock.

    Raises:
        FetchError: nothing answers.
    """
    engines = tuple(engines)

    async def get(path: str) -> Response:
        return await client.get(path, timeout=max(deadline - time.monotonic(), 0.001))

    metrics = await get("/metrics")
    names = _names(metrics)
    engine = next((engine for engine in engines if engine.recognises(names)), None)
    if engine is not None:
        return Look(engine, "", (metrics.status,))
    models = await get("/v1/models")
    engine = _by_owner(models, engines)
    if engine is not None:
        return Look(engine, "", (metrics.status, models.status))
    root = await get("/")
    like = _exporter(names) or _page(metrics) or _page(root)
    return Look(_by_greeting(root, engines), like, (metrics.status, models.status, root.status))


async def identify(
    endpoint: Endpoint,
    engines: Mapping[str, Engine],
    *,
    timeout: float,  # noqa: ASYNC109 - one deadline over several requests
) -> Engine:
    """The engine at an endpoint, with at most three requests within `timeout` seconds.

    Raises:
        FetchError: nothing answers there, it wants credentials (AUTH), or it is none of the engines (NOT_THIS_ENGINE).
    """
    client = Client(endpoint)
    try:
        found = await look(client, engines.values(), time.monotonic() + timeout)
    except FetchError as failed:
        cause, message = failed.failure
        raise FetchError(Failure(cause, message + without_port(endpoint.url, engines.values()))) from None
    finally:
        await client.close()
    if found.engine is not None:
        return found.engine
    raise FetchError(_stranger(endpoint, found, engines.values()))


def without_port(url: str, engines: Iterable[Engine]) -> str:
    """What to add to a failure where the URL has no port, which is seldom what was meant; empty if it has one."""
    parts = urlsplit(url)
    if parts.port is not None:
        return ""
    ports = ", ".join(f"{engine.title} {engine.port}" for engine in engines if engine.port)
    return f"; the URL has no port, so {443 if parts.scheme == 'https' else 80} was tried (usual: {ports})"


def _stranger(endpoint: Endpoint, found: Look, engines: Iterable[Engine]) -> Failure:
    if HTTPStatus.UNAUTHORIZED in found.statuses:
        return Failure(Cause.AUTH, f"{endpoint.url} answered 401: {HINT}")
    if set(found.statuses) == {HTTPStatus.FORBIDDEN}:
        hint = next((hint for engine in engines if (hint := engine.hints.get(HTTPStatus.FORBIDDEN))), "")
        return Failure(Cause.AUTH, f"{endpoint.url} answered 403 to every path; {found.words or hint}")
    known = ", ".join(each.title for each in engines)
    return Failure(
        Cause.NOT_THIS_ENGINE,
        f"{endpoint.url} answers (/metrics with {found.statuses[0]}), but could not be identified as any of {known}"
        + (f"; {found.words}" if found.words else "")
        + "; check the port, or name its engine: --target ENGINE=URL; one that is not built in is described under "
        "`engines` of the configuration",
    )


def _names(response: Response) -> Collection[str]:
    if response.status != HTTPStatus.OK:
        return frozenset()
    return {key.name for key in Parser().parse(response.body[:MOST_LOOKED_AT]).layout.keys}


def _by_owner(response: Response, engines: Iterable[Engine]) -> Engine | None:
    try:
        owners = {model.owned_by for model in decode(MODELS, response.body)}
    except NotUnderstood:
        return None
    return next((engine for engine in engines if engine.owned_by and engine.owned_by in owners), None)


def _by_greeting(response: Response, engines: Iterable[Engine]) -> Engine | None:
    text = response.body[:200].decode("utf-8", "replace")
    return next((engine for engine in engines if engine.greeting and engine.greeting in text), None)


def _exporter(names: Collection[str]) -> str:
    """Whose metrics these are, if they are not an engine's."""
    for prefix, who in _OTHER_EXPORTERS.items():
        if any(name.startswith(prefix) for name in names):
            return who
    return f"the metrics of something else ({min(names)}, …)" if names else ""


def _page(response: Response) -> str:
    """What a web page is."""
    text = response.body[:20_000].decode("utf-8", "replace")
    if not _HTML.match(text):
        return ""
    title = _TITLE.search(text)
    name = " ".join(unescape(title[1]).split())[:LONGEST_TITLE] if title else ""
    name = "".join(letter for letter in name if letter.isprintable())
    what = "a login page" if _LOGIN.search(text) else "a web page"
    return f"{what} ({name})" if name else what
