"""Models of several objectives at once: the same proposals, also after a fork."""

from __future__ import annotations

import multiprocessing
import sys

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

import apq_optuna as apq
from apq_optuna.sampler import parallel
from apq_optuna.sampler.parallel import each

SPACE = {f"x{i}": FloatDistribution(0, 1) for i in range(4)}


def asked(seed: int = 0) -> dict[str, float]:
    """What is proposed in a study of more trials than are `ENOUGH`."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=apq.APQSampler(seed=seed))
    rng = np.random.default_rng(0)
    for x in rng.random((parallel.ENOUGH + 5, 4)):
        params = dict(zip(SPACE, x.tolist(), strict=True))
        values = [float(x.sum()), float(((x - 0.3) ** 2).sum())]
        study.add_trial(create_trial(params=params, distributions=SPACE, values=values))
    return dict(study.ask(SPACE).params)


def test_what_is_proposed_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    together = asked()
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    assert asked() == together


def test_results_are_in_order_and_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    assert each(lambda n: n * n, range(9), parallel.ENOUGH) == [n * n for n in range(9)]
    with pytest.raises(ZeroDivisionError):
        each(lambda n: 1 // n, (1, 0), parallel.ENOUGH)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    assert each(abs, (-1, -2), parallel.ENOUGH) == [1, 2]
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(
        target=lambda: send.send(each(abs, (-3, -4), parallel.ENOUGH)), daemon=True
    )
    child.start()
    assert receive.poll(30)
    assert receive.recv() == [3, 4]
    child.join(30)
