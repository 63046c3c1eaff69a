"""`python -m demo.reference ROWS.npy SCORES.npy`: the package's model in a bare ONNX Runtime session, one row at a time.

A process of its own, so that nothing of Headrace can have a part in the answers it is judged by.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from demo.magika import model_folder


def main(rows: Path, scores: Path) -> None:
    """Read int32 rows from one file, write float32 scores to the other."""
    session = onnxruntime.InferenceSession(model_folder() / "model.onnx", providers=["CPUExecutionProvider"])
    answers = [np.asarray(session.run(["target_label"], {"bytes": row[None]})[0]) for row in np.load(rows)]
    np.save(scores, np.concatenate(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
