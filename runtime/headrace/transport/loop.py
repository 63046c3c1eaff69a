"""An event loop in a thread of its own, uvloop's, for transports whose libraries are asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")
_PATIENT_THREADS = 8


class LoopThread:
    """Runs from `start` to `end`. `loop` is the event loop."""

    def __init__(self, name: str) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._patient = ThreadPoolExecutor(_PATIENT_THREADS, f"{name}-patient")

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin. Once."""
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def patiently(self, call: Callable[..., T], *arguments: object) -> T:
        """Run what may take minutes in a thread, beside the ones of `asyncio.to_thread`: short work need not wait for it."""
        return await self.loop.run_in_executor(self._patient, call, *arguments)

    def end(self) -> None:
        """Stop the loop, if it runs. Once."""
        if self.is_running:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        self._patient.shutdown(wait=False, cancel_futures=True)
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
