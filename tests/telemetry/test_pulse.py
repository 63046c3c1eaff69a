from __future__ import annotations

from pathlib import Path

from headrace.backends.fake import Script
from headrace.ledger.tally import Tally
from headrace.telemetry.pulse import Pulse
from tests.telemetry.conftest import Observe
from tests.transport.serving import ECHO
from tests.waiting import until


def test_every_beat_is_counted_and_the_clocks_are_looked_at() -> None:
    looked: list[int] = []
    pulse = Pulse(lambda: looked.append(1))
    pulse.beat()
    waits = pulse.waits
    assert waits.counts.sum() == 1
    assert waits.total > 0
    pulse.start()
    until(lambda: bool(looked))
    pulse.close()
    pulse.close()
    assert pulse.waits.counts.sum() >= 20
    assert waits.counts.sum() == 1, "what was handed out is a copy"


def test_what_the_side_process_has_done_is_told(observe: Observe, tmp_path: Path) -> None:
    seen = observe({"echo": (ECHO, Script())})
    assert seen.value("headrace_side_process_up") == 0
    tally = Tally(tmp_path / "tally")
    tally.pid, tally.overrun, tally.spilled, tally.unwritten = 4711, 3, 5, 7
    assert seen.value("headrace_side_process_up") == 1
    assert seen.value("headrace_ledger_overrun_total") == 3
    assert seen.value("headrace_ledger_spilled_total") == 5
    assert seen.value("headrace_ledger_unwritten_total") == 7
