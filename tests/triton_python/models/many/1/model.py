import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Two outputs, and what of the request is known besides."""

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        a = pb_utils.get_input_tensor_by_name(request, "a").as_numpy()
        b = pb_utils.get_input_tensor_by_name(request, "b")
        b = np.zeros_like(a) if b is None else b.as_numpy()
        asked = {
            "id": request.request_id(),
            "outputs": sorted(request.requested_output_names()),
            "parameters": json.loads(request.parameters()),
            "timeout": request.timeout(),
            "sequence": (request.correlation_id(), request.flags()),
            "inputs": [(tensor.name(), list(tensor.shape()), tensor.is_cpu()) for tensor in request.inputs()],
            "cancelled": request.is_cancelled(),
        }
        told = np.array([[json.dumps(asked, sort_keys=True)]] * a.shape[0], dtype=np.object_)
        named = {"sum": a + b, "difference": a - b, "asked": told}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in named.items()])
