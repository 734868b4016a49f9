"""Writes two Llamas with random weights: for vLLM a folder without weights, for llama.cpp a GGUF file.

Run by the engines' own Python, which has the package `gguf`. Every token is one printable character, so that each step
brings visible text, and a prompt has as many tokens as characters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

CONTEXT: Final = 1024
CHARACTERS: Final = ["Ġ", *(chr(code) for code in range(33, 127))]
"""Printable ASCII as byte-level BPE writes it: the blank is Ġ."""
TOKENS: Final = ["<s>", "</s>", *CHARACTERS, "Ġ!"]
MERGE: Final = "Ġ !"
"""One merge, since a list of none is refused."""


def write_folder(path: Path, *, width: int = 768, layers: int = 8) -> None:
    """A model folder as transformers lays it out; vLLM makes up the weights (`--load-format dummy`).

    220 MB of them, so that a token takes tens of milliseconds: a stream then outlasts the looks at what is running.
    """
    heads, inner = width // 64, 8 * width // 3
    path.mkdir(parents=True, exist_ok=True)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    classes = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(classes))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "vocab_size": len(TOKENS),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config))


def write_gguf(path: Path, *, width: int = 512, layers: int = 6) -> None:
    """A GGUF file, wide enough that a token takes milliseconds: 100 MB."""
    import gguf  # noqa: PLC0415 - installed for the engines alone
    import numpy as np  # noqa: PLC0415 - the same

    writer = gguf.GGUFWriter(str(path), "llama")
    heads, inner = width // 64, 4 * width
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges([MERGE])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(0)

    def weights(*shape: int) -> object:
        return (random.standard_normal(shape) * 0.05).astype(np.float32)

    writer.add_tensor("token_embd.weight", weights(len(TOKENS), width))
    writer.add_tensor("output.weight", weights(len(TOKENS), width))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        for name, shape in (
            ("attn_q", (width, width)),
            ("attn_k", (width, width)),
            ("attn_v", (width, width)),
            ("attn_output", (width, width)),
            ("ffn_gate", (inner, width)),
            ("ffn_up", (inner, width)),
            ("ffn_down", (width, inner)),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(*shape))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
    write_folder(Path(sys.argv[3]), width=384, layers=4)  # quick, so that a ramp has hundreds of requests
    if not Path(sys.argv[2]).exists():
        write_gguf(Path(sys.argv[2]))
