import hashlib
import struct

import pytest

from phiscope.extraction.inputs import Row


def test_row_has_one_of_text_ids_and_fault():
    with pytest.raises(ValueError, match="row 3 must have one of text, ids and fault"):
        Row(index=3, id="3")
    with pytest.raises(ValueError, match="row 0 must have one of"):
        Row(index=0, id="0", text="a", ids=(1,))


def test_text_is_hashed_as_utf8():
    text = "caf\u00e9"
    assert Row(index=0, id="0", text=text).sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_ids_are_hashed_as_little_endian_int64():
    packed = struct.pack("<3q", 5, 0, 51199)
    assert Row(index=0, id="0", ids=(5, 0, 51199)).sha256 == hashlib.sha256(packed).hexdigest()


def test_bad_row_has_no_hash():
    with pytest.raises(ValueError, match="row 0 is bad and has no text: empty"):
        _ = Row(index=0, id="0", fault="empty").sha256
