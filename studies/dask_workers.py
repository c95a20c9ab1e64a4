"""The joint search on Dask: `DaskStorage` keeps the study at the scheduler, two workers ask it.

pip install 'apq-optuna[engines]'
python studies/dask_workers.py [--trials 12]
"""

import argparse
from pathlib import Path

import optuna
import torch
from distributed import Client, LocalCluster, wait
from optuna_integration.dask import DaskStorage

import apq_optuna as apq


def worker(storage: DaskStorage, run: str, trials: int, seed: int) -> int:
    """One worker's share; its sampler learns from what the other has told."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    supernet = apq.OnceForAllNet.load(run)
    costs = apq.hardware.bitfusion_small().table(supernet.space)
    objective = apq.Objective(
        supernet, apq.load_data("digits"), costs,
        finetune=apq.FinetuneOptions(steps=10, learning_rate=3e-3),
    )  # fmt: skip
    sampler = apq.APQSampler(supernet.space, costs=costs, seed=seed)
    study = optuna.load_study(study_name="dask", storage=storage, sampler=sampler)
    study.optimize(objective, n_trials=trials)
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--run", type=Path, default=Path("runs/dask"))
    arguments = parser.parse_args()
    run: Path = arguments.run.resolve()
    run.mkdir(parents=True, exist_ok=True)
    space = apq.SearchSpace.preset("digits")
    if not (run / "supernet.safetensors").exists():
        torch.manual_seed(0)
        plan = apq.TrainingPlan(epochs=arguments.epochs, batch_size=64, learning_rate=0.05)
        apq.train_supernet(
            apq.OnceForAllNet(space), apq.load_data("digits"), plan, run, progress=True
        )
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        storage = DaskStorage(f"sqlite:///{run}/study.db", client=client)
        study = optuna.create_study(
            study_name="dask", storage=storage, load_if_exists=True,
            directions=["maximize", "minimize", "minimize"],
        )  # fmt: skip
        study.set_metric_names(["accuracy", "latency_ms", "energy_mj"])
        share = -(-arguments.trials // 2)
        shares = [share, arguments.trials - share]
        futures = [
            client.submit(worker, storage, str(run), n, seed, pure=False)
            for seed, n in enumerate(shares)
        ]
        wait(futures)
        client.gather(futures)  # raises what a worker raised
        trials = study.trials
        rows = {space.from_params(trial.params).tobytes() for trial in trials}
        best = max(study.best_trials, key=lambda trial: trial.values[0])
        print(f"{len(trials)} trials, {len(rows)} distinct")
        print([round(value, 4) for value in best.values])


if __name__ == "__main__":
    main()
