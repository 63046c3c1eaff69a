import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What `execute` may not do, by the number that it is sent."""

    def execute(self, requests):
        x = pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy()
        y = pb_utils.Tensor("y", x)
        match int(x[0, 0]):
            case 0:
                return [pb_utils.InferenceResponse([y])]
            case 1:
                raise ValueError("the model raised this")
            case 2:
                raise pb_utils.TritonModelException("and this")
            case 3:
                return []
            case 4:
                return [pb_utils.InferenceResponse([y])] * 2
            case 5:
                return pb_utils.InferenceResponse([y])
            case 6:
                return ["text"]
            case 7:
                return [pb_utils.InferenceResponse([pb_utils.Tensor("other", x)])]
            case 8:
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.astype(np.float32))])]
            case 9:
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.reshape(1, -1, 1))])]
            case 10:
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.repeat(x, 2, axis=0))])]
            case 11:
                return self.deep(3)
            case 12:
                return [pb_utils.InferenceResponse([])]
            case 13:
                raise ValueError
            case 14:
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y", ["no array"])])]
            case 15:
                return [pb_utils.InferenceResponse([None])]

    def deep(self, depth):
        return self.deep(depth - 1) if depth else 1 // 0
