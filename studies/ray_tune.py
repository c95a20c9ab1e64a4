"""The joint search under Ray Tune: `OptunaSearch` asks our sampler, two actors measure.

    pip install 'apq-optuna[engines]'
    python studies/ray_tune.py [--trials 12]

Ray owns the trials; the search space and the sampler are ours. Ray takes the space as a function
of an Optuna trial, and reports come back by metric name.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import optuna
import ray
import torch
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

import apq_optuna as apq

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--trials", type=int, default=12)
parser.add_argument("--epochs", type=float, default=20)
parser.add_argument("--run", type=Path, default=Path("runs/ray"))
arguments = parser.parse_args()
run = arguments.run.resolve()
run.mkdir(parents=True, exist_ok=True)

data = apq.load_data("digits")
space = apq.SearchSpace.preset("digits")
if not (run / "supernet.safetensors").exists():
    torch.manual_seed(0)
    plan = apq.TrainingPlan(epochs=arguments.epochs, batch_size=64, learning_rate=0.05)
    apq.train_supernet(apq.OnceForAllNet(space), data, plan, run, progress=True)
costs = apq.hardware.bitfusion_small().table(space)
names, modes = ["accuracy", *costs.metric_names], ["max", "min", "min"]


def define(trial: optuna.Trial) -> None:
    space.suggest(trial)


def measure(config: dict) -> None:
    torch.set_num_threads(1)
    objective = apq.Objective(
        apq.OnceForAllNet.load(run), apq.load_data("digits"), costs,
        finetune=apq.FinetuneOptions(steps=10, learning_rate=3e-3),
    )  # fmt: skip
    subnet = space.decode(space.from_params(config))
    accuracy, _ = objective.measure(subnet)
    tune.report(dict(zip(names, (accuracy, *costs.network_cost(subnet.layers())), strict=True)))


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
search = OptunaSearch(
    space=define, metric=names, mode=modes, sampler=apq.APQSampler(space, costs=costs, seed=0)
)
tuner = tune.Tuner(
    tune.with_resources(measure, {"cpu": 1}),
    tune_config=tune.TuneConfig(
        search_alg=ConcurrencyLimiter(search, max_concurrent=2), num_samples=arguments.trials
    ),
    run_config=tune.RunConfig(storage_path=str(run), name="tune", verbose=0),
)
results = tuner.fit()
rows = {space.from_params(result.config).tobytes() for result in results}
best = max(results, key=lambda result: result.metrics["accuracy"])
print(f"{len(results)} trials, {len(rows)} distinct, {results.num_errors} failed")
print({name: round(best.metrics[name], 4) for name in names})
ray.shutdown()
