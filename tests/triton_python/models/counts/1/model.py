import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Counts what it runs."""

    def initialize(self, args):
        labels = {"model": args["model_name"], "quote": 'a "b" \\ c'}
        self.families = [
            pb_utils.MetricFamily(name=f"own_{kind.name.lower()}", description=f"What a {kind.name} says", kind=kind)
            for kind in (pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.HISTOGRAM)
        ]
        self.counter, self.gauge = (family.Metric(labels=labels) for family in self.families[:2])
        self.histogram = self.families[2].Metric(labels=labels, buckets=[1.0, 2.5, 10.0])
        self.total = pb_utils.MetricFamily(name="own:rows_total", description="Rows", kind=pb_utils.MetricFamily.COUNTER)
        self.rows = self.total.Metric(labels={})

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            for value in x.reshape(-1).tolist():
                self.counter.increment(value)
                self.histogram.observe(value)
                self.gauge.set(value)
            self.gauge.increment(-0.5)
            self.rows.increment(len(x))
            told = [self.counter.value(), self.gauge.value(), self.rows.value()]
            y = np.array([told] * len(x), np.float32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
