"""Different devices want different networks: the best for each of three, priced on all three.

    python benchmarks/specialise.py --data folder:PATH --storage URL [--study search]

From one finished study of a supernet, the front is predicted on BitFusion, on the bit-serial
array and on this CPU, within a budget that is matched: the median latency of 2,000 random
networks on each. The most accurate candidates are then measured (finetuned as trials are, on the
search-validation images), and the best of each device is priced on all.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import optuna
from _machine import describe

import apq_optuna as apq
from apq_optuna._optuna import study_attribute
from apq_optuna.hardware import CostTable, correct, find_device
from apq_optuna.hardware.tables.calibrate import calibration_networks
from apq_optuna.objective import genotype_seed
from apq_optuna.prediction import predicted_front
from apq_optuna.report.hardware_plots import write_figure
from apq_optuna.report.network_plots import networks_figure

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--data", required=True, help="folder:PATH")
parser.add_argument("--run", default="cifar10", help="supernet: a folder, or a packaged one")
parser.add_argument("--storage", required=True, help="database URL of the study and its pairs")
parser.add_argument("--study", default="search")
parser.add_argument("--cpu-table", type=Path, help="a table of this CPU measured before")
parser.add_argument("--seeds", type=int, default=3, help="searches of each front")
parser.add_argument("--top", type=int, default=4, help="candidates of each that are measured")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--images", type=int, help="search-validation images; all by default")
parser.add_argument("--out", type=Path, default=Path("specialise"), help=".json and .html")
arguments = parser.parse_args()
describe()
optuna.logging.set_verbosity(optuna.logging.WARNING)

supernet = apq.OnceForAllNet.load(arguments.run)
space = supernet.space
store = apq.PairStore(arguments.storage, supernet=supernet)
study = optuna.load_study(study_name=arguments.study, storage=apq.open_storage(arguments.storage))
data = apq.load_data(arguments.data)
rates = (study_attribute(study, "objective") or {}).get("finetune rates", "alike")
options = apq.FinetuneOptions(steps=arguments.steps, rates=rates)
objective = apq.Objective(supernet, data, finetune=options, images=arguments.images)
tables: dict[str, CostTable] = {}
for name in ("bitfusion", "bitserial", "cpu"):
    device = find_device(name)
    if name == "cpu" and arguments.cpu_table:
        tables[name] = CostTable.load(arguments.cpu_table)
        continue
    tables[name] = device.table(space)
    if device.runs_networks:
        chosen = calibration_networks(tables[name], space, 5)
        tables[name] = correct(tables[name], device, chosen)
rows = space.sample(2000, np.random.default_rng(0))
budgets = {name: float(np.median(t.compile(space)(rows)[:, 0])) for name, t in tables.items()}

best: dict[str, tuple[float, float, apq.Subnet, dict[str, int]]] = {}
accuracies: dict[int, float] = {}
for name, table in tables.items():
    started, found = time.perf_counter(), {}
    for seed in range(arguments.seeds):
        front = predicted_front(
            study, space, table, source=store, budgets={"latency_ms": budgets[name]}, seed=seed
        )
        for i, subnet in enumerate(front.subnets()[: arguments.top]):
            params = space.to_params(front.genotypes[i])
            found[genotype_seed(subnet)] = (float(front.accuracy[i]), subnet, params)
    predicted = time.perf_counter() - started
    for key, (_, subnet, _) in found.items():
        if key not in accuracies:
            accuracies[key] = objective.measure(subnet)[0]
    key = max(found, key=lambda key: accuracies[key])
    best[name] = (accuracies[key], *found[key])
    each = [accuracies[key] for key in found]
    print(
        f"{name}: budget {budgets[name]:.4f} ms, {len(found)} candidates of {arguments.seeds} "
        f"searches ({predicted:.1f} s); measured accuracy {min(each):.4f} to {max(each):.4f}, "
        f"median {np.median(each):.4f}; predicted for the best {found[key][0]:.4f}"
    )

names = list(tables)
priced = np.array([[tables[d].network_cost(best[n][2].layers())[0] for d in names] for n in names])
shares = priced / np.array([budgets[d] for d in names])
print(f"\n{'network for':>12}  accuracy  MMACs  bits   " + "   ".join(f"on {d:>9}" for d in names))
titles = []
genotypes = {name: space.from_params(best[name][3]) for name in names}
for i, name in enumerate(names):
    accuracy, _, subnet, _ = best[name]
    bits = float(space.mean_bits(genotypes[name][None])[0])
    cells = "  ".join(f"{priced[i, j]:.4f} x{shares[i, j]:.2f}" for j in range(len(names)))
    print(f"{name:>12}  {accuracy:8.4f}  {subnet.macs / 1e6:5.2f}  {bits:4.2f}   {cells}")
    own = f"{priced[i, i]:.3f} ms of {budgets[name]:.3f}"
    titles.append(
        f"{name}: accuracy {accuracy:.3f}, {own}, {subnet.macs / 1e6:.1f} MMACs, {bits:.1f} bits"
    )
print("ms, and as a share of that device's budget; above x1.00 it does not meet it")
arguments.out.with_suffix(".json").write_text(
    json.dumps(
        {
            "budgets_ms": budgets,
            "latencies_ms": priced.tolist(),
            "accuracies": {name: best[name][0] for name in names},
            "networks": {name: best[name][3] for name in names},
            "measured": len(accuracies),
        },
        indent=1,
    )
)
figure = networks_figure(space, [(t, genotypes[n]) for t, n in zip(titles, names, strict=True)])
print(f"picture: {write_figure(figure, arguments.out.with_suffix('.html'))}")
