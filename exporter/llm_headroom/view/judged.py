"""The one judgement of each model and GPU, as the view shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom import clock
from llm_headroom.view.values import Condition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.model import Snapshot


def states(snapshot: Snapshot) -> Mapping[str, Condition]:
    """The states of a source's models by name, or of its GPUs by uuid; empty while nothing was judged."""
    return {
        each.uuid or each.model: Condition(str(each.state), each.state.level, each.reason, clock.shown(each.since))
        for each in snapshot.states
    }
