"""How a side process stands back, in a process of its own, which would stay so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from headrace.ledger.side import NICENESS

CAP_SYS_NICE = 23

STAGES = """
import json, os, threading
from headrace.ledger import side

yielded, later = [], []
os.sched_yield = lambda: yielded.append(1)
ended = threading.Event()

def start():
    later.append(threading.Thread(target=ended.wait))
    later[-1].start()

def now():
    side.give_way()
    here = threading.main_thread(), *later
    return [os.getpriority(os.PRIO_PROCESS, thread.native_id) for thread in here], len(yielded)

start()
told = [now()]
before = side.step_back()
start()
told.append(now())
side.hurry(before)
told.append(now())
ended.set()
print(json.dumps(told))
"""


def test_who_stands_back_hurries_once_the_server_has_ended() -> None:
    told = json.loads(subprocess.run([sys.executable, "-c", STAGES], capture_output=True, text=True, check=True).stdout)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    back = min(19, own + NICENESS)
    assert told[0] == [[own, own], 1]
    assert told[1] == [[back, own, back], 2]
    granted = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    assert granted is not None
    may = int(granted[1], 16) >> CAP_SYS_NICE & 1
    assert told[2] == [[own] * 3 if may else [back, own, back], 2]
