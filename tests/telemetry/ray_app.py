"""An application of Ray Serve, behind its own proxy, that asks a Headrace; called once by an instrumented client.

    python -m tests.telemetry.ray_app GRPC OTLP_OVER_HTTP

Ray Serve's spans, and the client's, go to that Headrace.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from typing import Any

from tools.ports import free_port


def processors() -> list[Any]:
    """Where Ray Serve's proxies and replicas send their spans."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    return [SimpleSpanProcessor(OTLPSpanExporter(os.environ["SPANS_TO"]))]


class Asks:
    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, request: Any) -> str:
        import tritonclient.grpc as triton
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        from tests.ledger.servers import one

        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers)
        with triton.InferenceServerClient(self.address) as client:
            client.infer("m", [one()], headers=headers)
        return headers["traceparent"]


def main(address: str, spans_to: str) -> None:
    os.environ |= {
        "SPANS_TO": spans_to,
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "tests.telemetry.ray_app:processors",
        "RAY_SERVE_TRACING_SAMPLING_RATIO": "1.0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    import ray
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(serve.deployment(ray_actor_options={"num_cpus": 0.1})(Asks).bind(address))
    provider = TracerProvider()
    provider.add_span_processor(processors()[0])
    for _ in range(3):
        with provider.get_tracer("a client").start_as_current_span("call", kind=SpanKind.CLIENT) as span:
            headers: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(headers, set_span_in_context(span))
            call = urllib.request.Request(f"http://127.0.0.1:{port}/", headers=headers)
            with urllib.request.urlopen(call, timeout=60) as answer:
                answer.read()
    provider.shutdown()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
