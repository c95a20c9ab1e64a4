"""Models of one's own: what is searched of each, how long tracing takes, what stays whole and why.

python benchmarks/models.py [--size 224] [NAME ...]
"""

import argparse
import time

import torch
from _machine import describe

from apq_optuna.supernet.pretrained.sources import build_model
from apq_optuna.tracing import trace

NAMES = """
torchvision:resnet18 torchvision:resnet50 torchvision:mobilenet_v2 torchvision:mobilenet_v3_large
torchvision:efficientnet_b0 torchvision:densenet121 torchvision:googlenet torchvision:vgg11_bn
torchvision:mnasnet1_0 torchvision:inception_v3 torchvision:resnext50_32x4d
torchvision:convnext_tiny torchvision:regnet_y_400mf torchvision:shufflenet_v2_x1_0
torchvision:squeezenet1_1 torchvision:vit_b_16 timm:tf_efficientnet_lite0
timm:mobilenetv3_small_050 timm:ghostnet_050 timm:rexnet_100 timm:ese_vovnet19b_dw timm:mixnet_s
timm:repvgg_a0 timm:nf_regnet_b0
"""

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("names", nargs="*", default=NAMES.split())
parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
arguments = parser.parse_args()
describe()
print("| model | layers | groups | decisions | seconds | what stays whole, and other notes |")
print("|---|---|---|---|---|---|")
for name in arguments.names:
    torch.manual_seed(0)
    model = build_model(name, 10).eval()
    started = time.perf_counter()
    space = trace(model, (3, arguments.size, arguments.size))
    seconds = time.perf_counter() - started
    family = space.networks
    notes: dict[str, int] = {}
    for note in family.notes:
        names, whole, reason = note.partition(" stays whole: ")
        text = f"whole: {reason}" if whole else note
        notes[text] = notes.get(text, 0) + 1
    said = "; ".join(f"{text} ({times})" if times > 1 else text for text, times in notes.items())
    print(
        f"| {name} | {len(family.sites())} | {len(family.groups)} | {len(space.decisions)} | "
        f"{seconds:.1f} | {said} |",
        flush=True,
    )
