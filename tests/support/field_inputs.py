"""Servers as they were seen in the field: `fixtures/field`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine_server import TEXT, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine_server import Behaviour

FIELD: Final = Path(__file__).parents[1] / "fixtures" / "field"


def routes(case: str, name: str = "routes.json") -> Mapping[str, Reply | Behaviour]:
    """What the server of a case answers, by path."""
    folder = FIELD / case
    return {path: _reply(folder, answer) for path, answer in json.loads((folder / name).read_text()).items()}


def _reply(folder: Path, answer: Mapping[str, object]) -> Reply:
    if "file" in answer:
        body = (folder / str(answer["file"])).read_bytes()
    elif "json" in answer:
        body = json.dumps(answer["json"]).encode()
    else:
        body = str(answer.get("text", "")).encode()
    status = answer.get("status", 200)
    assert isinstance(status, int)
    is_json = "json" in answer or str(answer.get("file", "")).endswith(".json")
    return Reply(body, status, "application/json" if is_json else TEXT)
