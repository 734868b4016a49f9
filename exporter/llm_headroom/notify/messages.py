"""Messages in the forms of their receivers. Pure.

Sources: Alertmanager's webhook (prometheus/docs, docs/alerting/configuration.md, webhook_config), Slack's incoming
webhooks and its escapes (docs.slack.dev, Sending messages using incoming webhooks; Formatting text for app surfaces),
ntfy's publishing as JSON (binwiederhier/ntfy, docs/publish.md).
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2s
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from llm_headroom.derive.words import span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.config.people import Receiver
    from llm_headroom.notify.incidents import Message

ALERT: Final = "LLMEngineState"
"""The label `alertname` of all messages in Alertmanager's form."""
_NEVER: Final = "0001-01-01T00:00:00Z"
"""The end of what has not ended, as Alertmanager writes it."""


def title(message: Message) -> str:
    """Who, and in which state."""
    trouble = message.trouble
    return f"{trouble.subject.name} is {'well again' if message.ended else trouble.state}"


def text(message: Message) -> str:
    """Why, or after the end how long it was and what it went through."""
    trouble = message.trouble
    if message.ended is None:
        return trouble.reason
    return f"It was {', '.join(trouble.states)} for {span(message.ended - trouble.since)}: {trouble.reason}"


def request(receiver: Receiver, url: str, message: Message) -> tuple[str, Mapping[str, Any]]:
    """Where to post what, as JSON."""
    match receiver.kind:
        case "slack":
            return url, {"text": f"*{_slack(title(message))}*\n{_slack(text(message))}"}
        case "ntfy":
            return _ntfy(url, message)
        case _:
            return url, _alertmanager(receiver, message)


def _ntfy(url: str, message: Message) -> tuple[str, Mapping[str, Any]]:
    parts = urlsplit(url)
    critical = message.trouble.severity == "critical"
    return urlunsplit((parts.scheme, parts.netloc, "/", "", "")), {
        "topic": parts.path.strip("/"),
        "title": title(message),
        "message": text(message),
        "priority": 3 if message.ended else 5 if critical else 4,
        "tags": ["white_check_mark" if message.ended else "rotating_light" if critical else "warning"],
    }


def _alertmanager(receiver: Receiver, message: Message) -> Mapping[str, Any]:
    trouble = message.trouble
    labels = {"alertname": ALERT, "severity": trouble.severity, "state": trouble.state, **trouble.subject.labels}
    annotations = {"summary": title(message), "description": text(message)}
    status = "firing" if message.ended is None else "resolved"
    group = {name: labels[name] for name in ("alertname", "target", "uuid") if name in labels}
    alert = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": _time(trouble.since),
        "endsAt": _NEVER if message.ended is None else _time(message.ended),
        "generatorURL": "",
        "fingerprint": blake2s(repr(sorted(labels.items())).encode(), digest_size=8).hexdigest(),
    }
    return {
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f'{name}="{value}"' for name, value in group.items()) + "}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": receiver.name or receiver.kind,
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [alert],
    }


def _slack(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
