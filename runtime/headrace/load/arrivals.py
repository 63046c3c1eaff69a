"""When the requests of an open loop are due: instants in ns after the start, in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.clock import SECOND
from headrace.errors import InvalidLoad

MOST = 10_000_000
"""Requests that one load may have: their instants are in memory."""
BURST = 32


def is_file(kind: str) -> bool:
    """Whether arrivals are those of a file."""
    return kind.partition(":")[0] not in ("poisson", "constant", "bursts")


def due(kind: str, rate: float | None, seconds: float, seed: int) -> NDArray[np.int64]:
    """The instants of one load.

    Args:
        kind: `poisson`; `constant`; `bursts` or `bursts:N`, which is N requests at once (32) at the instants of a Poisson
            process; or the path of a file with one instant a line, in seconds.
        rate: requests/s, on average over all kinds. A file may do without; with it, its time is stretched.
        seconds: how long. A file that is longer is cut, one that is shorter ends sooner.
        seed: of the random numbers.

    Raises:
        InvalidLoad: there is no such kind, the file cannot be read, a rate is missing, or there are too many requests.
    """
    name, _, size = kind.partition(":")
    if is_file(kind):
        return _of_file(Path(kind), rate, seconds)
    if rate is None:
        raise InvalidLoad(f"arrivals '{kind}' need a rate")
    if rate * seconds > MOST:
        raise InvalidLoad(f"{rate * seconds:.0f} requests are more than one load may have ({MOST}); lower the rate or the time")
    random = np.random.default_rng(seed)
    if name == "constant":
        instants = np.arange(int(rate * seconds)) / rate
    elif name == "poisson":
        instants = _poisson(random, rate, seconds)
    else:
        burst = _burst(size)
        instants = np.repeat(_poisson(random, rate / burst, seconds), burst)
    return (instants * SECOND).astype(np.int64)


def _poisson(random: np.random.Generator, rate: float, seconds: float) -> NDArray[np.float64]:
    """Of a Poisson process, given its count in the time, the instants are uniform and independent. The count is the mean one."""
    return np.sort(random.uniform(0, seconds, round(rate * seconds)))


def _burst(size: str) -> int:
    if not size:
        return BURST
    if not size.isdecimal() or int(size) == 0:
        raise InvalidLoad(f"'bursts:{size}': expected bursts:N, N requests at once")
    return int(size)


def _of_file(file: Path, rate: float | None, seconds: float) -> NDArray[np.int64]:
    if not file.is_file():
        raise InvalidLoad(f"arrivals '{file}': neither poisson, constant, bursts, bursts:N, nor a file")
    instants: list[float] = []
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidLoad(f"{file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].split(",")[0].strip()
        if not text:
            continue
        try:
            instants.append(float(text))
        except ValueError:
            if number > 1:  # the first line may be a head
                raise InvalidLoad(f"{file}, line {number}: '{text}' is no instant in seconds") from None
    if not instants:
        raise InvalidLoad(f"{file} has no instants")
    at = np.sort(np.array(instants))
    at -= at[0]
    if not np.isfinite(at).all():
        raise InvalidLoad(f"{file}: an instant is not finite")
    if rate is not None and at[-1] > 0:
        at *= (len(at) / rate) / at[-1]
    return (at[at < seconds] * SECOND).astype(np.int64)
