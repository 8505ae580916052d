"""Prompts that are not all text: features of an image or a sound stand where tokens would.

A `Projector` turns feature vectors into embeddings, `interleave` lays those among the embeddings of
text, and what comes out is a prompt (T, hidden) like any other: `Phi.generate` and `Phi.capture`
take it, and so does `inputs_embeds` of `phiscope.hf`. `text_loss` trains the projector through a
model whose own weights stay as they are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscope.errors import NonFiniteError
from phiscope.heads.model_file import find_embedding
from phiscope.model import PhiForCausalLM
from phiscope.packing import pack_lengths
from phiscope.tokenizer import Tokenizer

IGNORED = -100
"""The label of a place that counts nowhere, as torch and transformers have it."""


@dataclass(frozen=True)
class Given:
    """Text, or token ids, that are read and not learnt: `text_loss` leaves them out."""

    text: str | Sequence[int] | Tensor


Part = str | Sequence[int] | Tensor | Given
"""Text, token ids, or features (n, hidden) that are floating point."""


@dataclass(frozen=True, eq=False)
class Interleaved:
    """A prompt of embeddings, and what lies at each of its places. Make one with `interleave`."""

    embeddings: Tensor
    """(T, hidden), in the dtype of the model's own embeddings."""
    token_ids: tuple[int | None, ...]
    """The token at each place; None where there are features."""
    is_learnt: tuple[bool, ...]
    """The places that the loss counts: text that is not `Given`."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def labels(self) -> Tensor:
        """(T,) int64: the tokens the loss counts, -100 elsewhere; transformers shifts them."""
        places = zip(self.token_ids, self.is_learnt, strict=True)
        labels = [index if learnt and index is not None else IGNORED for index, learnt in places]
        return torch.tensor(labels, device=self.embeddings.device)


def interleave(
    model: nn.Module, parts: Iterable[Part], *, tokenizer: Tokenizer | None = None
) -> Interleaved:
    """Lay text and features one after the other as one prompt of embeddings (T, hidden).

    `model` is any Phi, ours or transformers', or its embedding alone. Each text is tokenized for
    itself, and an empty one is nothing. Features (n, hidden) are converted to the embedding's dtype
    and keep their gradients. Raises `ValueError` or `TypeError`, naming the part, for what does not
    fit, and `NonFiniteError` for features that are not finite in that dtype.
    """
    if isinstance(parts, str | Tensor):
        raise TypeError(f"parts are a list, got one {type(parts).__name__}: write [...] around it")
    embedding = find_embedding(model)
    pieces = [_read_part(embedding, i, part, tokenizer) for i, part in enumerate(parts)]
    if not any(map(len, pieces)):
        raise ValueError("the parts have no tokens; begin an empty text with the end token")
    return Interleaved(
        torch.cat([piece.embeddings for piece in pieces]),
        tuple(token_id for piece in pieces for token_id in piece.token_ids),
        tuple(learnt for piece in pieces for learnt in piece.is_learnt),
    )


def split_markers(text: str, features: Mapping[str, Sequence[Tensor] | Tensor]) -> list[Part]:
    """Parts of a text whose markers, such as "<image>", stand for features, in their order.

    `features` has a sequence of (n, hidden) for each marker. Raises `ValueError` unless the text
    has each marker as often as there are features for it.
    """
    if not features or "" in features:
        raise ValueError(f"markers are texts such as '<image>', got {list(features)}")
    longest_first = sorted(features, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    counts = Counter(pieces[1::2])
    for marker, given in features.items():
        if counts[marker] != len(given):
            raise ValueError(
                f"the text has {marker!r} {counts[marker]} times, and there are features for"
                f" {len(given)}"
            )
    left = {marker: iter(given) for marker, given in features.items()}
    parts = [next(left[x]) if i % 2 else x for i, x in enumerate(pieces)]
    return [part for part in parts if not isinstance(part, str) or part]


def text_loss(model: PhiForCausalLM, prompts: Sequence[Interleaved]) -> Tensor:
    """The mean cross-entropy, in nats, over the learnt tokens of all prompts: a scalar.

    A token is learnt from what precedes it, features and text, so a prompt's first place counts
    nowhere. The prompts are run packed; gradients reach the features they were made of, and the
    model's own weights unless these have `requires_grad_(False)`. Raises `ValueError` where there
    is nothing to learn and `UnsupportedError` for a model that passes no gradients on.
    """
    if not prompts:
        raise ValueError("there are no prompts: give one at least")
    inputs = torch.cat([prompt.embeddings for prompt in prompts])
    packed = pack_lengths([len(prompt) for prompt in prompts], device=inputs.device)
    labels = torch.cat([prompt.labels for prompt in prompts])
    labels[list(packed.offsets[:-1])] = IGNORED
    places = (labels != IGNORED).nonzero()[:, 0]
    if len(places) == 0:
        raise ValueError("the prompts have no text to learn behind their first places")
    logits = model(inputs, packed, rows=places - 1)
    return F.cross_entropy(logits, labels[places])


def _read_part(
    embedding: nn.Module, index: int, part: Part, tokenizer: Tokenizer | None
) -> Interleaved:
    """One part as a prompt of its own, which may be empty."""
    given = part.text if isinstance(part, Given) else part
    values = _encode(given, index, tokenizer) if isinstance(given, str) else given
    if not isinstance(values, Tensor | Sequence):
        raise TypeError(f"part {index} is text, token ids or features, got {values!r}")
    if isinstance(values, Tensor) and values.is_floating_point():
        return _read_features(embedding, index, part, values)
    return _read_ids(embedding, index, values, is_learnt=not isinstance(part, Given))


def _encode(text: str, index: int, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise ValueError(f"part {index} is text: give tokenizer= as well")
    return tokenizer.encode(text)


def _read_features(embedding: nn.Module, index: int, part: Part, features: Tensor) -> Interleaved:
    if isinstance(part, Given):
        raise TypeError(
            f"part {index} is Given features; features are never learnt: give them bare"
        )
    width = embedding.get_parameter("weight").shape[1]
    if features.ndim != 2 or features.shape[1] != width or len(features) == 0:
        raise ValueError(
            f"part {index}: features are (n, {width}) with one token at least,"
            f" got {tuple(features.shape)}"
        )
    features = features.to(_embed(embedding, []))
    if not bool(features.isfinite().all()):
        raise NonFiniteError(f"part {index}: the features in {features.dtype} are not all finite")
    return Interleaved(features, (None,) * len(features), (False,) * len(features))


def _read_ids(
    embedding: nn.Module, index: int, ids: Sequence[int] | Tensor, *, is_learnt: bool
) -> Interleaved:
    given = torch.as_tensor(ids) if len(ids) else torch.empty(0, dtype=torch.int64)
    if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(
            f"part {index}: token ids are integers (T,), got {given.dtype} {tuple(given.shape)}"
        )
    tokens: list[int] = given.tolist()
    rows = len(embedding.get_parameter("weight"))
    wrong = [token_id for token_id in tokens if not 0 <= token_id < rows]
    if wrong:
        raise ValueError(
            f"part {index}: token id {wrong[0]} is not one of the model's 0 to {rows - 1}"
        )
    return Interleaved(_embed(embedding, tokens), tuple(tokens), (is_learnt,) * len(tokens))


def _embed(embedding: nn.Module, tokens: list[int]) -> Tensor:
    """(T, hidden), also for no tokens; its dtype and device are those prompts have."""
    device = embedding.get_parameter("weight").device
    embedded: Tensor = embedding(torch.tensor(tokens, dtype=torch.int64, device=device))
    return embedded
