import triton_python_backend_utils as pb_utils
from plus import PLUS


class TritonPythonModel:
    """Imports what lies beside it; y is x changed in place, or where that is below 0 it comes out of DLPack."""

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            changed = x.as_numpy()
            if changed[0, 0] < 0:
                changed = pb_utils.Tensor.from_dlpack("there", x.to_dlpack()).as_numpy()
            else:
                changed += PLUS
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", changed)]))
        return responses
