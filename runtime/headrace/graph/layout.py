"""Where things go in a picture of layers, one below the other: few crossings, straight ways, nothing on top of anything.

Widths and places are in pixels. Pure, and the same for the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import inf
from typing import NamedTuple, TypeAlias

_GAP = 18.0
"""Between neighbours of a layer."""
_SWEEPS = 12
_ROUNDS = 80

NODE, TENSOR, ANSWER, WAY = "node", "tensor", "answer", "way"


class Item(NamedTuple):
    """Something in a layer: a box, or the place where a line goes through, which is named as what the line is."""

    kind: str
    name: str
    layer: int


Link: TypeAlias = tuple[Item, Item]
"""From an item to one of the next layer."""


def links_of(lines: Sequence[tuple[str, Item, Item]]) -> list[Link]:
    """Lines that have a name and go down over any number of layers, as links from layer to layer; those of a name share it."""
    links: dict[Link, None] = {}
    for name, source, target in lines:
        ways = [Item(WAY, name, layer) for layer in range(source.layer + 1, target.layer)]
        links |= dict.fromkeys(pairwise([source, *ways, target]))
    return list(links)


def ordered(layers: Sequence[Sequence[Item]], links: Sequence[Link]) -> list[list[Item]]:
    """The layers, each from left to right, so that links cross as little as can be found out quickly."""
    above, below = _neighbours(links)
    order = [list(layer) for layer in layers]
    best, fewest = [*map(list, order)], _crossings(order, below)
    for sweep in range(_SWEEPS):
        is_down = sweep % 2 == 0
        steps = pairwise(range(len(order))) if is_down else pairwise(reversed(range(len(order))))
        for fixed, free in steps:
            place = {item: number for number, item in enumerate(order[fixed])}
            known = above if is_down else below
            wanted = {
                item: sum(place[each] for each in known[item]) / len(known[item]) if known.get(item) else float(number)
                for number, item in enumerate(order[free])
            }
            order[free].sort(key=wanted.__getitem__)
        if (crossings := _crossings(order, below)) < fewest:
            best, fewest = [*map(list, order)], crossings
    return best


def placed(layers: Sequence[Sequence[Item]], widths: Mapping[Item, float], links: Sequence[Link]) -> dict[Item, float]:
    """The middle of each item, the order of each layer kept: near those it is linked with, and `_GAP` from its neighbours.

    The leftmost edge is at 0.
    """
    pulls: dict[Item, list[tuple[Item, float]]] = {}
    for source, target in links:
        # A line must not bend on its way; of the rest, those from box to box make the spine of the picture.
        pull = (4.0, 1.0, 8.0)[(source.kind == WAY) + (target.kind == WAY)]
        pulls.setdefault(source, []).append((target, pull))
        pulls.setdefault(target, []).append((source, pull))
    centres: dict[Item, float] = {}
    for layer in layers:
        gaps = _distances(layer, widths)
        total = sum(gaps)
        centres |= dict(zip(layer, _apart([(-total / 2, 1.0)] * len(layer), gaps), strict=True))
    for count in range(_ROUNDS):
        for layer in layers if count % 2 else reversed(layers):
            wanted = [_wanted(item, pulls.get(item, []), centres) for item in layer]
            centres |= dict(zip(layer, _apart(wanted, _distances(layer, widths)), strict=True))
    _straighten(layers, widths, links, centres)
    left = min(centre - widths[item] / 2 for item, centre in centres.items())
    return {item: round(centre - left, 1) for item, centre in centres.items()}


def _straighten(
    layers: Sequence[Sequence[Item]], widths: Mapping[Item, float], links: Sequence[Link], centres: dict[Item, float]
) -> None:
    """Put what follows one another exactly below one another, as far down as the neighbours leave room for it."""
    left = {b: a for layer in layers for a, b in pairwise(layer)}
    right = {a: b for layer in layers for a, b in pairwise(layer)}

    def room(item: Item) -> tuple[float, float]:
        low = centres[left[item]] + (widths[left[item]] + widths[item]) / 2 + _GAP if item in left else -inf
        high = centres[right[item]] - (widths[right[item]] + widths[item]) / 2 - _GAP if item in right else inf
        return low, high

    for chain in _chains(links):
        waiting = list(chain)
        while waiting:
            low, high = room(waiting[0])
            straight = [waiting.pop(0)]
            while waiting:
                lower, upper = max(low, room(waiting[0])[0]), min(high, room(waiting[0])[1])
                if lower > upper:
                    break
                low, high = lower, upper
                straight.append(waiting.pop(0))
            centre = min(max(sum(centres[item] for item in straight) / len(straight), low), high)
            centres |= dict.fromkeys(straight, centre)


def _chains(links: Sequence[Link]) -> list[list[Item]]:
    """What follows one another with nothing beside it; lines that branch off a way on its way do not end it."""
    above, below = _neighbours(links)
    follows: dict[Item, Item] = {}
    for source, targets in below.items():
        ways = [target for target in targets if target.kind == WAY] if source.kind == WAY else []
        alone = ways or (targets if len(targets) == 1 and len(above[targets[0]]) == 1 else [])
        if alone:
            follows[source] = alone[0]
    chains: list[list[Item]] = []
    for start in follows.keys() - set(follows.values()):
        chain = [start]
        while chain[-1] in follows:
            chain.append(follows[chain[-1]])
        chains.append(chain)
    return sorted(chains, key=lambda chain: (-len(chain), chain[0]))


def _neighbours(links: Sequence[Link]) -> tuple[dict[Item, list[Item]], dict[Item, list[Item]]]:
    above: dict[Item, list[Item]] = {}
    below: dict[Item, list[Item]] = {}
    for source, target in links:
        above.setdefault(target, []).append(source)
        below.setdefault(source, []).append(target)
    return above, below


def _crossings(layers: Sequence[Sequence[Item]], below: Mapping[Item, Sequence[Item]]) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        place = {item: number for number, item in enumerate(lower)}
        ends = [(number, place[target]) for number, item in enumerate(upper) for target in below.get(item, ())]
        count += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(ends, 2))
    return count


def _distances(layer: Sequence[Item], widths: Mapping[Item, float]) -> list[float]:
    return [(widths[a] + widths[b]) / 2 + _GAP for a, b in pairwise(layer)]


def _wanted(item: Item, pulls: Sequence[tuple[Item, float]], centres: Mapping[Item, float]) -> tuple[float, float]:
    weight = sum(pull for _, pull in pulls)
    if not weight:
        return centres[item], 1.0
    return sum(centres[each] * pull for each, pull in pulls) / weight, weight


def _apart(wanted: Sequence[tuple[float, float]], gaps: Sequence[float]) -> list[float]:
    """The places nearest to those that are wanted, by least squares with weights, that are so far apart at least."""
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    pools: list[tuple[float, float, int]] = []  # mean, weight, members: neighbours that touch move together
    for (place, weight), offset in zip(wanted, offsets, strict=False):
        mean, count = place - offset, 1
        while pools and pools[-1][0] > mean:
            other, heft, members = pools.pop()
            mean, weight, count = (mean * weight + other * heft) / (weight + heft), weight + heft, count + members
        pools.append((mean, weight, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=False)]
