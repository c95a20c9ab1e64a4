"""CIFAR-10, from a folder of images to a front, with the supernet that comes with the package.

    python studies/cifar10.py --data folder:PATH [--trials 60] [--hardware bitfusion]

PATH holds train/CLASS/IMAGE and test/CLASS/IMAGE. The supernet and its fp32 pairs are in the
package (`apq_optuna/pretrained/cifar10`), so the search starts at once. Its images must be the
ones it was trained on: the same files in the same layout. `--train-minutes` trains one anew.
"""

import argparse
from pathlib import Path

from apq_optuna.cli import main

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--data", required=True, help="folder:PATH")
parser.add_argument("--trials", type=int, default=60)
parser.add_argument("--steps", type=int, default=20, help="finetuning steps of a trial")
parser.add_argument("--hardware", default="bitfusion")
parser.add_argument("--train-minutes", type=float, help="train a supernet first, for this long")
parser.add_argument("--run", type=Path, default=Path("runs/cifar10"))
arguments = parser.parse_args()

run, storage = str(arguments.run), f"sqlite:///{arguments.run}/apq.db"
arguments.run.mkdir(parents=True, exist_ok=True)
if arguments.train_minutes:
    minutes = str(arguments.train_minutes)
    status = main(["train", "--data", arguments.data, "--run", run, "--minutes", minutes])
    collect = ["collect", "--data", arguments.data, "--run", run, "--workers", "2"]
    status = status or main([*collect, "--images", "2000"])
else:
    import apq_optuna

    run = "pretrained:cifar10"
    pairs = Path(apq_optuna.__file__).parent / "pretrained" / "cifar10" / "pairs.npz"
    status = main(["collect", "--run", run, "--storage", storage, "--import", str(pairs)])
search = ["search", "--data", arguments.data, "--run", run, "--storage", storage]
search += ["--hardware", arguments.hardware, "--trials", str(arguments.trials)]
raise SystemExit(status or main([*search, "--steps", str(arguments.steps)]))
