"""Files, and marked parts of files, that are generated from facts in the package by `make docs`.

A marked part begins with a comment `generated: NAME` and ends with a comment `end`, in the file's comment syntax.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom.bundle import chart as of_chart
from llm_headroom.bundle.alerts import ALERTS, GROUPS
from llm_headroom.bundle.rule import Alert
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import bundle, completion, docs, manual, settings_docs
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.thresholds import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MARKED: Final = re.compile(
    r"(?P<head>(?:<!-- |# |\{\{- /\* )generated: (?P<name>[\w-]+)(?: -->| \*/ -\}\})?\n?)"
    r"(?P<body>.*?)"
    r"(?P<tail> *(?:<!-- |# |\{\{- /\* )end\b)",
    re.DOTALL,
)
MARKED: Final = (
    "README.md",
    "docs/*.md",
    "deploy/helm/llm-headroom/values.yaml",
    "deploy/helm/llm-headroom/templates/_sidecar.tpl",
)
"""Files that may have marked parts."""
CONFIGURATION: Final = "docs/configuration.md"
"""It also has tables of the settings."""
MANUAL: Final = "deploy/share/llm-headroom.1"
COMPLETIONS: Final = {
    shell: f"deploy/share/{name}"
    for shell, name in {"bash": "llm-headroom.bash", "zsh": "_llm-headroom", "fish": "llm-headroom.fish"}.items()
}
CHART_SCHEMA: Final = "deploy/helm/llm-headroom/values.schema.json"


def parts() -> dict[str, str]:
    """Every marked part by name; parts on lines of their own end with a line break."""
    engines = tuple(BUILT_IN.values())
    *most, last = (f"**{engine.title}**" for engine in engines)
    ports = " ".join(f'"{engine.name}" {engine.port}' for engine in engines)
    allowed = ", ".join(f'"0.0.0.0/0:{port}", "[::/0]:{port}"' for port in dict.fromkeys(e.port for e in engines))
    return {
        "engines": f"{', '.join(most)} and {last}",
        "engine-releases": ", ".join(f"{engine.title} {engine.releases}".rstrip() for engine in engines),
        "engine-colours": ", ".join(f"{engine.title} {engine.colour}" for engine in engines),
        "chart-ports": f"{{{{- $ports := dict {ports} -}}}}\n",
        "chart-allow": f"  allow: [{allowed}]\n",
        "alert-count": str(len(ALERTS)),
        "alerts": "\n".join(_alerts()) + "\n",
        "thresholds": "\n".join(_thresholds()) + "\n",
    }


def figures(root: Path) -> dict[str, str]:
    """Marked parts that quote measurements, by name: from the documents that `make evaluate` writes.

    Raises:
        ValueError: such a document no longer has what is quoted.
    """
    evaluation = (root / "docs/evaluation.md").read_text(encoding="utf-8")
    scope = re.search(r"([\d.]+) held-out days in \d+ runs, (\d+) incidents", evaluation)
    if scope is None:
        raise ValueError("docs/evaluation.md no longer says how many days and incidents it is of")
    page = _measured(evaluation, "`LLMFirstTokensSlow`")
    of_headroom = (root / "docs/load-headroom.md").read_text(encoding="utf-8")
    headroom = _measured(of_headroom, "llm_load_headroom_ratio")
    ramps = [float(off) for off in re.findall(r"×(?:, suspect)? \| [\d.]+ × \| ([\d.]+) \|", of_headroom)]
    if not ramps:
        raise ValueError("docs/load-headroom.md no longer has ramps of a real engine")
    return {
        "page-figures": f"On {scope[1]} days of production traffic, replayed on simulated engines near their limit,\n"
        f"  with {scope[2]} incidents, the page on slow first tokens was right in {page['precision']:.0%}, caught "
        f"{page['recall']:.0%} of them, {-page['lead s']:.0f} s after they\n  began at the median, and gave "
        f"{page['FA/day']:g} false alarms a day",
        "headroom-error": f"{math.exp(headroom['median of the error']):.2f} at the median and "
        f"{math.exp(headroom['p90']):.2f} at the 90th percentile",
        "headroom-ramps": f"it said {min(ramps):.2f} to {max(ramps):.2f} times what {len(ramps)} ramps found",
    }


def _measured(document: str, name: str) -> dict[str, float]:
    """The numbers of the first row of a table with this name, by its columns; intervals and units are left out."""
    header: list[str] = []
    previous = ""
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if set(line) <= set("|-: ") and "-" in line:
            header = [cell.strip() for cell in previous.strip("|").split("|")]
        if cells[0] == name and header:
            numbers = (re.match(r"[-+]?[\d.]+", cell) for cell in cells)
            return {column: float(found[0]) for column, found in zip(header, numbers, strict=False) if found}
        previous = line
    raise ValueError(f"no table has a row {name}")


def _alerts() -> Iterator[str]:
    for name, group in GROUPS.items():
        alerts = [rule for rule in group.rules if isinstance(rule, Alert)]
        if alerts:
            yield from ("", f"### {name.removeprefix('llm-headroom.')}, every {group.interval}", "")
            yield from ("| alert | severity | for | thresholds |", "|---|---|---|---|")
            yield from map(_alert, alerts)
    yield ""


def _alert(alert: Alert) -> str:
    used = dict.fromkeys(re.findall(r"\$(\w+)", alert.expr))
    names = ", ".join(f"`{name}`" for name in used if name in DEFAULT.__dataclass_fields__)
    return f"| [{alert.name}](../alerts/runbooks/{alert.name}.md) | {alert.severity} | {alert.wait} | {names} |"


def _thresholds() -> Iterator[str]:
    yield from ("", "| name | default | unit | |", "|---|---|---|---|")
    for name, each in DEFAULT.__dataclass_fields__.items():
        yield f"| `{name}` | {each.default:.15g} | {each.metadata['unit']} | {each.metadata['meaning']} |"
    yield ""


def filled(text: str, known: Mapping[str, str]) -> str:
    """The text with its marked parts as they should be.

    Raises:
        KeyError: a part has a name that is not known.
    """
    return _MARKED.sub(lambda part: part["head"] + known[part["name"]] + part["tail"], text)


def files(root: Path) -> dict[str, str]:
    """Every generated file of a checkout by its path, as it should be."""
    known = parts() | figures(root)
    found = {"METRICS.md": docs.markdown(), **bundle.files(BundleSettings())}
    for pattern in MARKED:
        for path in sorted(root.glob(pattern)):
            found[path.relative_to(root).as_posix()] = filled(path.read_text(encoding="utf-8"), known)
    found[CONFIGURATION] = settings_docs.page(found[CONFIGURATION])
    found["docs/config.example.yaml"] = settings_docs.example()
    of_settings = settings_docs.schema()
    found["docs/config.schema.json"] = _json(of_settings)
    chart = json.loads((root / CHART_SCHEMA).read_text(encoding="utf-8"))
    chart["properties"]["sidecar"]["properties"]["engine"]["enum"] = list(BUILT_IN)
    chart["properties"]["config"] = {"$ref": of_settings["$ref"]}
    chart["definitions"] = of_settings["definitions"]
    found[MANUAL] = manual.page()
    found |= {path: completion.script(shell) for shell, path in COMPLETIONS.items()}
    return found | {CHART_SCHEMA: _json(chart), of_chart.RULES: of_chart.rules()}


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    bundle.write(Path(), files(Path()))
