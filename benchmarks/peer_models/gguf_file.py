"""A GGUF file of a Phi-2, as llama.cpp reads it: its tensors in F16, and the same quantised."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from phiscope.config import PhiConfig

ARCHITECTURE = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.PHI2]
QUANTISED = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
"""What else is made of the F16."""
TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
}
BLOCK_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
"""Names in the model and in the file, without `.weight` and `.bias`."""


def write_gguf(path: Path, config: PhiConfig, state: Mapping[str, Tensor], tokenizer: Path) -> None:
    """Matrices in F16, vectors in F32; one tensor at a time is in memory."""
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    add_config(writer, config)
    add_tokenizer(writer, json.loads(tokenizer.read_text()), config.vocab_size)
    names = dict(pair_names(config))
    for name, theirs in names.items():
        dtype, shape = find_dtype(state[name]), state[name].shape
        writer.add_tensor_info(theirs, shape, dtype, state[name].numel() * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in names:
        writer.write_tensor_data(to_array(state[name]))
    writer.close()


def quantise(source: Path, path: Path, kind: int) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = kind
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), parameters)
    if status:
        raise RuntimeError(f"llama_model_quantize gives {status} for {path}")


def add_config(writer: gguf.GGUFWriter, config: PhiConfig) -> None:
    writer.add_name("phi-2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict, vocab_size: int) -> None:
    """GPT-2's byte-pair encoding; rows of the head that are no token get a name as well."""
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    tokens = {index: token for token, index in model["vocab"].items()}
    tokens |= {row["id"]: row["content"] for row in added}
    controls = {row["id"] for row in added if row["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types([find_type(i, tokens, controls) for i in range(vocab_size)])
    merges = [x if isinstance(x, str) else " ".join(x) for x in model["merges"]]
    writer.add_token_merges(merges)
    (end,) = (row["id"] for row in added if row["content"] == "<|endoftext|>")
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def find_type(index: int, tokens: Mapping[int, str], controls: set[int]) -> gguf.TokenType:
    if index in controls:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.NORMAL if index in tokens else gguf.TokenType.UNUSED


def pair_names(config: PhiConfig) -> Iterator[tuple[str, str]]:
    """Ours and theirs of every tensor."""
    pairs = dict(TENSORS)
    for layer in range(config.num_hidden_layers):
        for ours, theirs in BLOCK_TENSORS.items():
            pairs[f"model.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
    for ours, theirs in pairs.items():
        yield f"{ours}.weight", f"{theirs}.weight"
        if ours != "model.embed_tokens":
            yield f"{ours}.bias", f"{theirs}.bias"


def find_dtype(tensor: Tensor) -> np.dtype:
    return np.dtype(np.float32 if tensor.dim() == 1 else np.float16)


def to_array(tensor: Tensor) -> NDArray:
    return tensor.float().numpy().astype(find_dtype(tensor))
