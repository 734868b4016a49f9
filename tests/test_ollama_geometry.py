"""Bytes of the KV cache by a model's layers, against what llama-server logged and what it does not follow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import captures
from llm_headroom.engines.ollama_geometry import Geometry, cells, geometry

CAPTURED = captures.document("ollama/0.33.0-rc2/show")["model_info"]
MIB = 1 << 20


@pytest.mark.parametrize(
    ("context", "slots", "kind", "logged"),
    [(2048, 2, "f16", 16 * MIB), (2048, 1, "q8_0", 4.25 * MIB), (1024, 1, "q8_0", 2.125 * MIB)],
)
def test_the_captured_model_takes_what_its_runner_logged(context: int, slots: int, kind: str, logged: float) -> None:
    found = geometry(CAPTURED)

    assert found == Geometry(keys=8 * 2 * 64, values=8 * 2 * 64)
    assert slots * cells(context) * (found.token_bytes(context, kind, kind) or 0) == logged


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("f32", 128), ("f16", 64), ("bf16", 64), ("q8_0", 34), ("q5_1", 24), ("q5_0", 22), ("q4_1", 20), ("q4_0", 18),
        ("iq4_nl", 18),
    ],
)  # fmt: skip
def test_how_many_bytes_32_elements_of_a_type_take(kind: str, block: int) -> None:
    assert Geometry(keys=32, values=64).token_bytes(256, kind, kind) == 3 * block
    assert Geometry(keys=32, values=64).token_bytes(256, kind, "f64") is None


def info(architecture: str = "a", **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    told = {
        "block_count": 4,
        "attention.head_count": 8,
        "embedding_length": 512,
        **{name.replace("__", "."): value for name, value in fields.items()},
    }
    return {"general.architecture": architecture, **{f"{architecture}.{name}": value for name, value in told.items()}}


@pytest.mark.parametrize(
    ("told", "keys", "values"),
    [
        (info(), 4 * 8 * 64, 4 * 8 * 64),
        (info(attention__head_count_kv=2), 4 * 2 * 64, 4 * 2 * 64),
        (info(attention__head_count_kv=[2, 0, 2, 4]), 8 * 64, 8 * 64),
        (info(block_count=1024), 1024 * 8 * 64, 1024 * 8 * 64),
        (info(block_count=1, attention__head_count=1, embedding_length=2**31 - 1), 2**31 - 1, 2**31 - 1),
        (info(attention__causal=True, attention__kv_lora_rank=None), 4 * 8 * 64, 4 * 8 * 64),
        (info(attention__head_count_kv=0), 0, 0),
        (info(attention__sliding_window=-5), 4 * 8 * 64, 4 * 8 * 64),
        (
            info(
                attention__head_count=None,
                attention__head_count_kv=2,
                attention__key_length=3,
                attention__value_length=5,
            ),
            4 * 2 * 3,
            4 * 2 * 5,
        ),
        (info(attention__head_count_kv=1, attention__key_length=192, attention__value_length=128), 4 * 192, 4 * 128),
    ],
)
def test_lengths_that_are_not_told_follow_from_the_width(told: dict[str, Any], keys: int, values: int) -> None:
    assert geometry(told) == Geometry(keys, values)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"general.architecture": None},
        info(block_count=0),
        info(block_count=True),
        info(block_count=1025),
        info(block_count=1, attention__head_count=1, embedding_length=2**31),
        info(attention__key_length=0),
        info(attention__value_length=0),
        info(attention__head_count=0, attention__head_count_kv=2),
        info(embedding_length=0),
        info(embedding_length=None),
        info(attention__head_count_kv=None, attention__head_count=8),
        info(attention__head_count_kv=[2, 2, 2, 2, 2]),
        info(attention__head_count=None, attention__head_count_kv=2),
        info(attention__head_count_kv=None, embedding_length="512"),
        info(attention__head_count_kv=[2, 2, 2]),
        info(attention__head_count_kv=[2, 2, 2, None]),
        info(attention__head_count_kv=[]),
        info(attention__head_count_kv=-1),
        info(attention__kv_lora_rank=512),
        info(ssm__state_size=16),
        info(attention__causal=False),
    ],
)
def test_what_does_not_follow_this_rule_is_not_computed(told: dict[str, Any]) -> None:
    assert geometry(told) is None


def test_per_layer_heads_that_are_left_out_are_not_guessed() -> None:
    """Longer lists come as null unless the whole tokenizer is asked for."""
    assert geometry(info(attention__head_count_kv=None)) is None


def test_a_window_counts_where_the_context_is_longer() -> None:
    found = geometry(info(attention__sliding_window=1024))

    assert found is not None
    assert found.token_bytes(1024, "f16", "f16") == 2 * 2 * 4 * 8 * 64
    assert found.token_bytes(2048, "f16", "f16") is None
    assert found.token_bytes(1024, "turbo3", "f16") is None
    assert found.token_bytes(1024, "f16", "turbo3") is None
    assert found.token_bytes(1025, "f16", "f16") is None
    assert Geometry(3, 5).token_bytes(10**6, "f32", "q4_0") == 3 * 4 + 5 * 18 / 32


@pytest.mark.parametrize(("context", "rounded"), [(1, 256), (256, 256), (257, 512), (4096, 4096)])
def test_a_slot_is_a_multiple_of_256(context: int, rounded: int) -> None:
    assert cells(context) == rounded


JSON = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.integers(0, 8), max_size=5)
)
NAMES = (
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "embedding_length",
    "attention.sliding_window",
)


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_whatever_is_told_it_is_a_geometry_or_none(told: dict[str, Any]) -> None:
    found = geometry({"general.architecture": "a", **{f"a.{name}": value for name, value in told.items()}})

    assert found is None or min(found) >= 0
