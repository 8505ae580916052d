"""Cleaning: line ends, Unicode and NULs of one text. Nothing else of a text is changed."""

import unicodedata
from typing import Literal

from phiscope.training.corpora.options import CorpusOptions

NUL = "\0"
REPLACEMENT = "\ufffd"


def clean(text: str, options: CorpusOptions) -> str:
    """The text with LF at the ends of lines and, where the options say so, in NFC and without NUL.

    A CR that no LF follows stays: it is a character of the text.
    """
    text = text.replace("\r\n", "\n")
    if options.nul == "replace":
        text = text.replace(NUL, REPLACEMENT)
    return unicodedata.normalize("NFC", text) if options.nfc else text


def find_fault(text: str, options: CorpusOptions) -> Literal["nul", "short"] | None:
    """Why a cleaned text is not kept; None if it is."""
    if NUL in text:
        return "nul"
    return "short" if len(text.encode()) < options.min_bytes else None
