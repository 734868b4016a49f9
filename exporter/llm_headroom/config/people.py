"""What people are shown and sent: links of the status page, and receivers of messages."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from llm_headroom.config.endpoint import Credentials, SecretFile, SecretVariable, Tls, TlsSettings
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.kinds import Interval, Link, ReceiverKind, Severity, Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Where the status page leads to; what is not given is not shown."""

    docs: Link = ""
    """The documents. Example: `https://example.com/llm-headroom/docs`."""
    runbooks: Link = ""
    """What to do about an engine that is in trouble. Example: `https://example.com/llm-headroom/docs/alerts.md`."""
    grafana: Link = ""
    """The engine dashboard; the variables `engine`, `model` and `target` are added. Example:
    `https://grafana.example.com/d/llm-headroom-engine`."""
    prometheus: Link = ""
    """Prometheus, for the series of an engine. Example: `https://prometheus.example.com`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """Where messages about states go: one when an engine or GPU gets into trouble, one when that has ended."""

    kind: ReceiverKind = "webhook"
    """What it understands: Alertmanager's webhook form, Slack's (and Mattermost's, Rocket.Chat's, Discord's under
    `/slack`), or ntfy's, whose URL ends in the topic."""
    name: Word = ""
    """What the log calls it. Default: its kind. Example: `on-call`."""
    url: Link = ""
    """Where messages are sent. Example: `https://ntfy.sh/my-llm`."""
    url_file: SecretFile | None = None
    """Holds the URL, where that is a secret, as Slack's are; read again for each message."""
    url_env: SecretVariable | None = None
    """The environment variable that holds the URL."""
    credentials: Credentials = None
    """Credentials for the receiver; see [Authentication](#authentication)."""
    tls: TlsSettings = field(default_factory=Tls)
    """TLS towards the receiver; see [TLS](#tls). Default: the system's certificates."""
    least: Severity = "critical"
    """The least severity that is sent; `warning` includes engines that load, and those with little headroom left."""
    after: Interval = 30.0
    """How long trouble must last before it is sent, and be over before its end is."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.url, self.url_file, self.url_env))) != 1:
            raise ConfigError("expected one of url, url_file and url_env")
        if self.kind == "ntfy" and self.url and not urlsplit(self.url).path.strip("/"):
            raise ConfigError("expected the topic at the end of ntfy's url, as in https://ntfy.sh/my-llm")
