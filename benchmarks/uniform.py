"""Uniform networks beside a front: every layer the same share of channels and the same widths.

python benchmarks/uniform.py --run RUN --data folder:PATH --networks 1:8:8 0.75:8:8 0.5:4:6 \\
    --finetune 0 20:1e-4 [--hardware bitfusion] [--images 2000]

A network is SHARE:WEIGHT_BITS:ACTIVATION_BITS, a finetuning STEPS:RATE; 0 steps are the network as
it is calibrated. Measured as a trial of `search` is.
"""

import argparse
import time

import numpy as np
from _machine import describe

import apq_optuna as apq
from apq_optuna.hardware import find_device
from apq_optuna.networks import Subnet
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import load_net


def uniform(space: SearchSpace, share: float, w_bits: int, a_bits: int) -> Subnet:
    """The largest network with that share of every decision's channels, rounded to a choice."""
    row = space.extreme(largest=True)[0].copy()
    activations = {c for site in space.networks.sites() if (c := site.a_bits.column) is not None}
    for column, decision in enumerate(space.decisions):
        if decision.role == "channels":
            kept = share * decision.choices[-1]
            row[column] = np.abs(np.array(decision.choices, float) - kept).argmin()
        elif decision.quantization:
            wanted = a_bits if column in activations else w_bits
            row[column] = decision.choices.index(wanted)
    return space.decode(space.canonical(row[None])[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", required=True, help="as the run's")
    parser.add_argument("--networks", nargs="+", default=["1:8:8", "1:6:6", "1:4:4"])
    parser.add_argument("--finetune", nargs="+", default=["0", "20:1e-4"])
    parser.add_argument("--hardware", default="bitfusion")
    parser.add_argument("--images", type=int)
    arguments = parser.parse_args()
    describe()
    supernet = load_net(arguments.run, trusted=True)
    info = supernet.data_info
    data = apq.load_data(
        arguments.data, image_size=info["image_size"], mean=info["mean"], std=info["std"]
    )
    costs = find_device(arguments.hardware).table(supernet.space)
    objective = apq.Objective(supernet, data, costs, images=arguments.images)
    for network in arguments.networks:
        share, w_bits, a_bits = network.split(":")
        subnet = uniform(supernet.space, float(share), int(w_bits), int(a_bits))
        priced = costs.network_cost(subnet.layers())
        told = [f"{n} {v:.4f}" for n, v in zip(costs.metric_names, priced, strict=True)]
        print(f"{network}: {', '.join(told)}", flush=True)
        for finetuning in arguments.finetune:
            steps, _, rate = finetuning.partition(":")
            options = apq.FinetuneOptions(steps=int(steps), learning_rate=float(rate or 1e-3))
            started = time.perf_counter()
            value, about = objective.measure(subnet, finetune=options)
            print(
                f"  {finetuning}: accuracy {value:.4f}, fp32 {about['fp32_accuracy']:.4f} "
                f"({time.perf_counter() - started:.0f} s)",
                flush=True,
            )
