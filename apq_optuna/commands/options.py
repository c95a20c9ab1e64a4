"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def averaging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--averaging", type=float, metavar="SHARE",
        help="of the finetuning steps, the last ones, whose weights are averaged; the rate is "
        "then steady (default: what the study began with, none for a new one)",
    )  # fmt: skip


def one_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="bitfusion",
                        help="name of a device, or module:name of your own")  # fmt: skip
    parameters(parser)


def parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", dest="parameters", action="append", default=[],
                        metavar="NAME=VALUE",
                        help="a parameter of the device, e.g. batch=16; repeatable")  # fmt: skip


def space(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="search space of a preset: digits, cifar10, imagenet")
    parser.add_argument("--run", help="search space of a trained supernet")


def common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--threads",
        type=int,
        help="CPU threads (default: all cores, shared "
        "with other commands of this program that run)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--storage", help="database URL (default: sqlite file in RUN)")
    watts(parser)


def watts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watts", type=float,
                        help="power of this machine, or of its share where several commands run "
                        "at once, for the ledger (default: $APQ_WATTS, else what codecarbon "
                        "finds where it is installed, else 65)")  # fmt: skip


def run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True,
                        help="folder that `train` wrote, or a supernet of the package: "
                        "pretrained:cifar10 (results then go to runs/cifar10)")  # fmt: skip


def data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="digits, cifar10 or folder:PATH (default: as trained)")
    parser.add_argument("--image-size", type=int, help="resize a folder's images to this side")
    parser.add_argument("--grayscale", action="store_true", default=None,
                        help="convert a folder's images to grayscale")  # fmt: skip
    parser.add_argument("--fit", choices=("crop", "pad", "stretch"),
                        help="how a folder's images become squares: the middle (crop), whole on "
                        "black (pad), or both sides resized (stretch) (default: as trained, else "
                        "crop)")  # fmt: skip
    parser.add_argument("--skip-broken", action="store_true",
                        help="leave out a folder's images that cannot be read, and say which "
                        "(default: as trained)")  # fmt: skip
    parser.add_argument("--no-cache", action="store_true",
                        help="decode a folder's images anew, and keep nothing; see "
                        "apq-optuna cache")  # fmt: skip


def augment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--augment", choices=("none", "shift", "shift+flip"),
                        help="what training does to images at random: shift+flip for photographs, "
                        "shift where a mirror image means something else (digits, text, signs), "
                        "none where the place counts too (default: as trained, else shift for "
                        "digits and shift+flip for all others)")  # fmt: skip
