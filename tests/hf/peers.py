"""Our classes and transformers' own, with the same random weights."""

from functools import cache

import torch
import transformers

import phiscope.hf

VOCAB = 99
VARIANTS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "normed": {"qk_layernorm": True},
    "multi-query, normed": {"num_key_value_heads": 1, "qk_layernorm": True},
}


def make_config(attention="sdpa", **options):
    """A small config; biases, ties and dropout are as Phi has them unless `options` say more."""
    options.setdefault("rope_parameters", rope())
    return phiscope.hf.PhiConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "pad_token_id": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.2,
            "attn_implementation": attention,
            **options,
        }
    )


def rope(rope_type="default", **more):
    """Rotary parameters of half of each head."""
    return {"rope_type": rope_type, "rope_theta": 1e4, "partial_rotary_factor": 0.5, **more}


def make_pair(name="PhiForCausalLM", *, attention="sdpa", seed=0, **options):
    """Our model and transformers' of one class, in evaluation mode, with equal fp32 weights."""
    config = make_config(attention, **options)
    ours = getattr(phiscope.hf, name)(config).eval()
    fill(ours, seed)
    theirs = getattr(transformers, name)(as_theirs(config, attention)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@cache
def shared_pair(variant="plain", attention="sdpa", name="PhiForCausalLM"):
    """A pair that no test changes."""
    return make_pair(name, attention=attention, **VARIANTS[variant])


def as_theirs(config, attention):
    """transformers' own config class, with what it knows of ours."""
    known = {key: value for key, value in config.to_dict().items() if key != "hidden_states_format"}
    return transformers.PhiConfig(**known, attn_implementation=attention)


def fill(model, seed=0):
    """Random weights whose biases and norms are random too, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = float("norm" in name and name.endswith("weight"))
            parameter.normal_(centre, 0.2, generator=generator)


def random_ids(rows, width, seed=0):
    """Token ids (rows, width) without those that begin, end or pad a text."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (rows, width), generator=generator)


def pad_left(lengths, width=None):
    """A mask (B, T) of texts that stand at the right."""
    return pad_right(lengths, width).flip(1)


def pad_right(lengths, width=None):
    """A mask (B, T) of texts that stand at the left."""
    places = torch.arange(max(lengths) if width is None else width)
    return (places < torch.tensor(lengths)[:, None]).long()


def assert_same(ours, theirs, where=None, tolerance=1e-5):
    """Equal in shape, and in value up to rounding; `where` (B, T) says which places count."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if where is not None:
        ours, theirs = ours[where.bool()], theirs[where.bool()]
    if not theirs.numel():
        return
    scale = max(1.0, float(theirs.detach().abs().max()))
    assert float((ours - theirs).detach().abs().max()) <= tolerance * scale
