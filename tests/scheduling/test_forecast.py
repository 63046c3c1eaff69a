"""What an instance learns of the way that answers have before them. Pure, but for the queue that is told."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.clock import MILLISECOND
from headrace.model import Batching, ModelSpec
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import SetPoints
from headrace.tensor import TensorSpec
from tests.scheduling.support import House


@pytest.fixture
def house(transport: str) -> Any:
    x, y = TensorSpec("x", "FP32", (2,)), TensorSpec("y", "FP32", (2,))
    made = House(ModelSpec("m", 1, "d", "fake", "", 8, (x,), (y,), Batching(enabled=True)))
    yield made
    made.close()


def test_the_margin_follows_what_is_behind_up_and_down_again(house: House) -> None:
    forecast = Forecast(house.queue, SetPoints(8, margin_ns=MILLISECOND), 1)
    for lasts in (30, 1, 30, 2):
        for _ in range(100):
            forecast.behind(lasts * MILLISECOND)
        assert forecast.points.margin_ns == (1 + lasts) * MILLISECOND
