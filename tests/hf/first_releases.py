"""Tokenizers as Phi's first releases had them: vocab.json, merges.txt and added_tokens.json."""

import json
from pathlib import Path


def split_tokenizer(folder: Path, kind: str = "CodeGenTokenizer") -> None:
    """Replace a folder's tokenizer.json by those files."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    merges = ["#version: 0.2", *(" ".join(pair) for pair in spec["model"]["merges"])]
    ends, added = (
        {row["content"]: row["id"] for row in spec["added_tokens"] if row["special"] is special}
        for special in (True, False)
    )
    settings = {"tokenizer_class": kind, "add_prefix_space": False, "model_max_length": 256}
    settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps(spec["model"]["vocab"] | ends))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
