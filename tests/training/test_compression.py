import lzma

from phiscope.training.compression import join_texts, xz_bits_per_byte
from phiscope.training.corpus import Corpus, Document


def test_text_seen_in_training_costs_next_to_nothing(documents):
    seen = Corpus(tuple(documents), (documents[3],))
    new = Corpus(tuple(documents[:20]), tuple(documents[20:]))
    assert xz_bits_per_byte(seen) < 0.3 < xz_bits_per_byte(new)


def test_without_training_text_it_is_plain_xz(documents):
    heldout = documents[:5]
    data = join_texts(heldout)
    plain = len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) - len(lzma.compress(b""))
    ours = xz_bits_per_byte(Corpus((), tuple(heldout))) * len(data) / 8
    assert abs(ours - plain) <= 16  # the container's rounding


def test_far_text_is_still_within_the_dictionary():
    filler = "".join(chr(97 + (i * i * 7919 + i // 3) % 26) for i in range(60000))
    text = "these very words are said once and then again after a long while\n" * 2
    far = Corpus((Document("far", text), Document("filler", filler)), (Document("again", text),))
    new = Corpus((Document("filler", filler),), (Document("again", text),))
    assert xz_bits_per_byte(far) < xz_bits_per_byte(new)
