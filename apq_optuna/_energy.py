"""Energy and CO2 of what takes time.

Energy is what codecarbon finds, or a stated power for the time it took, at the overhead of a data
centre (Strubell et al., ACL 2019, equations 1 and 2):

    kWh   = PUE * hours * watts / 1000    PUE 1.58
    CO2e  = 0.954 lb * kWh                0.954 lb = 432.7 g
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from dataclasses import dataclass
from typing import Any

from apq_optuna.errors import InvalidArgumentError

MACHINE_WATTS = 65.0
CODECARBON, STATED = "codecarbon", "stated power"


@dataclass(frozen=True)
class LedgerOptions:
    """How energy and CO2 are found.

    Attributes:
        watts: Power of the machine, or of its share where several processes work at once: each
            counts it in full. None asks codecarbon where that is installed (the extra `carbon`),
            and is 65 W where it is not.
        pue: Energy of the data centre over that of its machines, at least 1.
        grams_per_kwh: CO2 equivalent of a kWh.
        country: Three letters of ISO 3166, for codecarbon's figure of that country instead of
            `grams_per_kwh`.

    Raises:
        InvalidArgumentError: A number that makes no sense.
    """

    watts: float | None = None
    pue: float = 1.58
    grams_per_kwh: float = 0.954 * 453.59237
    country: str = ""

    def __post_init__(self) -> None:
        if self.watts is not None and not 0 < self.watts < math.inf:
            raise InvalidArgumentError(f"watts={self.watts}: must be positive")
        if not 1 <= self.pue < math.inf:
            raise InvalidArgumentError(f"pue={self.pue}: at least 1")
        if not 0 <= self.grams_per_kwh < math.inf:
            raise InvalidArgumentError(f"grams_per_kwh={self.grams_per_kwh}: cannot be negative")

    @classmethod
    def of_environment(cls, watts: float | None = None) -> LedgerOptions:
        """Options with `$APQ_WATTS`, unless `watts` are given, and the country `$APQ_COUNTRY`."""
        if watts is None and (text := os.environ.get("APQ_WATTS", "")):
            try:
                watts = float(text)
            except ValueError:
                raise InvalidArgumentError(f"APQ_WATTS={text!r}: a number of watts") from None
        return cls(watts=watts, country=os.environ.get("APQ_COUNTRY", ""))

    def kwh(self, seconds: float) -> float:
        """Energy at the stated power, in kWh."""
        return self.pue * seconds / 3600 * (self.watts or MACHINE_WATTS) / 1000


class Meter:
    """Energy from now on.

    Args:
        options: How it is found.
    """

    def __init__(self, options: LedgerOptions) -> None:
        self._options = options
        self._tracker = _codecarbon(options) if options.watts is None else None

    def stop(self, seconds: float) -> tuple[float, float, str]:
        """kWh, grams of CO2 equivalent, and where they are from; `seconds` are what it took."""
        if self._tracker is not None:
            with contextlib.suppress(Exception):
                self._tracker.stop()
                found = self._tracker.final_emissions_data
                if found.energy_consumed > 0:
                    return found.energy_consumed, 1000 * found.emissions, CODECARBON
        kwh = self._options.kwh(seconds)
        return kwh, kwh * self._options.grams_per_kwh, STATED


def _codecarbon(options: LedgerOptions) -> Any:
    """A started tracker; None where codecarbon is not installed or does not work.

    It follows this process and its children, writes no files and asks no server: whatever its own
    configuration names for that is overridden.
    """
    try:
        import codecarbon

        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=options.country or "USA",
            force_carbon_intensity_g_co2e_kwh=None if options.country else options.grams_per_kwh,
            pue=options.pue, tracking_mode="process", output_methods=[], emissions_endpoint=False,
            electricitymaps_api_token="", allow_multiple_runs=True, log_level="error",
        )  # fmt: skip
        tracker.start()
        return tracker
    except Exception:  # a figure less, not a task
        return None
