"""The card of a folder for the hub: README.md, with facts of its files and nothing else.

What no file tells (licence, base model) is said as it was given, or as the source's own card says
it, and left out otherwise.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from phiscope.checkpoint.hub_tokenizer import PaddedTokenizer
from phiscope.checkpoint.layouts import Layout
from phiscope.config import PhiConfig
from phiscope.errors import CheckpointError

CARD = "README.md"
_LAYOUT_NAMES: dict[Layout, str] = {
    "A": "mixformer-sequential",
    "B": "phi-msft",
    "C": "transformers 4.36",
    "D": "transformers 4.37 and later",
}
_INHERITED = (
    *("license", "license_name", "license_link", "language", "datasets", "base_model"),
    *("pipeline_tag", "tags"),
)
"""What a card takes over from the card of the source."""


@dataclass(frozen=True, kw_only=True)
class CardDetails:
    """What a card says that no file tells."""

    name: str | None = None
    """The model's name, or the hub id it shall have; None: the name of the folder."""
    license: str | None = None
    """The hub's word for a licence, as `mit`."""
    base_model: str | None = None
    """The hub id of the model that this one was made from."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the files tell."""

    name: str
    config: PhiConfig
    origin: str
    """Which checkpoint the weights are those of, in words."""
    layout: Layout
    """The layout they were read from."""
    stored: tuple[str, ...]
    """The dtypes of the source."""
    written: tuple[str, ...]
    padded: PaddedTokenizer


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card; both empty where there is no card.

    Raises `CheckpointError` for a card that cannot be read, as its licence might be lost.
    """
    if not path.is_file():
        return {}, ""
    try:
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        metadata: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    except Exception as error:  # YAML's errors have no common ground with the others
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"the card {path} cannot be read: {reason}; mend it") from error
    return metadata, card.text.strip()


def make_metadata(details: CardDetails, inherited: Mapping[str, Any]) -> dict[str, Any]:
    """The card's front matter: what was given, and else what the source's card says."""
    kept = {key: inherited[key] for key in _INHERITED if inherited.get(key)}
    if details.license is not None:
        kept = {key: value for key, value in kept.items() if not key.startswith("license")}
        kept["license"] = details.license
    if details.base_model is not None:
        kept["base_model"] = details.base_model
    tags = kept.get("tags", [])
    tags = [tags] if isinstance(tags, str) else tags
    fixed = {"library_name": "transformers", "tags": list(dict.fromkeys([*tags, "phi"]))}
    return {"pipeline_tag": "text-generation", **kept, **fixed}


def render_card(facts: CardFacts, metadata: Mapping[str, Any], source_card: str = "") -> str:
    """The card's text; the text of the source's own card follows it whole."""
    config = facts.config
    text = _CARD.format(
        metadata=ModelCardData(**metadata).to_yaml(),
        name=facts.name,
        folder=json.dumps(facts.name, ensure_ascii=False),
        parameters=f"{config.num_parameters:,}",
        layers=config.num_hidden_layers,
        last=config.num_hidden_layers - 1,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        context=config.max_position_embeddings,
        rows=config.vocab_size,
        origin=facts.origin,
        layout=f"{facts.layout} ({_LAYOUT_NAMES[facts.layout]})",
        values=_describe_values(facts.stored, facts.written),
        licence="" if "license" in metadata else _NO_LICENCE,
        padding=_describe_padding(facts.padded),
    )
    return text + (_SOURCE_CARD.format(text=source_card) if source_card else "")


def _describe_values(stored: Iterable[str], written: Iterable[str]) -> str:
    before, after = ", ".join(sorted(stored)), ", ".join(sorted(written))
    if before == after:
        return f"Every value is the one stored there, in {after}."
    return f"The values are stored there in {before}, and here in {after}."


def _describe_padding(padded: PaddedTokenizer) -> str:
    if padded.pad_token is None:
        return _NO_PAD_TOKEN
    origin = "a spare row of the embedding" if padded.is_new else "which the source has, too"
    return _PAD_TOKEN.format(token=padded.pad_token, index=padded.pad_token_id, origin=origin)


_NO_LICENCE = " No licence was named when this folder was made: the terms are those of the source."
_CARD = """\
---
{metadata}
---
# {name}

A Phi of {parameters} parameters ({layers} layers, hidden size {hidden}, {heads} heads, context
{context}, {rows} rows of vocabulary), in the form that transformers opens without further code.

## Origin
The weights are those of {origin}, read from layout {layout} by Phiscope. {values}
Nothing was trained for this folder, and nothing about its quality was measured.{licence}

## Use
With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = AutoModelForCausalLM.from_pretrained({folder}, dtype="auto")
inputs = tokenizer("def add(a, b):", return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=16)
print(tokenizer.decode(tokens[0]))
```

With Phiscope, which hands out every hidden state:

```python
import phiscope

phi = phiscope.load({folder})
states = phi.hidden_states("def add(a, b):")  # ({layers} + 1, tokens, {hidden})
```

## Hidden states
| what | transformers | Phiscope |
|---|---|---|
| the embeddings | `hidden_states[0]` | `embeddings` |
| after block i, below {last} | `hidden_states[i + 1]` | `resid_post.i` |
| after block {last}, before the final LayerNorm | not among them | `resid_post.{last}` |
| after the final LayerNorm | `hidden_states[{layers}]` | `final_norm` |

So `hidden_states[-1]` of transformers is not the output of the last block.

## Padding
{padding}
"""
_PAD_TOKEN = """\
The pad token is `{token}` (id {index}), {origin}. It is not the end token: a loss that
leaves out padding would then leave out the ends of texts. Pass on the attention mask that the
tokenizer gives, and pad on the left what is to be continued."""
_NO_PAD_TOKEN = """\
The vocabulary has no spare row, so there is no pad token. For inference any token may pad a batch
on the left, under an attention mask. For training it must not be the end token: a loss that leaves
out padding would then leave out the ends of texts."""
_SOURCE_CARD = """
---
What follows is the card of the source.

{text}
"""
