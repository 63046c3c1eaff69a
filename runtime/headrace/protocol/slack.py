"""What a server tells those who take only what is left of it: in the properties of a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from headrace.errors import BackendFailed

_LEVEL, _ROWS, _BURN = "job_class", "job_rows", "burn"


class Slack(NamedTuple):
    """How much room a version has beside its requests.

    `level` is the class of batch jobs, 0 where there is none. A batch of `rows` is short enough for others to wait for; None
    while that is not known. `burn` is how fast the budgets of others are spent now (`budgets.burn.burning`), None without
    objectives.
    """

    level: int = 0
    rows: int | None = None
    burn: float | None = None

    def properties(self) -> dict[str, str]:
        """As properties; what is not known is not there."""
        told = {_LEVEL: str(self.level) if self.level else None, _ROWS: self.rows, _BURN: self.burn}
        return {
            name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in told.items() if value is not None
        }

    @staticmethod
    def of(properties: Mapping[str, str]) -> Slack:
        """What was told.

        Raises:
            BackendFailed: it is no number.
        """
        rows, burn = properties.get(_ROWS), properties.get(_BURN)
        try:
            return Slack(
                int(properties.get(_LEVEL, 0)), None if rows is None else int(rows), None if burn is None else float(burn)
            )
        except ValueError as error:
            raise BackendFailed(f"what the server tells of its slack cannot be read: {error}") from None
