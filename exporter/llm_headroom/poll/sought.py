"""What is looked for on this host without having been named."""

from __future__ import annotations

from typing import Final, NamedTuple

from llm_headroom.model import Cause, Failure
from llm_headroom.poll.local import GPU_TARGET


class Sought(NamedTuple):
    """Something that is looked for on this host: where, and what is usually there."""

    address: str
    usual: str

    def __str__(self) -> str:
        return self.usual if self.address == GPU_TARGET else f"{self.address} ({self.usual})"


SOUGHT_GPUS: Final = Sought(GPU_TARGET, "GPUs")
FREE: Final = Failure(Cause.REFUSED, "nothing listens on this port")
"""Why there is no engine: nobody said that one is there, so that advice about a wrong address is no answer."""
