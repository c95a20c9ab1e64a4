"""Somebody's existing Optuna script, with a learning rate of its own, and the lines that change.

    python studies/plug_in.py [--trials 30]

The script tuned a small network on digits by hand: one width, one bit-width, a learning rate.
What it keeps: its study, its storage, its own parameter. What changes is marked (1) and (2).
"""

import argparse
from dataclasses import replace
from pathlib import Path

import optuna
import torch

import apq_optuna as apq

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--trials", type=int, default=30)
parser.add_argument("--epochs", type=float, default=30)
parser.add_argument("--run", type=Path, default=Path("runs/plug-in"))
arguments = parser.parse_args()
arguments.run.mkdir(parents=True, exist_ok=True)

print("about half a minute of training, once, then half a second a trial (2 cores)")
data = apq.load_data("digits")
if not (arguments.run / "supernet.safetensors").exists():
    torch.manual_seed(0)
    space = apq.SearchSpace.preset("digits")
    plan = apq.TrainingPlan(epochs=arguments.epochs, batch_size=64, learning_rate=0.05)
    apq.train_supernet(apq.OnceForAllNet(space), data, plan, arguments.run, progress=True)
supernet = apq.OnceForAllNet.load(arguments.run)
costs = apq.hardware.bitfusion_small().table(supernet.space)
measure = apq.Objective(supernet, data, costs)


def objective(trial: optuna.Trial) -> tuple[float, ...] | float:
    lr = trial.suggest_float("lr", 3e-4, 1e-2, log=True)  # the script's own parameter, unchanged
    measure.finetune = replace(measure.finetune, steps=20, learning_rate=lr)
    return measure(trial)  # (1) the network, its pruning and its bits are suggested in here


study = optuna.create_study(
    study_name="plug-in",
    storage=f"sqlite:///{arguments.run}/study.db",
    directions=["maximize", "minimize", "minimize"],
    sampler=apq.APQSampler(supernet.space, costs=costs, seed=0),  # (2) was TPESampler(seed=0)
    load_if_exists=True,
)
study.set_metric_names(["accuracy", "latency_ms", "energy_mj"])
study.optimize(objective, n_trials=arguments.trials, show_progress_bar=True)
for trial in study.best_trials:
    print(trial.number, [round(v, 4) for v in trial.values], f"lr {trial.params['lr']:.2g}")
