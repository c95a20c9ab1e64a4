"""The command line: `apq-optuna`, one command a step of the job."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apq_optuna import commands
from apq_optuna._text import as_option
from apq_optuna.commands import options
from apq_optuna.errors import ApqError

_ABOUT = """\
Find the network that is best after it has been shaped, pruned and quantized for a chip.

The steps, in order; every one goes on where it was stopped:
  trace      a model of yours: what is searched of it, and what its networks cost
  train      or a once-for-all network on your images (once)
  collect    fp32 accuracy pairs from it, without training
  search     an Optuna study over architecture, channels and bit-widths together
  report     its Pareto front as an HTML page, and inside optuna-dashboard
  finetune   the trial you choose, finished, tested once and saved
  export     it as an ONNX file of integers, proven equal and timed
  ledger     what each of them took: seconds, energy, CO2
and beside them:
  quickstart all of it on a small embedded data set, in a minute or two
  hardware   cost tables: build, check, show, compare; price any torchvision model
  cache      decoded folders of images that are kept between commands
"""

_EXAMPLES = {
    "quickstart": "apq-optuna quickstart",
    "trace": "apq-optuna trace --model torchvision:mobilenet_v2 --weights mine.safetensors "
    "--data folder:images --run runs/mine",
    "train": "apq-optuna train --data folder:images --preset cifar10 --run runs/mine --minutes 60",
    "collect": "apq-optuna collect --run runs/mine --pairs 1000 --workers 2",
    "search": "apq-optuna search --run runs/mine --hardware bitfusion --trials 100\n"
    "  apq-optuna search --run runs/mine --predict-only --hardware cpu --max-latency-ms 0.3",
    "report": "apq-optuna report --run runs/mine --trial 17",
    "finetune": "apq-optuna finetune --run runs/mine --trial 17 --out finished",
    "export": "apq-optuna export --run runs/mine --trial 17 --out network.onnx\n"
    "  apq-optuna export runs/mine/finished-17 --data folder:images --out network.onnx",
    "ledger": "apq-optuna ledger --run runs/mine --csv ledger.csv",
    "cache": "apq-optuna cache --clear",
    "compare": "apq-optuna compare --run runs/digits --budget latency_ms=0.04 --budget "
    "latency_ms=0.06 --trials 60 --seeds 3",
    "hardware": "apq-optuna hardware build --device cpu --preset cifar10 --out cpu.json",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (0, 2 for bad input, 130 when interrupted)."""
    started = time.perf_counter()
    arguments = _parser().parse_args(argv)
    arguments.started = started
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = arguments.run_command(arguments)
        return int(status or 0)
    except ApqError as error:
        print(f"error: {as_option(str(error), vars(arguments))}", file=sys.stderr)
        return 2
    except UnboundLocalError as error:
        from apq_optuna.storage import lost_storage

        if isinstance(error.__context__, KeyboardInterrupt):  # Optuna's own end of a trial
            print("\nstopped; run the same command again to go on", file=sys.stderr)
            return 130
        lost = lost_storage(error)
        if lost is None:
            raise
        print(f"error: {lost}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130


# ---------------------------------------------------------------------- arguments


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of descriptions and shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        quiet = action.default in (None, False, "", []) or "default" in (action.help or "")
        return action.help if quiet else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    form = _Help
    parser = argparse.ArgumentParser("apq-optuna", description=_ABOUT, formatter_class=form)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[Any], int | None], text: str
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=text.split(".")[0], description=text, formatter_class=form,
            epilog=f"example:\n  {_EXAMPLES[name]}",
        )  # fmt: skip
        sub.set_defaults(run_command=function)
        return sub

    quick = command(
        "quickstart", commands.quickstart,
        "The whole job on the embedded digits: train, collect, search, report.",
    )  # fmt: skip
    quick.add_argument("--run", type=Path, default=Path("runs/digits"), help="folder for results")
    quick.add_argument("--trials", type=int, default=60, help="trials of the study (default 60)")
    options.common(quick)

    trace = command(
        "trace", commands.trace,
        "Trace a model of yours: its groups of channels, its layers and their bit-widths, what "
        "stays whole and why, and what the smallest and largest network cost. With --run it is "
        "kept for `collect`, `search` and all others, in place of a supernet.",
    )  # fmt: skip
    options.model(trace)
    options.data(trace)
    trace.add_argument("--run", type=Path, help="folder to keep it in")
    trace.add_argument("--hardware", default="", metavar="NAME|FILE",
                       help="device or table, as for `search`")  # fmt: skip
    trace.add_argument("--budget", action="append", default=[], metavar="METRIC=LIMIT",
                       help="tell how many networks meet it, e.g. latency_ms=2.0; "
                       "repeatable")  # fmt: skip
    trace.add_argument("--threads", type=int, help="CPU threads")

    train = command(
        "train", commands.train,
        "Train a once-for-all network, once for every device and study; or finetune a traced "
        "model of yours with all its smaller networks at once.",
    )  # fmt: skip
    options.data(train)
    options.augment(train)
    options.model(train)
    train.add_argument("--preset", default="cifar10", help="digits, cifar10 (default) or imagenet")
    train.add_argument(
        "--run", type=Path, required=True, help="folder for the supernet and the study"
    )
    options.training(train)
    options.teacher(train)
    options.common(train)

    collect = command(
        "collect", commands.collect,
        "Evaluate random subnets of the supernet, without training, as fp32 accuracy pairs, and "
        "with --quantized also as they are right after quantization.",
    )  # fmt: skip
    options.data(collect)
    options.run(collect)
    options.model(collect)
    collect.add_argument("--pairs", type=int, default=1000, help="architectures (default 1000)")
    collect.add_argument("--quantized", type=int, default=0, metavar="N",
                         help="also store the accuracies of N quantized networks, calibrated but "
                         "not finetuned: about as quick as fp32 pairs")  # fmt: skip
    collect.add_argument(
        "--images", type=int, help="search-validation images a subnet is judged on"
    )
    collect.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    collect.add_argument("--import", dest="import_file", type=Path, metavar="FILE.npz",
                         help="add pairs that --export wrote elsewhere, and stop")  # fmt: skip
    collect.add_argument(
        "--export", type=Path, metavar="FILE.npz", help="also write all pairs there"
    )
    options.common(collect)

    search = command(
        "search", commands.search,
        "Run, or go on with, a study. Several of these at once share the work of one study.",
    )  # fmt: skip
    options.data(search)
    options.augment(search)
    options.run(search)
    options.model(search)
    search.add_argument("--study", default="search", help="name of the study (default: search)")
    search.add_argument("--hardware", default="", metavar="NAME|FILE",
                        help="a device of `hardware list`, module:name of your own, or a cost "
                        "table (.json, .csv)")  # fmt: skip
    search.add_argument(
        "--trials", type=int, default=100, help="completed trials to reach in total"
    )
    search.add_argument("--sampler", choices=("apq", "random", "nsga2", "tpe"), default="apq",
                        help="ours, or a peer to compare with")  # fmt: skip
    search.add_argument("--budget", action="append", default=[], metavar="METRIC=LIMIT",
                        help="hard limit on a cost, e.g. latency_ms=2.0; repeatable")  # fmt: skip
    search.add_argument("--max-latency-ms", type=float, metavar="X",
                        help="short for --budget latency_ms=X")  # fmt: skip
    search.add_argument("--max-energy-mj", type=float, metavar="X",
                        help="short for --budget energy_mj=X")  # fmt: skip
    search.add_argument("--measure-on", metavar="NAME",
                        help="device that also runs each trial's whole network, e.g. cpu; its "
                        "latency is kept beside the table's")  # fmt: skip
    search.add_argument("--predict-only", action="store_true",
                        help="answer from the finished --study, for any --hardware and budget, "
                        "in seconds: no images, no training")  # fmt: skip
    search.add_argument("--enqueue", type=int, metavar="N",
                        help="with --predict-only: enqueue the N most accurate")  # fmt: skip
    search.add_argument("--into", metavar="NAME",
                        help="study they are enqueued in (default: STUDY-DEVICE)")  # fmt: skip
    search.add_argument("--source-study", action="append", default=[], metavar="NAME",
                        help="an earlier study of the same supernet to learn from")  # fmt: skip
    search.add_argument("--steps", type=int, default=20, help="finetuning steps of a trial")
    search.add_argument("--finetune-rate", type=float, metavar="RATE",
                        help="finetuning rate (Adam) (default: what the study began with; 1e-3 "
                        "for a new one, 1e-4 for a model of your own)")  # fmt: skip
    options.averaging(search)
    options.rates(search)
    search.add_argument("--images", type=int, help="search-validation images a trial is judged on")
    search.add_argument("--report", type=Path, help="HTML file (default: RUN/STUDY.html)")
    search.add_argument("--no-baselines", action="store_true",
                        help="skip the largest network at uniform 8, 6 and 4 bits")  # fmt: skip
    search.add_argument("--repeats", type=int, default=1,
                        help="seeds that each trial is the mean of (default 1)")  # fmt: skip
    search.add_argument("--confirm", type=int, metavar="K",
                        help="at the end, measure the front's networks with K further seeds: "
                             "a front of single measurements flatters itself")  # fmt: skip
    options.common(search)

    compare = command(
        "compare", commands.compare,
        "Joint search beside what it is compared with: ProxylessNAS, AMC and HAQ one after the "
        "other, MobileNetV2 with HAQ, the paper's search, uniform bits, and each pair of stages "
        "searched jointly. A study a stage; the same command goes on where it was stopped.",
    )  # fmt: skip
    options.data(compare)
    options.run(compare)
    compare.add_argument("--hardware", default="", help="device or table, as for `search`")
    compare.add_argument(
        "--budget", action="append", default=[], metavar="METRIC=LIMIT",
        help="a budget, e.g. latency_ms=2.0; repeatable, one case each",
    )  # fmt: skip
    compare.add_argument(
        "--method", action="append",
        help="sequential, mobilenet, joint, paper, uniform8, uniform6, uniform4, "
        "architecture+pruning, architecture+bits or pruning+bits; repeatable (default: all)",
    )  # fmt: skip
    compare.add_argument("--trials", type=int, default=60, help="trials a method (default 60)")
    compare.add_argument("--seeds", type=int, default=3, help="seeds (default 3)")
    compare.add_argument("--first-seed", type=int, default=0, help="the first of them")
    compare.add_argument("--steps", type=int, default=20, help="finetuning steps of a trial")
    compare.add_argument("--finetune-rate", type=float, default=1e-3, help="rate of a trial")
    options.averaging(compare)
    options.rates(compare)
    compare.add_argument("--images", type=int, help="search-validation images of a trial")
    compare.add_argument(
        "--confirm", type=int, default=2, metavar="K",
        help="further seeds of the network that is chosen (default 2)",
    )  # fmt: skip
    compare.add_argument(
        "--epochs", type=float, default=3.0,
        help="of the final finetuning, the same for all (default 3)",
    )  # fmt: skip
    compare.add_argument(
        "--mobilenet-epochs", type=float,
        help="training of the fixed network from scratch (default: as long as the supernet's; "
        "without either it is left out)",
    )  # fmt: skip
    compare.add_argument("--out", type=Path, help="HTML file (default: RUN/compare.html)")
    options.common(compare)

    report = command(
        "report", commands.report, "Draw a study again, with the network of a chosen trial."
    )
    options.run(report)
    report.add_argument("--study", default="search", help="name of the study")
    report.add_argument(
        "--trial", type=int, help="trial whose network is drawn (default: the best)"
    )
    report.add_argument("--out", type=Path, help="HTML file (default: RUN/STUDY.html)")
    report.add_argument("--storage", help="database URL (default: sqlite file in RUN)")

    finetune = command(
        "finetune", commands.finetune,
        "Finish a trial: finetune it fully, measure it once on the test images, and save it.",
    )  # fmt: skip
    options.data(finetune)
    options.augment(finetune)
    options.run(finetune)
    finetune.add_argument("--study", default="search", help="name of the study")
    finetune.add_argument("--trial", type=int, help="trial to finish (default: most accurate)")
    finetune.add_argument("--epochs", type=float, default=10.0, help="passes over the images")
    finetune.add_argument("--hardware", default="", metavar="NAME|FILE",
                          help="device or table of its costs (default: the study's)")  # fmt: skip
    finetune.add_argument("--out", type=Path, help="folder (default: RUN/finished-TRIAL)")
    options.common(finetune)

    export = command(
        "export", commands.export,
        "A finished network, or a trial as it was measured, as an ONNX file that runtimes execute "
        "with integers. Search-validation images go through it and through torch, and its latency "
        "is measured here; what is known of the file is written beside it, as FILE.json.",
    )  # fmt: skip
    options.export(export)
    options.common(export)

    ledger = command(
        "ledger", commands.ledger,
        "What every step of a run took: seconds, energy and CO2, what the first deployment cost, "
        "and what each further device or budget does.",
    )  # fmt: skip
    options.run(ledger)
    ledger.add_argument("--json", type=Path, metavar="FILE", help="also write all of it there")
    ledger.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows there")
    ledger.add_argument("--storage", help="database URL (default: sqlite file in RUN)")

    cache = command(
        "cache", commands.cache,
        "Decoded folders of images that are kept between commands. They are in $APQ_CACHE, by "
        "default a folder of the user's cache directory, and take at most $APQ_CACHE_GIB (4).",
    )  # fmt: skip
    cache.add_argument("--clear", action="store_true", help="remove them")

    _hardware(command("hardware", commands.hardware, "Devices and cost tables."))
    return parser


def _hardware(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return kinds.add_parser(
            name, help=text.split(".")[0], description=text, formatter_class=_Help,
            epilog=f"example:\n  apq-optuna hardware {example}",
        )  # fmt: skip

    action("list", "Devices by name. Yours too, if a package offers them.", "list")
    build = action(
        "build",
        "Write the cost table of a search space. A measured one goes on where it was stopped.",
        "build --device cpu --preset cifar10 --out cpu.json",
    )
    options.one_device(build)
    options.space(build)
    build.add_argument("--out", type=Path, required=True, help="FILE.json or FILE.csv")
    build.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    build.add_argument("--networks", type=int, metavar="K",
                       help="whole networks that correct the sums of a device that can run them "
                       "(default 5; 0 for none)")  # fmt: skip
    build.add_argument("--storage", help="database for the ledger (default: sqlite file in RUN)")
    options.watts(build)
    build.add_argument("--template", action="store_true",
                       help="no device: a CSV with every row the space needs, for you to fill "
                       "in")  # fmt: skip
    build.add_argument("--widths", type=int, nargs="+", metavar="BITS",
                       help="bit-widths of the template (default: the space's)")  # fmt: skip
    check = action(
        "check",
        "Check a table against a space: coverage, monotonicity, oddities. Exits with 1 if a "
        "search cannot use it.",
        "check board.csv --preset cifar10",
    )
    check.add_argument("table", type=Path, help="FILE.json or FILE.csv")
    check.add_argument("--measure", type=int, metavar="K",
                       help="measure K of the layers that were interpolated")  # fmt: skip
    options.space(check)
    show = action(
        "show", "Draw what a layer costs against its channels and bits.",
        "show cpu.json --preset cifar10 --layer stage2.block1.depthwise",
    )  # fmt: skip
    show.add_argument("table", help="a table's file, or a device")
    options.parameters(show)
    options.space(show)
    show.add_argument("--layer", metavar="NAME",
                      help="a searched layer; an unknown name says which there are (default: the "
                      "last that every network has, a depthwise one if there is)")  # fmt: skip
    show.add_argument("--kernel", type=int, help="where it is a choice (default: the largest)")
    show.add_argument("--out", type=Path, help="HTML file (default: DEVICE-LAYER.html)")
    compare = action(
        "compare", "Price the same random networks on two devices.",
        "compare bitfusion cpu.json --preset cifar10",
    )  # fmt: skip
    compare.add_argument("first", help="a table's file, or a device")
    compare.add_argument("second", help="a table's file, or a device")
    options.space(compare)
    compare.add_argument("--networks", type=int, default=2000, help="random networks")
    compare.add_argument("--out", type=Path, help="HTML file (default: FIRST-SECOND.html)")
    measure = action(
        "measure",
        "Time ONNX files here, as `cpu` is timed: warm-up, rounds, spread and a reference. On "
        "another machine the file apq_optuna/export/measure.py does it alone, with numpy and "
        "onnxruntime; the JSON it writes can be given here.",
        "measure network.onnx --run runs/mine --trial 17",
    )
    measure.add_argument("files", type=Path, nargs="+", metavar="FILE",
                         help="FILE.onnx, or a FILE.json that was written elsewhere")  # fmt: skip
    measure.add_argument("--threads", type=int, default=1, help="of the runtime (default 1)")
    measure.add_argument("--rounds", type=int, default=7, help="(default 7)")
    measure.add_argument("--repeats", type=int, default=40, help="in a round (default 40)")
    measure.add_argument("--precise", action="store_true",
                         help="with session.x64quantprecision: kernels that do not "
                         "saturate")  # fmt: skip
    measure.add_argument("--out", type=Path, help="JSON file with all of it")
    measure.add_argument("--run", type=Path, help="run of the study that --trial is of")
    measure.add_argument("--study", default="search", help="name of the study")
    measure.add_argument("--trial", type=int, help="trial to keep it with: `report` shows it")
    measure.add_argument("--storage", help="database URL (default: sqlite file in RUN)")
    price = action(
        "price", "Price a torchvision model.", "price --model resnet18 --device bitserial --bits 4"
    )
    options.one_device(price)
    price.add_argument("--model", default="mobilenet_v2", help="name in torchvision.models")
    price.add_argument("--image-size", type=int, default=224, help="side in pixels")
    price.add_argument("--bits", type=int, default=8, help="of weights and activations")


if __name__ == "__main__":
    sys.exit(main())
