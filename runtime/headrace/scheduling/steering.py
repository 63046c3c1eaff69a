"""What steers a version beyond its configuration: a noun between who decides it (`headrace.budgets`) and who goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

QUANTILE = 0.75
"""Which of the remembered execution times counts, where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Steering:
    """By default, everything is as it is configured.

    `quantile` is that of the predictor, 0 to 1; `margin_ns` is added to that of plans and door. What the configuration allows to
    wait for company is multiplied by `patience`, 0 to 2. Of `SHARE_OF` requests of a class, `shed` refuses so many; of so many
    batches, `variant` run on the cheaper variant.
    """

    quantile: float = QUANTILE
    margin_ns: int = 0
    patience: float = 1.0
    shed: Mapping[int, int] = field(default_factory=dict[int, int])
    variant: int = 0
