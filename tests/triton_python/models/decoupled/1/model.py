import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """As many responses as x says, before `execute` returns; below 0 it is an error, and above 99 all of it later."""

    def execute(self, requests):
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])
            sender = request.get_response_sender()
            if count > 99:
                threading.Thread(target=self.send, args=(sender, count - 100)).start()
            elif count < 0:
                error = pb_utils.TritonError(f"{count} is below 0", pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                self.send(sender, count)

    def send(self, sender, count):
        for number in range(count):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([number], np.int32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
