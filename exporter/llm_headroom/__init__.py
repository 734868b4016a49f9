"""llm-headroom: metrics, headroom and alerts for LLM inference engines in one schema."""

__version__ = "0.1.0"
