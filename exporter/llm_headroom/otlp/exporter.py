"""What blocks: readings become the SDK's data, and its exporter takes them to the collector."""

from __future__ import annotations

import logging
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.util.re import parse_env_headers

from llm_headroom.model import Cause
from llm_headroom.net.echoes import hidden
from llm_headroom.otlp.conventions import conventional
from llm_headroom.otlp.cumulative import Starts
from llm_headroom.otlp.data import metrics_data, reading
from llm_headroom.otlp.options import GRPC
from llm_headroom.otlp.outcome import Drop, Outcome
from llm_headroom.otlp.resource import resource
from llm_headroom.scrape.credentials import authorization, secret_text
from llm_headroom.scrape.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.sdk.metrics.export import MetricExporter

    from llm_headroom.config.endpoint import Secret
    from llm_headroom.model import Point
    from llm_headroom.otlp.data import Reading
    from llm_headroom.otlp.options import Options


log = logging.getLogger("llm_headroom")
_FILES: Final = tuple(
    f"OTEL_EXPORTER_OTLP_{kind}{name}" for kind in ("METRICS_", "") for name in ("CLIENT_KEY", "CLIENT_CERTIFICATE")
)
"""Variables that name files of keys: people write the key itself in the name's place."""
_ATTEMPTS: Final = 16
"""Lines of the SDK's log that are looked at after an export: one for each attempt, of which it makes six."""


class _Log(logging.Handler):
    """Withholds the SDK's log: failures are logged once by `push`, and some of its lines show secrets."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = deque[logging.LogRecord](maxlen=_ATTEMPTS)
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Hold it."""
        self._lines.append(record)

    def taken(self) -> list[logging.LogRecord]:
        """The last lines since the call before."""
        lines = list(self._lines)
        self._lines.clear()
        return lines


_LOG: Final = _Log()


class Exporter:
    """Pushes readings with some options. `port` is the one that we serve on, `began` when this process started.

    Its calls block. One at a time, from whatever thread, but for `interrupt`.

    Raises:
        Exception: whatever the SDK raises at settings that it cannot work with.
    """

    def __init__(self, options: Options, *, port: str, began: float) -> None:
        # An empty variable counts as one that is not set, in the specification, not in the exporter over gRPC.
        for name in [name for name, value in os.environ.items() if name.startswith("OTEL_") and not value.strip()]:
            del os.environ[name]
        self._options = options
        self._resource = resource(options.settings.resource, port)
        self._starts = Starts(began)
        self._headers: dict[str, str] = {}
        self._sdk: MetricExporter | None = None
        self._why: Callable[[Sequence[logging.LogRecord]], Outcome]
        with suppress(OSError, Refusal):  # reported at each export until the file exists
            self._opened(self._all_headers())

    def export(self, sources: Iterable[tuple[float, Sequence[Point]]]) -> tuple[Outcome, int]:
        """Push the points of each source, collected at a unix time; returns the outcome and the number of points.

        A source whose points cannot be encoded is left out: that costs no other source its own.
        """
        found = list(sources)
        try:
            outcome, count = self._export(found)
        except Exception:  # noqa: BLE001 - raised again where none of them is the cause
            return self._export(self._sound(found))
        if outcome.cause is Drop.OTHER and len(sound := self._sound(found)) < len(found):  # the one over HTTP says so
            return self._export(sound)
        return outcome, count

    def _sound(self, sources: Sequence[tuple[float, Sequence[Point]]]) -> list[tuple[float, Sequence[Point]]]:
        return [source for source in sources if self._encodes(source)]

    def _encodes(self, source: tuple[float, Sequence[Point]]) -> bool:
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics  # noqa: PLC0415 - as below

        try:
            encode_metrics(metrics_data(self._readings([source]), self._resource))
        except Exception:
            target = next((series.label("target") for series, _, _ in source[1]), "")
            log.exception("rendering failed: internal error (bug)", extra={"target": target, "output": "otlp"})
            return False
        return True

    def _readings(self, sources: Iterable[tuple[float, Sequence[Point]]]) -> list[Reading]:
        started = self._starts.started(sources)
        readings = [reading(each) for each in started]
        if self._options.settings.semantic_conventions:
            readings += conventional(started)
        return readings

    def _export(self, sources: Iterable[tuple[float, Sequence[Point]]]) -> tuple[Outcome, int]:
        readings = self._readings(sources)
        try:
            sdk = self._opened(self._all_headers())
        except Refusal as error:
            return Outcome(Drop.CREDENTIALS, str(error)), len(readings)
        except OSError as error:
            return Outcome(Drop.TLS, f"cannot read file {error.filename}: {error.strerror}"), len(readings)
        _LOG.taken()
        succeeded = sdk.export(metrics_data(readings, self._resource)) is MetricExportResult.SUCCESS
        lines = _LOG.taken()
        outcome = self._why(lines)
        if succeeded and outcome.cause is not None:
            outcome = Outcome()
        if not succeeded:
            self.interrupt()  # the next one connects at once, and reads renewed certificates
            if outcome.cause is None:
                outcome = Outcome(Drop.OTHER, lines[-1].getMessage() if lines else "")
        return outcome._replace(message=hidden(outcome.message, self._secrets())), len(readings)

    def interrupt(self) -> None:
        """Cancel the current export, as far as the SDK can."""
        sdk, self._sdk = self._sdk, None
        if sdk is not None:
            sdk.shutdown()

    def _opened(self, headers: dict[str, str]) -> MetricExporter:
        if self._sdk is not None and headers == self._headers:
            return self._sdk
        self.interrupt()
        if self._options.protocol == GRPC:
            from llm_headroom.otlp.over_grpc import opened  # noqa: PLC0415 - megabytes, only for those who use it
        else:
            from llm_headroom.otlp.over_http import opened  # noqa: PLC0415 - the same
        sdk, self._why = opened(self._options, headers)
        self._sdk, self._headers = sdk, headers
        return sdk

    def _secrets(self) -> list[str]:
        """What a collector may repeat of what it was sent, and nobody else may read."""
        public = {name.lower() for name in self._options.settings.headers}
        sent = [value for name, value in self._headers.items() if name not in public]
        files = [path for name in _FILES if (path := os.environ.get(name)) and not os.path.exists(path)]  # noqa: PTH110 - any text
        return [*sent, *(value.partition(" ")[2] for value in sent), *files]

    def _all_headers(self) -> dict[str, str]:
        """Every header of an export, the variables' first; raises `Refusal`."""
        variables = ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
        text = next((os.environ[name] for name in variables if name in os.environ), "")
        given = {**self._options.settings.headers}
        given |= {name: _value(secret) for name, secret in self._options.settings.secrets.items()}
        if (credentials := self._options.settings.credentials) is not None:
            given["Authorization"] = authorization(credentials)
        return {**parse_env_headers(text, liberal=True), **{name.lower(): value for name, value in given.items()}}


def _value(secret: Secret) -> str:
    """A header's value, read again at each export.

    Raises:
        Refusal: it cannot be read, or is none.
    """
    value = secret_text(secret)
    if secret.file is None:
        return value
    value = value.strip("\r\n")
    if value.isascii() and value.isprintable():
        return value
    raise Refusal(Cause.CREDENTIALS, f"file {secret.file} does not hold one line of ASCII")
