"""Hypervolume against the number of trials, of studies that measured the same thing.

    python benchmarks/fronts.py --storage sqlite:///FILE --studies search random

The reference is chance accuracy and, per cost, the largest of the space; figures are shares of the
box between it and perfect accuracy at no cost.
"""

import argparse

import numpy as np
import optuna

import apq_optuna as apq
from apq_optuna.report import stored_space
from apq_optuna.report.summary import summarise
from apq_optuna.search import hypervolume

optuna.logging.set_verbosity(optuna.logging.ERROR)
parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--storage", required=True)
parser.add_argument("--studies", nargs="+", required=True)
parser.add_argument("--after", nargs="+", type=int, default=[10, 16, 20, 30, 40, 60, 120])
parser.add_argument("--hardware", default="bitfusion", help="device the studies used")
arguments = parser.parse_args()

print("trials".rjust(12), *(f"{n:>7}" for n in arguments.after))
for name in arguments.studies:
    study = optuna.load_study(study_name=name, storage=apq.open_storage(arguments.storage))
    space = stored_space(study)
    assert space is not None and space.family is not None, f"{name} is of no network's space"
    maxima = apq.hardware.DEVICES[arguments.hardware]().table(space).compile(space).maxima
    chance = 1 / space.family.num_classes
    reference = np.array([-chance, *maxima])
    box = (1 - chance) * np.prod(maxima)
    points = summarise(study).oriented()
    shares = [
        f"{hypervolume(points[:n], reference) / box:7.4f}" if n <= len(points) else " " * 7
        for n in arguments.after
    ]
    print(name.rjust(12), *shares)
