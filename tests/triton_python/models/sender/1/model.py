import threading

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Not decoupled, and yet it answers by a response sender: at once, or later where x is odd."""

    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().copy()
            response = pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)])
            arguments = (response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            sender = request.get_response_sender()
            if x[0, 0] % 2:
                threading.Thread(target=sender.send, args=arguments).start()
            else:
                sender.send(*arguments)
