"""HTTP by uvicorn, which says nothing in the log by itself: for REST, and for spans of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol


def http_server(application: Starlette, connection: Callable[..., H11Protocol], **options: Any) -> uvicorn.Server:
    """A server that is to be run.

    Args:
        application: what is served.
        connection: makes the protocol of a connection.
        options: more of uvicorn's.
    """
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=connection,  # pyright: ignore  # annotated as a class; it is what makes one
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            **options,
        )
    )
