"""How good is a trained supernet without finetuning: largest, smallest and random subnets.

python benchmarks/supernet.py --run pretrained:cifar10 --data folder:PATH [--subnets 30]
"""

import argparse
import time

import numpy as np
from _machine import describe

import apq_optuna as apq
from apq_optuna.quantization import fp32_network
from apq_optuna.supernet import accuracy

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--run", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--subnets", type=int, default=30)
arguments = parser.parse_args()

describe()
data = apq.load_data(arguments.data)
supernet = apq.OnceForAllNet.load(arguments.run)
space = supernet.space


def measure(row: np.ndarray) -> tuple[float, float]:
    subnet = space.decode(row)
    module = fp32_network(supernet, subnet, data, 1024, 0)
    return accuracy(module, data), subnet.macs / 1e6


started = time.perf_counter()
for name, largest in (("largest", True), ("smallest", False)):
    value, mmacs = measure(space.extreme(largest=largest)[0])
    print(f"{name}: {mmacs:.2f} MMACs, search-validation accuracy {value:.4f}")
rows = space.sample(arguments.subnets, np.random.default_rng(12345))
values = np.array([measure(row) for row in rows])
mean, spread = values.mean(0), values.std(0)
print(
    f"{len(rows)} random subnets: accuracy {mean[0]:.4f} +- {spread[0]:.4f} "
    f"({values[:, 0].min():.4f} to {values[:, 0].max():.4f}), {mean[1]:.2f} MMACs on average "
    f"({(time.perf_counter() - started) / (len(rows) + 2):.1f} s a subnet)"
)
