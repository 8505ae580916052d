"""Texts as callers give them, strings, token ids or embeddings, and as the model reads them."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import cast

from torch import Tensor

from phiscope.config import PhiConfig
from phiscope.errors import ContextLengthError
from phiscope.packing import read_tokens
from phiscope.tokenizer import Tokenizer

Text = str | Sequence[int] | Tensor
"""A string, token ids, or embeddings (T, hidden)."""


def list_texts(texts: Text | Iterable[Text]) -> tuple[list[Text], bool]:
    """Texts as a list, and whether it was a single one. `TypeError` for what is no text."""
    if isinstance(texts, str | Tensor):
        return [texts], True
    if not isinstance(texts, Iterable):
        raise TypeError(f"a text is a string, token ids or embeddings, got {texts!r}")
    items = list(texts)
    is_ids = len(items) > 0 and all(isinstance(item, Integral) for item in items)
    return ([cast(Text, items)], True) if is_ids else (cast(list[Text], items), False)


def read_text(text: Text, tokenizer: Tokenizer, config: PhiConfig) -> list[int] | Tensor:
    """The ids of a text, or embeddings as they are; the empty text is the end token alone.

    Raises `ContextLengthError` for a string of more tokens than the context holds, and `ValueError`
    or `TypeError` for ids and embeddings that are not this model's.
    """
    if not isinstance(text, str):
        return read_tokens(text, config)
    ids = tokenizer.encode(text) or [tokenizer.eos_token_id]
    limit = config.max_position_embeddings
    if len(ids) > limit:
        raise ContextLengthError(
            f"the text {text[:40]!r}... has {len(ids)} tokens, which exceed the context of"
            f" {limit}; cut it or split it"
        )
    return ids
