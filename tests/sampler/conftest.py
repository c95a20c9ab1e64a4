"""Shared by the tests of the sampler."""

import pytest

from apq_optuna.hardware import CostTable

from .helpers import Measured


@pytest.fixture
def measure(digits_costs: CostTable) -> Measured:
    return Measured(digits_costs)
