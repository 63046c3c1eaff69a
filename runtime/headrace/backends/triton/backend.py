"""The Triton backend: loads models that run on another server, over the KServe V2 protocol.

Parameters of a configuration: `url` (HOST:PORT or unix:PATH), `model` (the same name unless it is said), `version` (theirs),
`shared_memory` (`auto` or `off`), `connect_timeout_s` (1), `run_timeout_s` (300), `tls` (`on`), `tls_ca`, `tls_certificate`,
`tls_key`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from headrace.backends.base import Device
from headrace.backends.triton.channel import Lost, TimedOut, Unreachable, way_to
from headrace.backends.triton.client import Client
from headrace.backends.triton.messages import Signature, signature_of
from headrace.backends.triton.session import Loaded, TritonSession, words_of
from headrace.backends.triton.settings import settings_of
from headrace.clock import MonotonicClock
from headrace.errors import BackendUnreachable, Code, InvalidRepository, ModelError
from headrace.model import GraphIO, GraphTensor
from headrace.protocol.headrace_pb2 import ModelConfig

log = logging.getLogger(__name__)

_SHARED_MEMORY = "system_shared_memory"


class TritonBackend:
    """Loads models of `backend: "triton"`: a configuration that says where they run; their version directory may be empty."""

    def load(self, path: Path, config: ModelConfig, device: Device) -> TritonSession:
        """See `Backend.load`.

        Raises:
            BackendUnreachable: the server is not there, or has not got the model ready.
            InvalidRepository: it has, and it cannot be served here.
        """
        settings, clock = settings_of(config, path), MonotonicClock()
        client = Client(settings, clock)
        try:
            signature = signature_of(client.metadata())
            io = io_of(client, signature, config)
            shares = settings.shared_memory and settings.is_here and _SHARED_MEMORY in client.extensions()
            if shares:
                client.forget_orphans()
            log.info("%s is called over the %s client", settings, way_to(settings))
            return TritonSession(client, settings, config, Loaded(signature, io, shares), clock)
        except (Unreachable, TimedOut, Lost) as error:
            client.close()
            raise BackendUnreachable(
                f"model '{config.name}': no Triton answers at {settings.url} ({words_of(error)}): start it, or correct the "
                "parameter 'url', then load the model again"
            ) from None
        except ModelError as error:
            client.close()
            raise BackendUnreachable(
                f"model '{config.name}': {settings} is not ready there ({error.message}): load it there, then here again"
            ) from None
        except BaseException:
            client.close()
            raise


def io_of(client: Client, signature: Signature, config: ModelConfig) -> GraphIO:
    """What the model takes and gives, checked against what can be served here."""
    name = config.name
    try:
        theirs = client.config()
    except ModelError as error:
        if error.code is not Code.UNIMPLEMENTED:
            raise
        return GraphIO(*signature)  # a server of the same protocol that is none of Triton's
    if theirs.model_transaction_policy.decoupled:
        raise InvalidRepository(
            f"model '{name}': the Triton's model answers a request several times, which cannot be passed on yet"
        )
    if theirs.HasField("sequence_batching") or config.HasField("sequence_batching"):
        raise InvalidRepository(
            f"model '{name}': sequences are kept by one server, and cannot be passed on; ask that Triton itself"
        )
    if config.max_batch_size > theirs.max_batch_size:
        raise InvalidRepository(
            f"model '{name}': max_batch_size is {config.max_batch_size}, and the Triton's model takes {theirs.max_batch_size} "
            f"rows; set it to {theirs.max_batch_size} or less, or leave it out"
        )
    optional = {tensor.name for tensor in theirs.input if tensor.optional}
    inputs = tuple(GraphTensor(t.name, t.datatype, t.shape, t.name in optional) for t in signature[0])
    return GraphIO(inputs, signature[1], theirs.max_batch_size)
