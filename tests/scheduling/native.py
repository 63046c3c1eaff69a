"""Native queues on a virtual clock, whose news are heard at once instead of by a thread."""

from __future__ import annotations

import headrace_kernels

from headrace.clock import VirtualClock
from headrace.ledger.ledger import Ledger
from headrace.model import ModelSpec
from headrace.scheduling.admission import Limits
from headrace.scheduling.native import NativeQueue, NativeQueues


class KernelClock(VirtualClock):
    """Moves the kernel's clock along."""

    def __init__(self, kernel: headrace_kernels.Kernel | None = None) -> None:
        super().__init__()
        self.kernel = kernel or headrace_kernels.Kernel(self.now())

    def advance(self, by: int) -> None:
        super().advance(by)
        self.kernel.set_now(self.now())


class _Queue(NativeQueue):
    queues: _Queues

    def expire(self, now: int) -> int | None:
        again = super().expire(now)
        self.queues.catch_up()
        return again

    def abandon(self) -> None:
        super().abandon()
        self.queues.catch_up()


class _Queues(NativeQueues):
    def __init__(self, clock: KernelClock, ledger: Ledger) -> None:
        super().__init__(clock.kernel, ledger, clock)
        self.kernel = clock.kernel

    def __call__(self, spec: ModelSpec, limits: Limits) -> NativeQueue:
        queue = super().__call__(spec, limits)
        queue.__class__ = _Queue
        queue.queues = self  # type: ignore[attr-defined]
        return queue

    def catch_up(self) -> None:
        while (news := self.kernel.next_news(wait=False)) is not None:
            self.hear(*news)


def queues(ledger: Ledger) -> tuple[KernelClock, NativeQueues]:
    clock = KernelClock()
    return clock, _Queues(clock, ledger)
