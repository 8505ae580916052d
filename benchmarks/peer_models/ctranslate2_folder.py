"""A CTranslate2 model of a Phi-2 in int8, by its specification of decoders.

CTranslate2's own converter reads Microsoft's first layout by remote code, which today's
transformers does not run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctranslate2.specs import Activation, TransformerDecoderModelSpec
from torch import Tensor

from phiscope.config import PhiConfig

SIZES = "sizes.json"
"""What a step reads: no file of CTranslate2's own tells it."""
EMBEDDINGS = "decoder/embeddings/"


def write_ctranslate2(
    folder: Path, config: PhiConfig, state: Mapping[str, Tensor], tokenizer: Path
) -> None:
    spec = make_spec(config)
    fill(spec, config, state)
    tokens = list_tokens(json.loads(tokenizer.read_text()), config.vocab_size)
    spec.register_vocabulary(tokens)
    end = tokens[config.eos_token_id]
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = end
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.validate()
    spec.optimize(quantization="int8")
    folder.mkdir()
    spec.save(str(folder))
    (folder / SIZES).write_text(json.dumps(count_bytes(spec, config)))


def make_spec(config: PhiConfig) -> TransformerDecoderModelSpec:
    return TransformerDecoderModelSpec.from_config(
        config.num_hidden_layers,
        config.num_attention_heads,
        num_heads_kv=config.num_key_value_heads,
        activation=Activation.GELUTanh,
        rotary_dim=config.rotary_dim,
        rotary_interleave=False,
        rotary_base=config.rope_theta,
        parallel_residual=True,
        shared_layer_norm=True,
    )


def fill(spec: TransformerDecoderModelSpec, config: PhiConfig, state: Mapping[str, Tensor]) -> None:
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = state["model.embed_tokens.weight"]
    set_norm(decoder.layer_norm, state, "model.final_layernorm")
    set_linear(decoder.projection, state, "lm_head")
    for layer, block in enumerate(decoder.layer):
        name = f"model.layers.{layer}"
        set_norm(block.shared_layer_norm, state, f"{name}.input_layernorm")
        set_linear(block.self_attention.linear[0], state, f"{name}.self_attn.qkv_proj")
        set_linear(block.self_attention.linear[1], state, f"{name}.self_attn.dense")
        set_linear(block.ffn.linear_0, state, f"{name}.mlp.fc1")
        set_linear(block.ffn.linear_1, state, f"{name}.mlp.fc2")


def set_linear(spec: Any, state: Mapping[str, Tensor], name: str) -> None:
    spec.weight, spec.bias = state[f"{name}.weight"], state[f"{name}.bias"]


def set_norm(spec: Any, state: Mapping[str, Tensor], name: str) -> None:
    spec.gamma, spec.beta = state[f"{name}.weight"], state[f"{name}.bias"]


def list_tokens(tokenizer: dict[str, Any], vocab_size: int) -> list[str]:
    """A name for every row of the head; two may not be the same."""
    names = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    names |= {row["id"]: row["content"] for row in tokenizer["added_tokens"]}
    return [names.get(i, f"<unused_{i}>") for i in range(vocab_size)]


def count_bytes(spec: TransformerDecoderModelSpec, config: PhiConfig) -> dict[str, int]:
    """Of the weights that a step reads, and of one token in the cache, which is in fp32."""
    stored = {name: x for name, x in spec.variables().items() if not isinstance(x, str)}
    weights = [x.num_bytes() for name, x in stored.items() if not name.startswith(EMBEDDINGS)]
    keys = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return {"weight_bytes": sum(weights), "cache_bytes": 2 * 4 * keys}
