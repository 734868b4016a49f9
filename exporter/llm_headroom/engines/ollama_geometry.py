"""How many bytes of KV cache a token of a GGUF model takes, from its layers in `/api/show`.

Sources: ggml-org/llama.cpp, src/llama-kv-cache.cpp (the cache is allocated whole, cell by cell) and ggml/src/ggml.c
(bytes of a block).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES: Final[Mapping[str, float]] = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes of one element of the cache by type; quantized types come in blocks of 32 with scales."""
CELLS: Final = 256
"""llama.cpp rounds the context of a slot up to a multiple of so many tokens."""
_MOST_LAYERS: Final = 1024


class Geometry(NamedTuple):
    """A model's cache: the elements of keys and of values that one token takes, all layers together.

    `window`: tokens beyond which some layers keep nothing, 0 if all keep everything.
    """

    keys: int
    values: int
    window: int = 0

    def token_bytes(self, context: int, keys: str, values: str) -> float | None:
        """Bytes of a token by the types of keys and values; None if it depends on more than these."""
        if 0 < self.window < context or keys not in BYTES or values not in BYTES:
            return None
        return self.keys * BYTES[keys] + self.values * BYTES[values]


def cells(context: int) -> int:
    """Tokens that a slot of this context can hold."""
    return -(-context // CELLS) * CELLS


def geometry(info: Mapping[str, Any]) -> Geometry | None:
    """From `model_info`; None where other rules hold (latent attention, recurrent layers), or too little is exposed.

    Lists of more than five elements come as null unless all of the tokenizer is asked for, too: such a model, whose
    layers have different numbers of heads, is not computed.
    """
    architecture = info.get("general.architecture")
    if not isinstance(architecture, str):
        return None
    if any(name.startswith(f"{architecture}.ssm.") for name in info):
        return None

    def known(name: str) -> Any:  # noqa: ANN401 - JSON
        return info.get(f"{architecture}.{name}")

    if known("attention.kv_lora_rank") is not None or known("attention.causal") is False:
        return None
    layers, heads = _whole(known("block_count")), _whole(known("attention.head_count"))
    if layers is None or not 0 < layers <= _MOST_LAYERS:
        return None
    per_layer = _heads(info, f"{architecture}.attention.head_count_kv", layers, heads)
    width = _whole(known("embedding_length"))
    default = width // heads if width and heads else None
    key, value = (_whole(known(f"attention.{part}_length"), default) for part in ("key", "value"))
    if per_layer is None or not key or not value:
        return None
    window = known("attention.sliding_window")
    return Geometry(per_layer * key, per_layer * value, _whole(window) or 0)


def _heads(info: Mapping[str, Any], name: str, layers: int, default: int | None) -> int | None:
    """Heads of keys and values, summed over the layers."""
    if name not in info:
        return None if default is None else layers * default
    known = info[name]
    if isinstance(known, list):
        each = [_whole(one) for one in known]
        return sum(one for one in each if one is not None) if len(each) == layers and None not in each else None
    one = _whole(known)
    return None if one is None else layers * one


def _whole(value: Any, default: int | None = None) -> int | None:  # noqa: ANN401 - JSON
    if value is None:
        return default
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None
