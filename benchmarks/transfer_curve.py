"""How many quantized pairs a predictor needs: pairwise accuracy on networks it never saw.

    python benchmarks/transfer_curve.py --run RUN [--data folder:DIR] [--held 150] [--pool 80]

Measures random quantized networks (a study in the run's database, gone on with), `--held` of them
with a second seed besides. On those: the sampler's own surrogate and the paper's finetuned
ensemble, each with the fp32 pairs and from scratch, and the fp32 predictor as it is. Where the
database has calibrated pairs (`collect --quantized`), the surrogate with both, too. All are judged
by the first measurement. `one by the other` is how well one measurement orders another of
the same networks; `perfect` what a predictor that knew every network's mean would reach, from the
two seeds: spread and noise, both normal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import optuna
from _machine import describe

import apq_optuna as apq
from apq_optuna.predictor import AccuracyPredictor, pairwise_accuracy, transfer
from apq_optuna.sampler.sources import calibrated_rows
from apq_optuna.sampler.surrogate import Surrogate
from apq_optuna.sampler.trends import Earlier, Score

SIZES = (0, 5, 10, 20, 40, 80)


def perfect(spread: float, noise: float) -> float:
    """Share of pairs that true means order as a noisy measurement does.

    A difference of means d ~ N(0, 2 spread^2) is measured as d + e, e ~ N(0, 2 noise^2): they have
    one sign with probability 1 - atan(noise / spread) / pi.
    """
    return 1.0 - float(np.arctan2(noise, spread)) / np.pi


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--storage", help="default: the run's apq.db")
    parser.add_argument("--data")
    parser.add_argument("--held", type=int, default=150)
    parser.add_argument("--pool", type=int, default=80)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--finetune-rate", type=float, default=1e-3)
    parser.add_argument("--images", type=int, help="search-validation images of a network")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    describe()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = arguments.storage or f"sqlite:///{arguments.run}/apq.db"
    net = apq.OnceForAllNet.load(arguments.run)
    data = apq.load_data(arguments.data or str(net.data_info["name"]))
    space, store = net.space, apq.PairStore(url, supernet=net)
    options = apq.FinetuneOptions(steps=arguments.steps, learning_rate=arguments.finetune_rate)
    objective = apq.Objective(net, data, finetune=options, images=arguments.images)
    study = optuna.create_study(
        study_name="transfer curve", storage=apq.open_storage(url), direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=7), load_if_exists=True,
    )  # fmt: skip
    there = study.get_trials(deepcopy=False)
    if there:
        study.sampler.reseed_rng()
    todo = arguments.held + arguments.pool - len(there)
    study.optimize(objective, n_trials=max(todo, 0))
    numbers = [trial.number for trial in study.trials if trial.values][: arguments.held]
    again = apq.confirm(study, objective, 1, trials=numbers, progress=True)

    genotypes = np.stack([space.from_params(t.params) for t in study.trials if t.values])
    first = np.array([t.values[0] for t in study.trials if t.values])
    held, pool = np.split(np.arange(len(first)), [arguments.held])
    second = np.array([again[n][0] for n in numbers])
    target = first[held]
    noise = float(np.sqrt(np.mean((target - second) ** 2) / 2))
    spread = float(np.sqrt(max(target.var(ddof=1) - noise**2, 1e-12)))
    ceiling = perfect(spread, noise)
    one = pairwise_accuracy(target, second)
    print(
        f"{len(held)} held-out networks: accuracy {target.mean():.4f}, spread {spread:.4f}, noise "
        f"{noise:.4f} ({noise / spread:.2f}); one by the other {one:.3f}, perfect {ceiling:.3f}; "
        f"{len(store)} fp32 pairs, {len(store.quantized())} calibrated ones"
    )
    features = space.features(genotypes)
    pairs = store.load()
    fp32 = store.fp32_predictor(space, pairs)
    replay = (store.features(space, pairs), pairs.accuracies)
    plain = genotypes.copy()
    plain[:, [d.quantization for d in space.decisions]] = 0
    unchanged = pairwise_accuracy(
        target, fp32.predict(space.features(space.canonical(plain[held])))[0]
    )
    print(f"fp32 predictor unchanged: {unchanged:.3f}")

    scorer = store.fp32_scorer(space, pairs)
    calibrated = calibrated_rows(space, store)

    def surrogate(
        x: np.ndarray, y: np.ndarray, score: Score | None, beside: Earlier | None = None
    ) -> float:
        model = Surrogate(space, fp32=score, calibrated=beside, maximise=True).refresh(x, y)
        return pairwise_accuracy(target, model.predict(genotypes[held])[0])

    figures: dict[str, object] = {
        "spread": spread, "noise": noise, "one by the other": one, "perfect": ceiling,
        "fp32": unchanged, "curve": {},
    }  # fmt: skip
    names = ("surrogate", "with calibrated", "from scratch", "ensemble", "from scratch ")
    print(f"{'pairs':>6} " + " ".join(f"{name:>22}" for name in names))
    for n in SIZES:
        if n > len(pool):
            continue
        rows = []
        for draw in range(arguments.draws if n else 1):
            chosen = np.random.default_rng(100 + draw).permutation(pool)[:n]
            x, y = genotypes[chosen], first[chosen]
            moved = transfer(fp32, features[chosen], y, replay=replay, seed=draw)
            row = [
                surrogate(x, y, scorer),
                surrogate(x, y, scorer, calibrated) if calibrated is not None else np.nan,
                surrogate(x, y, None) if n else np.nan,
                pairwise_accuracy(target, moved.predict(features[held])[0]),
                np.nan,
            ]
            if n:
                alone = AccuracyPredictor(
                    space.num_features, space.architecture_features, seed=draw
                )
                alone.fit(features[chosen], y, epochs=200)
                row[4] = pairwise_accuracy(target, alone.predict(features[held])[0])
            rows.append(row)
        table = np.array(rows)
        cells = [f"{np.median(c):.3f} ({c.min():.3f}-{c.max():.3f})" for c in table.T]
        print(f"{n:>6} " + " ".join(f"{cell:>22}" for cell in cells), flush=True)
        figures["curve"][n] = table.tolist()  # type: ignore[index]
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
