"""The paper's own space at 224 x 224, and its table; the images are yours.

    python studies/imagenet.py --table               build and summarise the table
    python studies/imagenet.py --data folder:PATH    train, collect and search

The first needs no images; for the second a GPU is advised. PATH is in the layout of torchvision's
ImageFolder with train/ and test/; images are decoded as they are needed. 131 decisions: Wang et
al., CVPR 2020. `--published FILE` searches on the table published with the paper.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import apq_optuna as apq
from apq_optuna.cli import main

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--data", help="folder:PATH")
parser.add_argument("--table", action="store_true", help="only build the cost table")
parser.add_argument("--published", type=Path, help="the published table, to search on")
parser.add_argument("--epochs", type=float, default=120)
parser.add_argument("--trials", type=int, default=300)
parser.add_argument("--run", type=Path, default=Path("runs/imagenet"))
arguments = parser.parse_args()
if not arguments.data and not arguments.table:
    parser.error("give --data folder:PATH, or --table")

if arguments.table:
    space = apq.SearchSpace.preset("imagenet")
    started = time.perf_counter()
    table = apq.hardware.bitfusion().table(space, progress=True)
    print(f"{len(table.entries)} entries in {time.perf_counter() - started:.2f} s")
    compiled = table.compile(space)
    costs = compiled(space.sample(10_000, np.random.default_rng(0)))
    for name, low, middle, high in zip(
        compiled.metric_names, costs.min(0), np.median(costs, 0), costs.max(0), strict=True
    ):
        print(f"{name}: {low:.3f} to {high:.3f}, median {middle:.3f} over 10,000 random networks")
    raise SystemExit(0)

run = str(arguments.run)
train = ["train", "--data", arguments.data, "--image-size", "224", "--preset", "imagenet"]
status = main([*train, "--run", run, "--epochs", str(arguments.epochs)])
status = status or main(["collect", "--run", run, "--pairs", "5000", "--images", "10000"])
search = ["search", "--run", run, "--trials", str(arguments.trials), "--steps", "200"]
if arguments.published:  # it has no kernel 7 with 4-bit activations: those are never proposed
    search += ["--hardware", str(arguments.published)]
raise SystemExit(status or main(search))
