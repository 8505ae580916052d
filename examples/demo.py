"""What `make demo` runs: text, hidden states, and a corpus's states, on an embedded model.

`tiny` is a demonstration of about 5M parameters. What it writes is not what Phi-2 writes; the calls
are the same: run this with `--model microsoft/phi-2` to see.
"""

import argparse
import textwrap
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

import phiscope

README = Path(__file__).resolve().parent.parent / "README.md"
CODE = '''def read_lines(path):
    """Return the lines of a file as a list."""
'''
QUESTION = "What does `os.path.exists` do?"


def main() -> None:
    parser = argparse.ArgumentParser(description="Show what phiscope does.")
    parser.add_argument("--model", default="tiny", help="a name, a folder or a hub id")
    parser.add_argument("--threads", type=int, default=1, help="one is best for a small model")
    options = parser.parse_args()
    phi = phiscope.load(options.model, num_threads=options.threads, progress=True)
    print(f"{phi.config.num_parameters:,} parameters in mode {phi.mode.name}")
    show_completion(phi, CODE, "code")
    show_completion(phi, QUESTION, "instruct")
    show_norms(phi, CODE)
    show_extraction(phi, list(read_paragraphs(README)))


def show_completion(phi: phiscope.Phi, prompt: str, format: str) -> None:
    print(f"\n== a prompt in format {format!r}, and its completion as it comes")
    print(phiscope.FORMATS[format].render(prompt), end="", flush=True)
    for piece in phi.stream(prompt, format=format, max_new_tokens=64, repetition_penalty=1.2):
        print(piece, end="", flush=True)
    print()


def show_norms(phi: phiscope.Phi, text: str) -> None:
    """Numbered as transformers numbers them: 0 the embeddings, the last after the final norm."""
    states = phi.hidden_states(text)  # (L + 1, T, hidden)
    print(f"\n== hidden states of the code prompt: {states.shape[0]} of {tuple(states.shape[1:])}")
    print("state  mean norm  largest norm")
    for layer, norms in enumerate(states.norm(dim=-1)):
        print(f"{layer:5}  {norms.mean():9.2f}  {norms.max():12.2f}")


def show_extraction(phi: phiscope.Phi, paragraphs: list[str]) -> None:
    """A corpus goes in and a store of states comes out, opened here as any program may."""
    point = f"resid_post.{phi.config.num_hidden_layers // 2}"
    print(f"\n== the paragraphs of the README as a corpus: their states at {point}, pooled")
    with TemporaryDirectory() as folder:
        report = phi.extract(paragraphs, out=f"{folder}/states", points=point, pool="mean")
        print(str(report).replace(folder, "..."))
        vectors = phiscope.open_store(report.out)[f"{point}.mean"].float32()
    show_nearest(vectors, paragraphs)


def show_nearest(vectors: NDArray[np.float32], paragraphs: list[str]) -> None:
    """Compare vectors (paragraphs, hidden) less their mean, which all texts share."""
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    a, b = max(combinations(range(len(paragraphs)), 2), key=lambda pair: cosines[pair])
    print(f"of {len(paragraphs)} paragraphs the two nearest ones:")
    for paragraph in (paragraphs[a], paragraphs[b]):
        print(textwrap.indent(textwrap.shorten(paragraph, 200), "  "))
    print(f"  cosine {cosines[a, b]:.2f}; all pairs are between {cosines.min():.2f} and 1")


def read_paragraphs(path: Path) -> Iterator[str]:
    """The paragraphs of prose: no headings, code, tables or lists."""
    prose = "".join(path.read_text(encoding="utf-8").split("```")[::2])
    for block in prose.split("\n\n"):
        paragraph = " ".join(block.split())
        if len(paragraph) > 60 and not paragraph.startswith(("#", "|", "*", "-", "[")):
            yield paragraph


if __name__ == "__main__":
    main()
