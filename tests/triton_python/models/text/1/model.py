import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """y is x in capitals, text where x is text, with what `serialize_byte_tensor` makes of it and back."""

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            there = pb_utils.deserialize_bytes_tensor(pb_utils.serialize_byte_tensor(x)).reshape(x.shape)
            y = np.array([[each.upper() for each in row] for row in there], dtype=np.object_)
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("y", y)]))
        return responses
