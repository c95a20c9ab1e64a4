"""Optuna's own contract for samplers, inherited for three set-ups of ours.

In the kit's studies, which have other parameters than the joint space, it is then just a sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

import apq_optuna as apq
from apq_optuna.hardware import CostTable
from apq_optuna.pairs import PairStore

SPACE = apq.SearchSpace.preset("digits")
Make = Callable[[], BaseSampler]


class Contract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """All three parts of the kit."""


class TestWithoutArguments(Contract):
    @pytest.fixture
    def sampler(self) -> Make:
        return apq.APQSampler


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, run_folder: Path
) -> list[PairStore | optuna.Study]:
    """fp32 pairs, and an earlier study of the joint space."""
    rng = np.random.default_rng(0)
    url = f"sqlite:///{tmp_path_factory.mktemp('pairs')}/apq.db"
    store = PairStore(url, supernet=apq.OnceForAllNet.load(run_folder))
    store.add(SPACE.sample(20, rng), rng.random(20))
    earlier = optuna.create_study(
        directions=["maximize", "minimize", "minimize"],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    earlier.optimize(lambda t: (SPACE.suggest(t).macs / 1e6, 0.0, 0.0), n_trials=5)
    return [store, earlier]


class TestWithJointSpaceAndCosts(Contract):
    @pytest.fixture
    def sampler(self, digits_costs: CostTable) -> Make:
        return lambda: apq.APQSampler(SPACE, costs=digits_costs)


class TestWithJointSpaceCostsAndSource(Contract):
    @pytest.fixture
    def sampler(self, digits_costs: CostTable, sources: list[PairStore | optuna.Study]) -> Make:
        return lambda: apq.APQSampler(SPACE, costs=digits_costs, source=sources)
