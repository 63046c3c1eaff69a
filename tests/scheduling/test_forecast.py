"""What an instance learns of the way that answers have before them. Pure, but for the queue that is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.clock import MILLISECOND
from headrace.model import Batching, ModelSpec
from headrace.scheduling.admission import SHARE_OF
from headrace.scheduling.forecast import Forecast
from headrace.scheduling.plan import VIEW, Plan, Reason, SetPoints
from headrace.scheduling.predictor import Learned
from headrace.scheduling.steering import Steering
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


def test_steering_moves_margin_quantile_and_patience_and_back(house: House) -> None:
    configured = SetPoints(8, delay_ns=2 * MILLISECOND, margin_ns=MILLISECOND, holds=True)
    forecast = Forecast(house.queue, configured, 2)
    for _ in range(100):
        forecast.behind(3 * MILLISECOND)
    for ns in (10, 10, 10, 12, 14, 16, 18, 20):
        forecast.ran(7, 1, ns)
    before = forecast.points, forecast.predictor.execute_ns(7, 1)
    forecast.steer(Steering(quantile=1.0, margin_ns=MILLISECOND, patience=0.25))
    assert forecast.points == replace(before[0], margin_ns=5 * MILLISECOND, delay_ns=MILLISECOND // 2, holds=False)
    assert forecast.predictor.execute_ns(7, 1) == 20
    forecast.steer(Steering())
    assert (forecast.points, forecast.predictor.execute_ns(7, 1)) == before


def test_batches_go_to_the_variant_in_turn_and_each_is_foretold_as_what_it_is(house: House) -> None:
    forecast = Forecast(house.queue, SetPoints(8), 1, variant=Learned())
    for _ in range(4):
        forecast.ran(7, 1, 1000)
        forecast.ran(7, 1, 100, on_variant=True)
    forecast.steer(Steering(variant=SHARE_OF // 2))
    seen: list[tuple[bool, int | None]] = []
    for number in range(4):
        seen.append((forecast.is_for_variant, forecast.predictor.execute_ns(7, 1)))
        forecast.saw(np.zeros(0, VIEW), Plan((number,), (), None, Reason.IDLE, 7), 0)
        forecast.saw(np.zeros(0, VIEW), Plan((), (), None, Reason.WAIT), 0)
    assert seen == [(False, 1000), (True, 100)] * 2


def test_how_many_rows_are_short_enough_of_whatever_shape(house: House) -> None:
    forecast = Forecast(house.queue, SetPoints(8), 1)
    assert forecast.rows_within(MILLISECOND) is None
    for bucket, row_ns in ((1, 10), (2, 30)):
        for rows in (1, 8):
            for _ in range(4):
                forecast.ran(bucket, rows, 100 + rows * row_ns)
    assert [forecast.rows_within(ns) for ns in (1, 130, 200, 100_000)] == [1, 1, 3, 8]
