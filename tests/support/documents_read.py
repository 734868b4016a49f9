"""An engine's documents as they are read, without a server: what is asked for, and which facts come of the answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llm_headroom.engines.answers import decode
from llm_headroom.engines.rules import Absent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.engines.rules import Engine


def read(engine: Engine, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that an engine with these answers, by path and model asked for, is read to say; others are 404."""
    known: dict[str, Any] = {}
    while new := [each for each in engine.documents(known) if each.key not in known]:
        for each in new:
            name = f"{each.path} {json.loads(each.body)['model']}" if each.body else each.path
            found = answers.get(name)
            if found is None:
                known[each.key] = Absent(404)
            else:
                known[each.key] = found if each.text else decode(each, json.dumps(found).encode())
    return known


def told(engine: Engine, known: Mapping[str, Any]) -> dict[str, float]:
    """Facts by metric and the texts of their labels, each once."""
    found: dict[str, float] = {}
    for fact in engine.facts(known):
        assert fact.metric.subject is engine.subject
        assert fact.origin, "people are told where it is from"
        labels = " ".join(text for name, text in fact.labels.items() if text and name != "model")
        name = f"{fact.metric.name.removeprefix('llm_')} {fact.labels.get('model', '')} {labels}".strip()
        assert name not in found
        found[name] = fact.value
    return found


def asked(engine: Engine, known: Mapping[str, Any]) -> list[str]:
    """The paths of what an engine is asked for, given what it has said so far."""
    return [each.path for each in engine.documents(known)]
