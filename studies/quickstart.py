"""The whole job as a script: what `apq-optuna quickstart` does, in the library's own words.

    python studies/quickstart.py [--trials 60] [--run runs/quickstart-script]

The middle part is the script every user starts from; only names of files differ.
"""

import argparse
from pathlib import Path

import optuna
import torch

import apq_optuna as apq

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--trials", type=int, default=60)
parser.add_argument("--pairs", type=int, default=200)
parser.add_argument("--epochs", type=float, default=40)
parser.add_argument("--run", type=Path, default=Path("runs/quickstart-script"))
arguments = parser.parse_args()
run: Path = arguments.run
run.mkdir(parents=True, exist_ok=True)

print("about half a minute of training, once, then half a second a trial (2 cores)")
data = apq.load_data("digits")
if not (run / "supernet.safetensors").exists():  # trained once
    torch.manual_seed(0)
    untrained = apq.OnceForAllNet(apq.SearchSpace.preset("digits"))
    plan = apq.TrainingPlan(epochs=arguments.epochs, batch_size=64, learning_rate=0.05)
    apq.train_supernet(untrained, data, plan, run, progress=True)

url = f"sqlite:///{run}/apq.db"
supernet = apq.OnceForAllNet.load(run)
pairs = apq.PairStore(url, supernet=supernet)
# evaluations, no training
apq.collect_pairs(supernet, data, pairs, arguments.pairs, progress=True)

costs = apq.hardware.bitfusion_small().table(supernet.space)
objective = apq.Objective(
    supernet, data, costs, finetune=apq.FinetuneOptions(steps=30, learning_rate=3e-3)
)
sampler = apq.APQSampler(supernet.space, costs=costs, source=pairs, seed=0)
study = optuna.create_study(
    study_name="quickstart",
    storage=apq.open_storage(url),
    directions=objective.directions,
    sampler=sampler,
    load_if_exists=True,
)
study.set_metric_names(objective.metric_names)  # accuracy, latency_ms, energy_mj
report = apq.ParetoReport(run / "report.html", space=supernet.space)
study.optimize(objective, n_trials=arguments.trials, callbacks=[report], show_progress_bar=True)
report.write(study)

for trial in sorted(study.best_trials, key=lambda t: -t.values[0]):
    print(trial.number, [round(value, 4) for value in trial.values])
print(f"report: {run / 'report.html'}")
