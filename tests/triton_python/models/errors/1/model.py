import triton_python_backend_utils as pb_utils

NAMES = ["UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED"]


class TritonPythonModel:
    """An error for a request that says so: by its code, or the one there is without one. The others are answered."""

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x")
        which = int(x.as_numpy()[0, 0])
        if which >= 100:
            code = [] if which == 100 else [getattr(pb_utils.TritonError, NAMES[which - 101])]
            error = pb_utils.TritonError(f"no {which}", *code)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy() + 1)])
