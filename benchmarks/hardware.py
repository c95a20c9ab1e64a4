"""BitFusion against the published table, and the speed and memory of tables.

python benchmarks/hardware.py --published PATH/bitfusion_imagenet_b1.json
"""

import argparse
import resource
import time
import tracemalloc
from pathlib import Path

import numpy as np
from _machine import best_of, describe

from apq_optuna._torchvision import models
from apq_optuna.hardware import CostTable, bitfusion, bitserial, cpu, layers_of
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import PretrainedNet
from apq_optuna.tracing import trace

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
started = time.perf_counter()
built = bitfusion().table(space)
first = time.perf_counter() - started
seconds, median = best_of(lambda: bitfusion().table(space))
print(
    f"table of the paper's space ({len(space.decisions)} decisions): {len(built.entries)} entries "
    f"in {seconds:.3f} s (median {median:.3f}, the first {first:.3f})"
)
serial, _ = best_of(lambda: bitserial().table(space))
print(f"the bit-serial array's: {serial:.3f} s")
compiled = built.compile(space)
seconds, median = best_of(lambda: built.compile(space))
print(f"compiled in {seconds * 1e3:.0f} ms (median {median * 1e3:.0f})")
genotypes = space.sample(50_000, np.random.default_rng(0))
seconds, median = best_of(lambda: compiled(genotypes))
print(
    f"50,000 genotypes priced in {seconds * 1e3:.1f} ms (median {median * 1e3:.1f}); "
    f"{50_000 / seconds / rate:.0f} a second for each GFLOP/s of GEMM"
)
for what, run in (
    ("the table", lambda: bitfusion().table(space)),
    ("compiling it", lambda: built.compile(space)),
    ("pricing 50,000", lambda: compiled(genotypes)),
):
    tracemalloc.start()
    run()
    print(f"peak memory of {what}: {tracemalloc.get_traced_memory()[1] / 2**20:.1f} MiB")
    tracemalloc.stop()
for name in ("mobilenet_v2", "densenet121"):  # the second has layers of many sizes
    model = models.get_model(name, weights=None).eval()
    started = time.perf_counter()
    traced = trace(model, (3, 224, 224))
    traced_in = time.perf_counter() - started
    started = time.perf_counter()
    table = bitfusion().table(traced)
    tabled_in = time.perf_counter() - started
    started = time.perf_counter()
    compiled = table.compile(traced)
    compiled_in = time.perf_counter() - started
    genotypes = traced.sample(50_000, np.random.default_rng(0))
    seconds, median = best_of(lambda c=compiled, g=genotypes: c(g))
    print(
        f"{name}, traced in {traced_in:.1f} s ({len(traced.decisions)} decisions): "
        f"{len(table.entries)} entries in {tabled_in:.2f} s, compiled in {compiled_in:.2f} s, "
        f"50,000 genotypes in {seconds * 1e3:.1f} ms (median {median * 1e3:.1f})"
    )
    net = PretrainedNet(model, traced)
    subnets = [traced.decode(row) for row in genotypes[:10]]
    seconds, median = best_of(lambda n=net, s=subnets: [n.subnet(one) for one in s])
    print(f"a network taken out of {name}: {seconds / 10:.3f} s (median {median / 10:.3f})")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(f"peak memory of this process, torch included: {peak:.0f} MiB")
for name in ("mobilenet_v2", "resnet18", "mobilenet_v3_large"):
    layers = layers_of(models.get_model(name, weights=None), (3, 224, 224))
    ms, mj = bitfusion().network_cost(layers, 8, 8)
    cycles = sum(bitserial().cycles(layer, 8, 8) for layer in layers)
    measured, _ = cpu().network_cost(layers, 8, 8)
    print(
        f"torchvision {name}, {len(layers)} layers, W8A8, 224x224: BitFusion {ms:.4f} ms, "
        f"{mj:.4f} mJ; bit-serial {cycles:,} cycles; this CPU, layers summed, {measured:.3f} ms"
    )
