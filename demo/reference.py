"""`python -m demo.reference ROWS.npy SCORES.npy`: the package's model in a bare ONNX Runtime session.

A process of its own, so that nothing of Headrace can have a part in the answers it is judged by.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from demo.magika import model_folder


def main(rows: Path, scores: Path) -> None:
    """Read int32 rows from one file, write float32 scores to the other: [2, rows, labels], rows alone and rows in company.

    ONNX Runtime itself has two answers to a row, apart by a few 1e-5 in scores of this model: it takes another path
    through its kernels for a batch of one. Among larger batches it differs by rounding only.
    """
    session = onnxruntime.InferenceSession(model_folder() / "model.onnx", providers=["CPUExecutionProvider"])
    given = np.load(rows)

    def answer(batch: NDArray[np.int32]) -> NDArray[np.float32]:
        return np.asarray(session.run(["target_label"], {"bytes": batch})[0])

    np.save(scores, np.stack([np.concatenate([answer(row[None]) for row in given]), answer(given)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
