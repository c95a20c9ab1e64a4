"""BitFusion against the published table, and the speed of tables.

python benchmarks/hardware.py --published PATH/bitfusion_imagenet_b1.json
"""

import argparse
import time
from pathlib import Path

import numpy as np
from _machine import best_of, describe

from apq_optuna._torchvision import models
from apq_optuna.hardware import CostTable, bitfusion, layers_of
from apq_optuna.space import SearchSpace

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--published", type=Path, help="the table published with the paper")
arguments = parser.parse_args()
rate = describe()

if arguments.published:
    device, table = bitfusion(), CostTable.load(arguments.published)
    equal, worst, start = 0, 0.0, time.perf_counter()
    for (layer, w, a), (ms, mj) in table.entries.items():
        equal += device.cycles(layer, w, a) == round(ms * 5e5)
        energy = device.cost(layer, w, a)[1]
        assert energy is not None and mj is not None
        worst = max(worst, abs(energy - mj) / mj)
    print(
        f"published table: {equal} of {len(table.entries)} entries equal in cycles, largest "
        f"relative error in energy {worst:.1e} ({time.perf_counter() - start:.2f} s)"
    )

space = SearchSpace.preset("imagenet")
built = bitfusion().table(space)
seconds, median = best_of(lambda: bitfusion().table(space))
print(
    f"table of the paper's space: {len(built.entries)} entries in {seconds:.3f} s ({median:.3f})"
)
compiled = built.compile(space)
seconds, median = best_of(lambda: built.compile(space))
print(f"compiled in {seconds * 1e3:.0f} ms (median {median * 1e3:.0f})")
genotypes = space.sample(50_000, np.random.default_rng(0))
seconds, median = best_of(lambda: compiled(genotypes))
print(
    f"50,000 genotypes priced in {seconds * 1e3:.1f} ms (median {median * 1e3:.1f}); "
    f"{50_000 / seconds / rate:.0f} a second for each GFLOP/s of GEMM"
)
layers = layers_of(models.mobilenet_v2(), (3, 224, 224))
ms, mj = bitfusion().network_cost(layers, 8, 8)
print(f"torchvision mobilenet_v2, {len(layers)} layers, W8A8, 224x224: {ms:.4f} ms, {mj:.4f} mJ")
