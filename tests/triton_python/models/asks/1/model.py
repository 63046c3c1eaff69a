import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What it is told to ask of another model, and what it is answered."""

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x")
        model = pb_utils.get_input_tensor_by_name(request, "model").as_numpy()[0].decode()
        asked = pb_utils.InferenceRequest(
            model_name=model, requested_output_names=["y"], inputs=[x], request_id=request.request_id()
        )
        response = asked.exec()
        if response.has_error():
            error = response.error()
            told = pb_utils.TritonError(f"{error.code()}: {error.message()}", error.code())
            return pb_utils.InferenceResponse(error=told)
        y = pb_utils.get_output_tensor_by_name(response, "y").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y * 10)])
