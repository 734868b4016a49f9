"""Captures of real engines, as the lines that a simulated one fills in; see data/expositions/README.md."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.exposition.text_lines import parse_series

if TYPE_CHECKING:
    from collections.abc import Mapping

_DIRECTORY: Final = files("llm_headroom.simulate") / "data" / "expositions"
_SUFFIX: Final = ".gz"
_PARTS_OF_TYPE: Final = 4
_RANK_LABELS: Final = ("engine", "dp_rank")


class Line(NamedTuple):
    """One line of a capture.

    Attributes:
        text: the line without its value; of a comment, the line.
        name: of the sample; empty for a comment.
        labels: of the sample.
        family: of the sample, with its `type` as the TYPE line spells it.
    """

    text: str
    name: str
    labels: Mapping[str, str]
    family: str
    type: str


class Template(NamedTuple):
    """One capture.

    Attributes:
        engine: `vllm` or `sglang`.
        release: the engine's version as it reports it: `0.32.0`.
        lines: in their order.
        ranks: data-parallel replicas.
    """

    engine: str
    release: str
    lines: tuple[Line, ...]
    ranks: int

    def bounds(self, family: str) -> tuple[float, ...] | None:
        """The finite bounds of a histogram; None if the capture does not have it."""
        found = {
            float(line.labels["le"]): None
            for line in self.lines
            if line.name == f"{family}_bucket" and line.labels["le"] != "+Inf"
        }
        return tuple(found) or None


@cache
def versions() -> tuple[str, ...]:
    """The versions that can be imitated: `vllm/0.32.0`; those that end in `-dp2` have two replicas."""
    names = sorted(path.name for path in _DIRECTORY.iterdir() if path.name.endswith(_SUFFIX))
    return tuple(name.removesuffix(_SUFFIX).replace("-", "/", 1) for name in names)


@cache
def template(version: str) -> Template:
    """A capture.

    Raises:
        ValueError: there is none of that version.
    """
    if version not in versions():
        raise ValueError(f"there is no simulated {version}; known: {', '.join(versions())}")
    packed = (_DIRECTORY / f"{version.replace('/', '-')}{_SUFFIX}").read_bytes()
    lines: list[Line] = []
    family = kind = ""
    for text in gzip.decompress(packed).decode().splitlines():
        if text.startswith("#"):
            parts = text.split(" ")
            if len(parts) == _PARTS_OF_TYPE and parts[1] == "TYPE":
                family, kind = parts[2:]
            lines.append(Line(text, "", {}, "", ""))
        else:
            name, labels = parse_series(text.encode())
            lines.append(Line(text, name, dict(labels), family, kind))
    ranks = max((int(line.labels.get(label, 0)) for line in lines for label in _RANK_LABELS), default=0) + 1
    engine, _, release = version.partition("/")
    return Template(engine, release.split("-")[0], tuple(lines), ranks)


def rank_of(line: Line) -> int | None:
    """The replica that a sample belongs to; None for the whole server."""
    for label in _RANK_LABELS:
        if label in line.labels:
            return int(line.labels[label])
    return None
