"""A front's networks as ONNX files: parity, integer kernels, sizes; then what they take here.

    python benchmarks/exports.py write --run RUN --study NAME --data DATA --out DIR [--trials 8]
    python benchmarks/exports.py time DIR [--hardware cpu.json --run RUN]

`write` exports every trial of the front (or so many, spread over it) twice: whole bytes and
--int4. `time` goes over all files in rounds, each beside the same network in float; with a table
it corrects the sums of half of the networks' layers and says how far the others are off.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import optuna
from _machine import describe

import apq_optuna as apq
from apq_optuna._optuna import study_attribute
from apq_optuna.export import build_float_onnx, export_onnx
from apq_optuna.export.measure import Run, rounds_over
from apq_optuna.hardware import CostTable
from apq_optuna.hardware.tables.correction import fit_correction
from apq_optuna.quantization import FinetuneOptions
from apq_optuna.report import summarise
from apq_optuna.supernet import load_net


def load(name: str):
    kind, _, preset = name.rpartition(":")
    if kind == "pretrained":
        return apq.OnceForAllNet.load(preset), Path("runs") / preset
    return load_net(name, trusted=True), Path(name)


def images_of(net, name: str):
    info = net.data_info
    _, size, _ = net.space.networks.input_shape
    more = {} if not name.startswith("folder:") else {"image_size": size}
    if isinstance(net, apq.PretrainedNet):
        more |= {"mean": info["mean"], "std": info["std"]}
    return apq.load_data(name, **more)


def write(arguments: argparse.Namespace) -> None:
    net, folder = load(arguments.run)
    data = images_of(net, arguments.data)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = apq.open_storage(f"sqlite:///{folder / 'apq.db'}")
    study = optuna.load_study(study_name=arguments.study, storage=storage)
    summary = summarise(study, net.space)
    front = summary.front
    if arguments.trials and len(front) > arguments.trials:
        front = front[np.linspace(0, len(front) - 1, arguments.trials).round().astype(int)]
    conditions = study_attribute(study, "objective")
    how = {k.removeprefix("finetune "): v for k, v in conditions.items() if k.startswith("finetu")}
    objective = apq.Objective(
        net,
        data,
        finetune=FinetuneOptions(**{"averaging": 0.0, "rates": "alike"} | how),
        images=conditions.get("images"),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    for i in front:
        number = int(summary.numbers[i])
        path = arguments.out / f"trial-{number}.onnx"
        if path.with_name(f"{path.name}.json").exists():
            continue
        subnet = net.space.decode(summary.genotype(int(i)))
        network, _ = objective.network(subnet)
        half = export_onnx(network, path.with_suffix(".int4.onnx"), int4=True)
        (arguments.out / f"trial-{number}.float.onnx").write_bytes(build_float_onnx(network))
        try:
            report = export_onnx(network, path, data=data, limit=arguments.images)
        except apq.ApqError as error:
            print(f"trial {number}: {error}", flush=True)
            continue
        report |= {"trial": number, "value": float(summary.values[i][0])}
        report["int4"] = {name: half[name] for name in ("bytes", "expected_bytes", "kernels")}
        report["subnet"] = subnet.to_dict()
        path.with_name(f"{path.name}.json").write_text(json.dumps(report))
        print(row(report), flush=True)


HEADER = """\
| trial | top-1 equal | accuracy, file | torch | trial | logits apart, rms (most) | \
MACs in integers | kB | + % | kB with INT4 | + % |
|---|---|---|---|---|---|---|---|---|---|---|"""


def row(report: dict) -> str:
    proof, half = report["parity"], report["int4"]
    agreed = proof["agreement"]
    over = report["bytes"] / report["expected_bytes"] - 1
    return (
        f"| {report['trial']} | {agreed['equal_top1']:.2%} | {agreed['accuracy']:.4f} | "
        f"{proof['accuracy']:.4f} | {report['value']:.4f} | {agreed['rms_difference']:.1e} "
        f"({agreed['largest_difference']:.1e}) of {proof['rms_logit']:.2f} | "
        f"{report['kernels']['integer_share_of_macs']:.1%} | {report['bytes'] / 1e3:.1f} | "
        f"{over:+.1%} | {half['bytes'] / 1e3:.1f} | "
        f"{half['bytes'] / half['expected_bytes'] - 1:+.1%} |"
    )


def timed(arguments: argparse.Namespace) -> None:
    describe()
    paths = sorted(arguments.folder.glob("*.onnx.json"))
    reports = [json.loads(path.read_text()) for path in paths]
    reports = [report for report in reports if "trial" in report]
    print(HEADER, *map(row, reports), sep="\n")
    files = [arguments.folder / f"trial-{r['trial']}{kind}.onnx" for r in reports
             for kind in ("", ".float")]  # fmt: skip
    latencies = np.median(rounds_over([Run(str(path)) for path in files]), axis=0)
    whole, float_ = latencies[::2], latencies[1::2]
    print("\n| trial | integers, ms | float, ms | float / integers |\n|---|---|---|---|")
    for report, a, b in zip(reports, whole, float_, strict=True):
        print(f"| {report['trial']} | {a:.4f} | {b:.4f} | {b / a:.2f} |")
    print(f"float / integers, median: {np.median(float_ / whole):.2f}")
    if arguments.hardware:
        table = CostTable.load(arguments.hardware)
        net, _ = load(arguments.run)
        family = net.space.family
        subnets = [family.subnet(report["subnet"]) for report in reports]
        summed = np.array([table.network_cost(subnet.layers())[0] for subnet in subnets])
        error = summed / whole - 1
        print(f"the table's estimates are off by {np.abs(error).mean():.1%} on average, at most "
              f"{np.abs(error).max():.1%}, over {len(error)} networks")  # fmt: skip
        own = fit_correction(summed, whole)
        print(f"corrected by these networks (each by the others): {own.error:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    actions = parser.add_subparsers(required=True)
    writing = actions.add_parser("write")
    writing.add_argument("--run", required=True)
    writing.add_argument("--study", default="search")
    writing.add_argument("--data", required=True)
    writing.add_argument("--out", type=Path, required=True)
    writing.add_argument("--trials", type=int, help="most trials; by default the whole front")
    writing.add_argument("--images", type=int, help="that prove each file; by default all")
    writing.set_defaults(run_action=write)
    timing = actions.add_parser("time")
    timing.add_argument("folder", type=Path)
    timing.add_argument("--hardware", help="cpu's table")
    timing.add_argument("--run", help="whose space the table is of")
    timing.set_defaults(run_action=timed)
    arguments = parser.parse_args()
    arguments.run_action(arguments)


if __name__ == "__main__":
    main()
