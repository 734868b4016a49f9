"""Questions to a Prometheus."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

DEADLINE: Final = 60.0
"""Seconds after which Prometheus is held not to answer."""


def asked(address: str, path: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
    """The data of an answer.

    Raises:
        AssertionError: the question was refused, for the reason that it holds.
    """
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            return json.load(response)["data"]
    except urllib.error.HTTPError as refused:
        with refused:
            raise AssertionError((parameters, refused.read().decode())) from refused
