import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """All that the model `decoupled` answers, one behind the other; -1 for a response without outputs, -2 for an error."""

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x")
        asked = pb_utils.InferenceRequest(model_name="decoupled", requested_output_names=["y"], inputs=[x])
        if x.as_numpy().size > 1:
            return pb_utils.InferenceResponse(error=asked.exec().error())
        found = []
        for response in asked.exec(decoupled=True):
            if response.has_error():
                found.append(-2)
            elif not response.output_tensors():
                found.append(-1)
            else:
                found += pb_utils.get_output_tensor_by_name(response, "y").as_numpy().tolist()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array(found, np.int32))])
