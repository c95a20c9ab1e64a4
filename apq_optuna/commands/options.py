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


def rates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rates", choices=("by-width", "alike"),
        help="by-width: finetuning changes weights the less the more bits they have, and step "
        "sizes by shares of themselves; alike: one rate for all (default: what the study began "
        "with, by-width for a new one)",
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
                        help="folder that `train` or `trace` wrote, or a supernet of the package: "
                        "pretrained:cifar10 (results then go to runs/cifar10)")  # fmt: skip


def model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a model of your own, in place of a supernet")
    group.add_argument("--model", metavar="NAME",
                       help="torchvision:NAME, timm:NAME, or module:factory, a function or class "
                       "of yours that makes it; traced into RUN by the first command, which needs "
                       "--data")  # fmt: skip
    group.add_argument("--weights", type=Path, metavar="FILE.safetensors",
                       help="its trained weights, a state_dict")  # fmt: skip
    group.add_argument("--keep", type=float, nargs="+", metavar="SHARE",
                       help="shares of a layer's channels that may be kept (default: 0.25 0.5 "
                       "0.75 1)")  # fmt: skip
    group.add_argument("--step", type=int, metavar="CHANNELS",
                       help="counts of channels are multiples of it (default 8)")  # fmt: skip
    group.add_argument("--bits", type=int, nargs="+", metavar="BITS",
                       help="widths to choose from (default: 4 6 8)")  # fmt: skip
    group.add_argument("--ignore", nargs="+", metavar="MODULE",
                       help="modules, or patterns such as 'features.0.*', that stay whole and at "
                       "8 bits")  # fmt: skip
    group.add_argument("--ends", action="store_true", default=None,
                       help="search the widths of the first and the last layer, too")  # fmt: skip
    group.add_argument("--mean", type=float, nargs="+", metavar="X",
                       help="of each channel, of pixels in [0, 1], as the model was trained "
                       "with (default: what its library says, else the images' own)")  # fmt: skip
    group.add_argument("--std", type=float, nargs="+", metavar="X", help="likewise")
    group.add_argument("--classes", type=int, metavar="N",
                       help="of the model, where no --data tells")  # fmt: skip


def data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="digits, cifar10 or folder:PATH (default: as trained)")
    parser.add_argument("--image-size", "--input-size", dest="image_size", type=int,
                        help="resize a folder's images to this side")  # fmt: skip
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


def training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--start", metavar="RUN",
                        help="train the supernet of another run, or pretrained:NAME, for longer: "
                        "from its weights, all choices open from the first step on")  # fmt: skip
    parser.add_argument(
        "--epochs", type=float, help="passes over the images (default 20; of a traced model 5)"
    )
    parser.add_argument("--minutes", type=float, help="training time, instead of --epochs")
    parser.add_argument("--batch-size", type=int, default=128, help="images a step")
    parser.add_argument("--learning-rate", type=float, metavar="RATE",
                        help="peak, of SGD (default 0.08; 0.01 of a traced model)")  # fmt: skip
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"),
                        help="of activations (default: bfloat16 on a GPU)")  # fmt: skip


def teacher(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a teacher, whose answers all networks learn")
    group.add_argument("--teacher", metavar="NAME",
                       help="a larger trained network for the same classes: torchvision:NAME, "
                       "timm:NAME (images normalised as its library has them) or "
                       "module:factory (as the run's are)")  # fmt: skip
    group.add_argument("--teacher-weights", type=Path, metavar="FILE.safetensors",
                       help="its trained weights, a state_dict")  # fmt: skip
    group.add_argument("--mixed", type=float, metavar="SHARE",
                       help="of training images that are mixed with another: half are blended, "
                       "half have a square of it (default: 0; 0.8 with a teacher)")  # fmt: skip


def export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", help="a finished network's folder")
    data(parser)
    augment(parser)
    parser.add_argument("--run", type=Path, help="or a run, of which a trial is exported: its "
                        "finished network where there is one")  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME", help="what the folder's model is, where that is code of yours"
    )
    parser.add_argument("--study", default="search", help="name of the study")
    parser.add_argument("--trial", type=int, help="trial (default: the most accurate)")
    parser.add_argument("--out", type=Path, help="FILE.onnx (default: RUN/trial-N.onnx, or "
                        "FOLDER/network.onnx)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--opset", type=int, help="of the operators (default 18; 21 with --int4)")
    parser.add_argument(
        "--int4", action="store_true",
        help="store weights of 4 bits and fewer in half bytes (opset 21)",
    )  # fmt: skip
    parser.add_argument(
        "--with-preprocessing", action="store_true",
        help="the file takes uint8 images, (batch, height, width, channels)",
    )  # fmt: skip
    parser.add_argument("--reduce-range", action="store_true",
                        help="weights of 7 bits where bytes may be above 127: for processors on "
                        "which products of bytes saturate")  # fmt: skip
    parser.add_argument("--round-outputs", action="store_true",
                        help="round to bytes what residual sums take: faster for large kernels, "
                        "not exact")  # fmt: skip
    parser.add_argument("--float-sums", action="store_true",
                        help="compute layers with kernels larger than 1x1 whose output a sum "
                        "takes in floating point: exact, and faster for ResNets")  # fmt: skip
    parser.add_argument("--images", type=int, help="search-validation images that prove it "
                        "(default: all)")  # fmt: skip
    parser.add_argument("--equal", type=float, default=0.995, metavar="SHARE",
                        help="of them that the file has to put into torch's class (default "
                        "0.995)")  # fmt: skip
    parser.add_argument("--no-measure", action="store_true", help="do not time it")
    parser.add_argument("--hardware", default="", metavar="NAME|FILE",
                        help="table whose latency is told beside the measured one (default: the "
                        "study's, where that is measured on this machine)")  # fmt: skip
