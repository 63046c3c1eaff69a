import numpy as np
import triton_python_backend_utils as pb_utils
from plus import PLUS


class TritonPythonModel:
    """Imports what lies beside it; y is x changed in place, or where that is below 0 what DLPack made of it."""

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            there = pb_utils.Tensor.from_dlpack("there", x.to_dlpack()).as_numpy()
            changed = x.as_numpy()
            changed += PLUS
            y = pb_utils.Tensor("y", there - PLUS if changed[0, 0] < 0 else changed)
            responses.append(pb_utils.InferenceResponse([y]))
        return responses
