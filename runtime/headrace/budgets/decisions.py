"""What the controller decided, kept for people: the latest decisions of a server, as JSON for other processes, and in words."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from headrace.budgets.controller import Decision, Move
from headrace.scheduling.steering import Steering

FILE = "decisions.json"
"""In the directory of a server, for other processes."""

_MOST = 256
_LEVERS = {"caution": ("caution", "{:.0%}"), "variant": ("batches on the variant", "{:.0%}"), "shed": ("classes shed", "{:.2f}")}


class Decisions:
    """The latest decisions that moved something or said something new. Any thread may ask and tell."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: deque[dict[str, Any]] = deque(maxlen=_MOST)
        self._why: dict[tuple[str, int], str] = {}
        self._steered: dict[tuple[str, int], Steering] = {}
        self._moves: dict[tuple[str, int], Counter[Move]] = {}
        self.count = 0
        """How many there have been."""

    def add(self, of: tuple[str, int], objective: str, decision: Decision, wall: float) -> bool:
        """Remember one.

        Args:
            of: the model, and its version.
            objective: by which it goes.
            decision: what was decided.
            wall: when, in seconds since 1970.

        Returns:
            Whether it moved something, or says something new.
        """
        with self._lock:
            self._steered[of] = decision.steering
            self._moves.setdefault(of, Counter())[decision.move] += 1
            is_new = decision.move is not Move.NONE or self._why.get(of) != decision.why
            self._why[of] = decision.why
            if is_new:
                self.count += 1
                self._latest.append(_told(of, objective, decision, wall))
            return is_new

    def steering(self, of: tuple[str, int]) -> tuple[Steering, Mapping[Move, int]] | None:
        """How a version is steered, and how often that went which way; None if nothing steers it."""
        with self._lock:
            known = self._steered.get(of)
            return None if known is None else (known, dict(self._moves[of]))

    def latest(self) -> list[dict[str, Any]]:
        """As JSON can say them, the oldest first."""
        with self._lock:
            return list(self._latest)


def in_words(told: Mapping[str, Any]) -> str:
    """One of `Decisions.latest`, as a line for people."""
    seen, before, levers = told["seen"], told["before"], told["levers"]
    when = datetime.fromtimestamp(told["wall"]).strftime("%H:%M:%S")
    refused = f", {seen['refused']:.0f} of them refused" if seen["refused"] >= 1 else ""
    moved = [
        f"{words} {form.format(before[name])} → {form.format(levers[name])}"
        for name, (words, form) in _LEVERS.items()
        if abs(before[name] - levers[name]) > 1e-9
    ]
    return (
        f"{when} {told['model']}/{told['version']} {told['move']}: {told['why']}. "
        f"Of {seen['requests']:.0f} requests of the last second {seen['bad']:.0f} were bad{refused}; "
        f"'{told['objective']}' burns {seen['fast']:.1f} times as fast as it may (5 s), {seen['slow']:.1f} times (30 s), "
        f"{seen['left']:.0%} of its budget is left. " + (f"{', '.join(moved)}" if moved else "Nothing moves")
    )


def _told(of: tuple[str, int], objective: str, decision: Decision, wall: float) -> dict[str, Any]:
    return {
        "model": of[0],
        "version": of[1],
        "objective": objective,
        "wall": wall,
        "move": decision.move.value,
        "why": decision.why,
        "before": asdict(decision.before),
        "levers": asdict(decision.levers),
        "steering": asdict(decision.steering),
        "seen": asdict(decision.seen),
        "hold_s": decision.state.hold_ns / 1e9,
        "calm_s": decision.state.calm_ns / 1e9,
    }
