import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """As `decoupled`, from a coroutine, with the last response being the final one."""

    async def execute(self, requests):
        await asyncio.gather(*map(self.answer, requests))

    async def answer(self, request):
        count = int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])
        sender = request.get_response_sender()
        for number in range(count):
            await asyncio.sleep(0)
            y = pb_utils.Tensor("y", np.array([number, count], np.int32))
            sender.send(pb_utils.InferenceResponse([y]), flags=int(number == count - 1))
