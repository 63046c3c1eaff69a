"""The graph `embed` and its model: a vector for each text. `python -m demo.embed REPOSITORY` puts them there."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo import minilm
from demo.asking import ask, reference, show_statistics
from demo.repository import ROOT, add_configuration, write_missing

SENTENCES = 40
PAIRS = 5
TOLERANCE = 1e-5
"""Absolute, of numbers up to 0.3: padded and unpadded, in batches of different size, differ by rounding."""


def build_repository(repository: Path) -> None:
    """Put the graph and the model `minilm` into `repository`; what is there already stays as it is."""
    minilm.build_repository(repository)
    add_configuration(repository, "embed")
    write_missing(repository / "embed/tokenizer.json", minilm.tokenizer_file().read_bytes())


def run(console: Console, address: str) -> bool:
    """Ask for the vectors of the README's sentences, and show which say the same; whether the vectors are right."""
    sentences = some_sentences()
    answers = ask(address, "embed", "text", [sentence.encode() for sentence in sentences])
    vectors = np.stack([answer.outputs["vector"] for answer in answers])
    show(console, sentences, vectors)
    lengths, latency = [len(sentence.split()) for sentence in sentences], median(answer.seconds for answer in answers)
    console.print(f"{len(sentences)} sentences of {min(lengths)} to {max(lengths)} words, median latency {latency * 1e3:.1f} ms")
    show_statistics(console, address, "embed")
    return judge(console, sentences, vectors)


def some_sentences() -> list[str]:
    """The first SENTENCES of the README, without its markup; headings, tables and examples are none."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"^(?:```.*?^```|<!--.*?-->|[|#].*?)$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^- |[`*]", "", text, flags=re.MULTILINE)
    split = (" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\n", text))
    return [sentence for sentence in split if sentence.endswith(".") and len(sentence.split()) > 3][:SENTENCES]


def show(console: Console, sentences: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Print the pairs of sentences that are most alike."""
    likeness = np.triu(vectors @ vectors.T, 1)
    table = Table("alike", "one sentence", "another", box=None, header_style="bold", expand=True)
    for column in table.columns[1:]:
        column.no_wrap, column.overflow, column.ratio = True, "ellipsis", 1
    for place in np.argsort(-likeness, axis=None)[:PAIRS]:
        one, another = divmod(int(place), len(sentences))
        table.add_row(f"{likeness[one, another]:.3f}", escape(sentences[one]), escape(sentences[another]))
    console.print(table)
    console.print()


def judge(console: Console, sentences: Sequence[str], vectors: NDArray[np.float32]) -> bool:
    """Whether tokenizers, a bare ONNX Runtime session and a few lines of numpy give the same vectors in another process."""
    expected = np.float32(reference("embed", list(sentences)))
    different = np.abs(vectors - expected).max(axis=1)
    wrong = [sentence for sentence, worst in zip(sentences, different, strict=True) if not worst <= TOLERANCE]
    if not wrong:
        told = f"all {len(sentences)} vectors are those of ONNX Runtime alone"
        console.print(f"[green]{told}[/green] (largest difference {different.max():.1e})\n")
        return True
    told = f"{len(wrong)} of {len(sentences)} vectors are not those of ONNX Runtime, the first: {wrong[0]}"
    console.print(f"[red]{escape(told)}[/red]\n", soft_wrap=True)
    return False


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name the repository: python -m demo.embed REPOSITORY")
    build_repository(Path(sys.argv[1]))
