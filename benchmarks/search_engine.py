"""The evolutionary engine on the paper's space: population 100, 500 generations, a latency budget.

python benchmarks/search_engine.py
"""

import time

import numpy as np
from _machine import describe

from apq_optuna.hardware import bitfusion
from apq_optuna.predictor import AccuracyPredictor
from apq_optuna.search import budgeted_score, evolve
from apq_optuna.space import SearchSpace

rate = describe()
space = SearchSpace.preset("imagenet")
costs = bitfusion().table(space).compile(space)
predictor = AccuracyPredictor(space.num_features, space.architecture_features, members=1)
score = budgeted_score(predictor.scorer(space), costs, np.array([10.0, np.inf]))
seconds = []
for seed in range(5):
    start = time.perf_counter()
    result = evolve(space, score, rng=np.random.default_rng(seed))
    seconds.append(time.perf_counter() - start)
flops = 2 * (space.num_features * 400 + 2 * 400 * 400 + 400) * result.evaluated
print(
    f"100 x 500: {min(seconds):.3f} s (median {np.median(seconds):.3f}), {result.evaluated} "
    f"candidates, {result.evaluated / min(seconds):,.0f} a second"
)
print(
    f"the predictor alone is {flops / 1e9:.1f} GFLOP: {flops / 1e9 / rate:.3f} s at the GEMM rate "
    f"of this run; the search takes {min(seconds) / (flops / 1e9 / rate):.1f} times that"
)
print(f"best candidate: {costs(result.genotypes[:1])[0, 0]:.3f} ms of 10 allowed")
