"""The faces of one judgement: what each of them says of a target, asked as its users ask."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exporter_process import ran
from prometheus_server import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARDS: Final = Path(__file__).parents[2] / "dashboards"
DEADLINE: Final = 90.0
_ROW: Final = re.compile(r'data-v="\d+([a-z ]+)"><span>.*?<a [^>]*data-look="[^"]*"[^>]*>([^<]+)</a>', re.DOTALL)
"""A row of the page's table: its state, and the name of its target."""


class Faces(NamedTuple):
    """Where the exporter, Prometheus and Alertmanager listen, each `host:port`."""

    exporter: str
    prometheus: str
    alertmanager: str

    def states(self) -> Iterator[tuple[str, dict[str, set[str]]]]:
        """Each face's name, and the states that it shows by target; the dearest one to ask comes last."""
        document = json.loads(self._got("/api/v1/snapshot"))
        yield (
            "snapshot",
            _gathered((one["target"], each["state"]) for one in document["sources"] for each in one["states"]),
        )
        yield "page", _gathered((target, state) for state, target in _ROW.findall(self._got("/").decode()))
        for title, expression, names in _queries():
            found = asked(self.prometheus, "query", query=expression)["result"]
            shown = ((each["metric"].get("target", ""), names[each["value"][1]]) for each in found)
            yield f"dashboard {title}", _gathered(shown)
        done = ran("top", "--once", "--format", "json", "--url", f"http://{self.exporter}")
        cards = json.loads(done.stdout)["engines"]
        yield "top", _gathered((card["source"]["target"], card["state"]["name"]) for card in cards)

    def alerts(self, target: str) -> set[str]:
        """The alerts on a target that Alertmanager notifies of."""
        url = f"http://{self.alertmanager}/api/v2/alerts?active=true&silenced=false&inhibited=false"
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            found: list[dict[str, Any]] = json.load(response)
        return {each["labels"]["alertname"] for each in found if each["labels"].get("target") == target}

    def agree(self, target: str, state: str) -> bool:
        """Whether every face shows this state of the target, and no other."""
        return all(shown.get(target) == {state} for _, shown in self.states())

    def _got(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.exporter}{path}", timeout=DEADLINE) as response:
            body: bytes = response.read()
        return body


def _gathered(shown: Iterator[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for target, state in shown:
        found.setdefault(target, set()).add(state)
    return found


def _queries() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Panels of states by target: title, query with everything selected, and the states by the values for them."""
    for name, kind in (("fleet", "table"), ("engine", "state-timeline")):
        panels = json.loads((DASHBOARDS / f"llm-headroom-{name}.json").read_text())["panels"]
        for panel in _all(panels):
            for target in panel.get("targets", ()):
                if "llm_engine_state{" in target["expr"] and panel["type"] == kind:
                    yield panel["title"], re.sub(r'"\$\w+"', '".*"', target["expr"]), _named(panel)


def _all(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _all(panel.get("panels", []))


def _named(panel: dict[str, Any]) -> dict[str, str]:
    config = panel["fieldConfig"]
    mappings = [*config["defaults"].get("mappings", ())]
    for override in config["overrides"]:
        mappings += [one for each in override["properties"] if each["id"] == "mappings" for one in each["value"]]
    return {
        value: re.sub(r"^\W+", "", option["text"])
        for each in mappings
        if each["type"] == "value" and "13" in each["options"]  # those of states, not of flags
        for value, option in each["options"].items()
    }
