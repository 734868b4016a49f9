"""llm-headroom: metrics, headroom and alerts for LLM inference engines in one schema.

`HeadroomCollector` exposes them in a Python service that has a `/metrics` already.
"""

from typing import TYPE_CHECKING

__all__ = ["HeadroomCollector", "__version__"]

__version__ = "0.2.0"

if TYPE_CHECKING:
    from llm_headroom.render.collector import HeadroomCollector
else:  # hidden from type checkers, which otherwise take any name for one of this module

    def __getattr__(name: str) -> object:
        """Import the collector where it is asked for: everything else of the package does without."""
        if name != "HeadroomCollector":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from llm_headroom.render.collector import HeadroomCollector  # noqa: PLC0415 - see above

        return HeadroomCollector
