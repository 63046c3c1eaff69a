import asyncio

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Three requests of another model at once; y is the sum of what comes back."""

    async def execute(self, requests):
        return [await self.answer(request) for request in requests]

    async def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        model = pb_utils.get_input_tensor_by_name(request, "model").as_numpy()[0].decode()
        asked = [
            pb_utils.InferenceRequest(
                model_name=model, requested_output_names=["y"], inputs=[pb_utils.Tensor("x", x + number)]
            ).async_exec()
            for number in range(3)
        ]
        responses = await asyncio.gather(*asked)
        if any(response.has_error() for response in responses):
            return pb_utils.InferenceResponse(error=responses[0].error())
        y = sum(pb_utils.get_output_tensor_by_name(response, "y").as_numpy() for response in responses)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])
