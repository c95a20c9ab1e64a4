"""Does transfer help? The transferred predictor against one from scratch, on quantized networks.

    python benchmarks/transfer.py --run pretrained:cifar10 --storage sqlite:///FILE --study random

Reads a study of random quantized trials. 40 of them are never trained on; on those, pairwise
accuracy after 10, 20, 40 and 80 of the others, median and range over several draws of the
training trials. The third column uses every trial of another study (what the sampler measured
itself).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import optuna
import torch

import apq_optuna as apq
from apq_optuna.predictor import AccuracyPredictor, evaluate, pairwise_accuracy, transfer
from apq_optuna.sampler.history import History

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--run", required=True)
parser.add_argument("--storage", required=True)
parser.add_argument("--study", default="random", help="study of random trials")
parser.add_argument("--searched", help="study of the sampler, for the last line")
parser.add_argument("--held", type=int, default=40)
parser.add_argument("--draws", type=int, default=5)
parser.add_argument("--out", type=Path, help="also write the figures as JSON")
arguments = parser.parse_args()

torch.manual_seed(0)
supernet = apq.OnceForAllNet.load(arguments.run.removeprefix("pretrained:"))
space = supernet.space
store = apq.PairStore(arguments.storage, supernet=supernet)
pairs = store.load()
features32 = store.features(space, pairs)

order = np.random.default_rng(0).permutation(len(pairs))
test, train = np.split(order, [len(pairs) // 5])
fp32 = AccuracyPredictor(space.num_features, space.architecture_features)
fp32.fit(features32[train], pairs.accuracies[train], epochs=60)
quality = evaluate(pairs.accuracies[test], *fp32.predict(features32[test]))
print(
    f"fp32 pairs: {len(pairs)}, accuracy {pairs.accuracies.mean():.4f} "
    f"+- {pairs.accuracies.std():.4f}"
)
print(f"fp32 predictor on {quality.rows} held-out pairs: {quality}")


def rows_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    study = optuna.load_study(study_name=name, storage=apq.open_storage(arguments.storage))
    snapshot = History(space, strict=True).read(study)
    return space.features(snapshot.genotypes), snapshot.values[:, 0]


features, accuracies = rows_of(arguments.study)
split = np.random.default_rng(1).permutation(len(accuracies))
held, pool = np.split(split, [arguments.held])
print(f"quantized: {len(accuracies)} random trials, {len(held)} never trained on, "
      f"accuracy {accuracies.mean():.4f} +- {accuracies.std():.4f}")  # fmt: skip
base = store.fp32_predictor(space, pairs)
replay = (features32, pairs.accuracies)
figures: dict[str, object] = {"fp32": vars(quality), "transferred": {}, "scratch": {}}
print(f"{'pairs':>6} {'transferred':>24} {'from scratch':>24} {'RMSE':>14} {'coverage':>9}")
for n in (0, 10, 20, 40, 80):
    if n > len(pool):
        continue
    results = []
    for draw in range(arguments.draws if n else 1):
        chosen = np.random.default_rng(100 + draw).permutation(pool)[:n]
        x, y = features[chosen], accuracies[chosen]
        moved = transfer(base, x, y, replay=replay, seed=draw)
        metrics = evaluate(accuracies[held], *moved.predict(features[held]))
        scratch = float("nan")
        if n:
            alone = AccuracyPredictor(space.num_features, space.architecture_features, seed=draw)
            alone.fit(x, y, epochs=200)
            scratch = pairwise_accuracy(accuracies[held], alone.predict(features[held])[0])
        results.append((metrics.pairwise_accuracy, scratch, metrics.rmse, metrics.coverage))
    table = np.array(results)
    middle, low, high = np.median(table, 0), table.min(0), table.max(0)
    texts = [f"{middle[i]:.3f} ({low[i]:.3f} to {high[i]:.3f})" for i in (0, 1)]
    print(f"{n:>6} {texts[0]:>24} {texts[1]:>24} {middle[2]:>14.4f} {middle[3]:>9.2f}")
    figures["transferred"][n] = table[:, 0].tolist()  # type: ignore[index]
    figures["scratch"][n] = table[:, 1].tolist()  # type: ignore[index]
if arguments.searched:
    x, y = rows_of(arguments.searched)
    moved = transfer(base, x, y, replay=replay)
    metrics = evaluate(accuracies[held], *moved.predict(features[held]))
    print(f"after the {len(y)} trials the sampler chose: {metrics}")
    figures["searched"] = vars(metrics)
if arguments.out:
    arguments.out.write_text(json.dumps(figures, indent=1))
