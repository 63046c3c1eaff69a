import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Says itself what it takes and gives, and how it batches."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        config = auto_complete_model_config.as_dict()
        assert (config["name"], config["input"], config["max_batch_size"]) == ("completed", [], 0)
        auto_complete_model_config.add_input({"name": "x", "data_type": "TYPE_INT32", "dims": [-1]})
        auto_complete_model_config.add_output({"name": "y", "data_type": "TYPE_STRING", "dims": [1]})
        auto_complete_model_config.set_max_batch_size(6)
        auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def initialize(self, args):
        self.args = args

    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(request, "x").as_numpy().shape[0]) for request in requests]

    def answer(self, rows):
        """What it was initialized with."""
        config = json.loads(self.args["model_config"])
        kept = ("name", "backend", "max_batch_size", "input", "output", "dynamic_batching", "parameters", "instance_group")
        told = {**self.args, "model_config": {key: config[key] for key in kept if key in config}}
        told["model_repository"] = told["model_repository"].rpartition("/")[2]
        told["is_below"] = pb_utils.get_model_dir() == f"{self.args['model_repository']}/{self.args['model_version']}"
        text = np.array([[json.dumps(told, sort_keys=True)]] * rows, dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", text)])
