"""What the commands share: where a run lies, its supernet, images, costs and study."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq_optuna._files import alone
from apq_optuna._progress import follow, progress_bar
from apq_optuna._threads import SharedCores
from apq_optuna.errors import InvalidArgumentError, SpaceError
from apq_optuna.networks import TracedFamily

if TYPE_CHECKING:
    from optuna.study import Study

    from apq_optuna.hardware import CostTable, Device
    from apq_optuna.ledger import Entry, Ledger
    from apq_optuna.networks import Subnet
    from apq_optuna.pairs import PairStore
    from apq_optuna.space import SearchSpace
    from apq_optuna.supernet import SubnetModule, Supernet


CORRECTING_NETWORKS = 5
"""Whole networks that a measured table is corrected by, unless something else is asked for."""


def set_threads(arguments: Any) -> None:
    """As many threads as `--threads` says, else a share of the cores; see `share_cores`."""
    if getattr(arguments, "threads", None):
        import torch

        torch.set_num_threads(arguments.threads)
    else:
        share_cores()


@cache
def _cores() -> tuple[SharedCores, int]:
    """This process among those that share the cores, and how many threads it would have alone."""
    import torch

    return SharedCores(), torch.get_num_threads()


def share_cores() -> None:
    """Takes this process's share of the cores, as there are others of these commands, or not."""
    if any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        return  # somebody has decided
    import torch

    shared, alone = _cores()
    wanted = shared.share(alone)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def run_folder(arguments: Any, *, make: bool = True) -> Path:
    """Where results of a run go."""
    name = str(arguments.run)
    folder = (
        Path("runs") / name.removeprefix("pretrained:")
        if name.startswith("pretrained:")
        else Path(arguments.run)
    )
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def budgets_of(texts: Sequence[str]) -> dict[str, float]:
    """What `--budget METRIC=LIMIT` says."""
    budgets = {}
    for text in texts:
        metric, _, limit = text.partition("=")
        try:
            budgets[metric] = float(limit)
        except ValueError:
            raise InvalidArgumentError(
                f"--budget {text!r}: write METRIC=LIMIT, e.g. latency_ms=2.0"
            ) from None
    return budgets


def load_supernet(arguments: Any) -> Supernet:
    """The supernet of a run, or the model that takes its place; of a package's, the edition that
    the study was begun with."""
    from apq_optuna.supernet import OnceForAllNet, load_net

    kind, _, name = str(arguments.run).rpartition(":")
    if kind != "pretrained":
        return load_net(str(arguments.run), trusted=True)
    net = OnceForAllNet.load(f"pretrained:{name}")
    begun_with = _supernet_of_study(arguments)
    if begun_with not in (None, net.weights_hash):
        for former in _former(name):
            if (other := OnceForAllNet.load(f"pretrained:{former}")).weights_hash == begun_with:
                say(f"study {arguments.study!r} was begun with {former}: going on with it")
                arguments.pretrained = former
                return other
    return net


def _former(name: str) -> list[str]:
    """Earlier editions of a supernet of the package, the latest first."""
    from apq_optuna.supernet.checkpoint import PRETRAINED

    return sorted((folder.name for folder in PRETRAINED.glob(f"{name}-*")), reverse=True)


def _supernet_of_study(arguments: Any) -> str | None:
    """Hash of the supernet that the study of the command line was measured on; None if there is
    no such study."""
    found = conditions_of_study(arguments).get("supernet")
    return None if found is None else str(found)


def conditions_of_study(arguments: Any) -> dict[str, Any]:
    """What the study of the command line was begun with; nothing if there is no such study."""
    import optuna

    from apq_optuna._optuna import study_attribute
    from apq_optuna.storage import open_storage

    name = getattr(arguments, "study", None)
    if name is None or not has_database(arguments):
        return {}
    try:
        study = optuna.load_study(study_name=name, storage=open_storage(storage_url(arguments)))
    except KeyError:
        return {}
    return dict(study_attribute(study, "objective") or {})


def storage_url(arguments: Any) -> str:
    return arguments.storage or f"sqlite:///{run_folder(arguments) / 'apq.db'}"


def has_database(arguments: Any) -> bool:
    """Whether something was stored for a run; a server is asked when it is opened."""
    folder = run_folder(arguments, make=False)
    return arguments.storage is not None or (folder / "apq.db").exists()


def ledger_of(arguments: Any) -> Ledger:
    """The ledger of a run, in its database; bad `--watts` are told here, before any work."""
    from apq_optuna.ledger import Ledger, LedgerOptions

    options = LedgerOptions.of_environment(getattr(arguments, "watts", None))
    url = arguments.storage or f"sqlite:///{run_folder(arguments, make=False) / 'apq.db'}"
    return Ledger(url, options, note=lambda text: say(f"note: {text}"))


def computing(arguments: Any) -> str:
    """The name of the GPU that `--device` means, for the ledger; empty for the processor."""
    from apq_optuna.supernet.devices import resolve_device

    device = resolve_device(arguments.device)
    if not device.startswith("cuda"):
        return ""
    import torch

    return str(torch.cuda.get_device_name(device))


def take_in_pairs(arguments: Any, store: PairStore, protocol: str | None = None) -> str | None:
    """Adds the fp32 pairs that come with a supernet of the package; their protocol if they fit."""
    from apq_optuna.errors import PairError
    from apq_optuna.supernet.checkpoint import PRETRAINED

    kind, _, name = str(arguments.run).partition(":")
    path = PRETRAINED / getattr(arguments, "pretrained", name) / "pairs.npz"
    if kind != "pretrained" or not path.exists():
        return None
    before = len(store)
    try:
        store.import_npz(path, protocol=protocol)
    except PairError as error:  # measured on other images, or on more or fewer of them
        say(f"the fp32 pairs of the package are not used: {error}")
        return None
    if new := len(store) - before:
        say(f"{new} fp32 pairs of the package taken in ({store.protocol})")
    return store.protocol


def file_name(device: str) -> str:
    """A device's name as a part of a file's."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", device)


def is_table_file(name: str) -> bool:
    """Whether a name on the command line is of a cost table's file rather than of a device."""
    return Path(name).suffix.lower() in (".json", ".csv")


def cost_table(
    name: str, supernet: Supernet, folder: Path, ledger: Ledger | None = None
) -> CostTable:
    """The table that --hardware names: a file, or a device's.

    What a device measured is kept in the run's folder, and taken from there the next time; what
    that took, in the ledger.
    """
    from apq_optuna.hardware import CostTable, find_device

    if not name:
        name = "bitfusion-small" if supernet.space.networks.name == "digits" else "bitfusion"
    if is_table_file(name):
        return CostTable.load(name)
    device = find_device(name)
    if device.rounds == 1:
        return device.table(supernet.space)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"hardware-{file_name(device.name)}.json"
    networks = CORRECTING_NETWORKS if runs_whole(device, supernet.space, supernet) else 0
    with alone(path):  # workers that start together: one measures, the others wait for it
        if path.exists():
            table = CostTable.load(path)
            other = _measured_otherwise(table, device, supernet.space)
            if not other:
                say(f"costs of {device.name}: measured before, in {path}")
                return table
            say(
                f"{path} was measured otherwise ({other}): measuring anew; to go on with the old "
                "one, move it and give it as --hardware"
            )
        say(f"measuring the costs of {device.name}, kept in {path}")
        return measured_table(
            device, supernet.space, path, networks=networks, ledger=ledger, supernet=supernet
        )


def _measured_otherwise(table: CostTable, device: Device, space: SearchSpace) -> str:
    """What a kept table has other than the device now; empty where nothing."""
    now = json.loads(json.dumps(device.provenance() | {"space": space.hash}, default=str))
    differing = [name for name in now if table.provenance.get(name) != now[name]]
    return ", ".join(f"{name} {table.provenance.get(name)!r}" for name in differing)


def runs_whole(
    device: Device | None, space: SearchSpace, supernet: Supernet | None = None
) -> bool:
    """Whether a device measures whole networks of a space: their wiring is known, or there are
    modules and the device runs those."""
    from apq_optuna.hardware import Device

    if device is None or not device.runs_networks:
        return False
    own = type(device).measure_networks is not Device.measure_networks
    if supernet is not None and own:
        return True
    try:
        space.decode(space.extreme(largest=False)[0]).steps()
    except SpaceError as error:
        say(f"note: {error}: latencies are sums of layers")
        return False
    return True


def measured_table(
    device: Device, space: SearchSpace, path: Path | None = None, *, networks: int = 0,
    ledger: Ledger | None = None, supernet: Supernet | None = None,
) -> CostTable:  # fmt: skip
    """A device's table, corrected by whole networks if some are asked for, written to `path`."""
    if ledger is None or device.rounds == 1:  # computed, not measured
        return _table_of(device, space, path, networks, supernet)
    with ledger.task(
        "hardware", subject=device.name, target=device.name, scope="device", units="visits"
    ) as entry:
        return _table_of(device, space, path, networks, supernet, entry)


def _module_maker(
    space: SearchSpace, supernet: Supernet | None
) -> Callable[[Subnet], SubnetModule] | None:
    """What makes modules of subnets, where their wiring is in nothing else."""
    from apq_optuna.quantization import quantize_network

    if supernet is None or not isinstance(space.family, TracedFamily):
        return None
    net = supernet
    return lambda subnet: quantize_network(net.subnet(subnet), subnet)


def _table_of(
    device: Device, space: SearchSpace, path: Path | None, networks: int,
    supernet: Supernet | None, entry: Entry | None = None,
) -> CostTable:  # fmt: skip
    from apq_optuna.hardware.tables.calibrate import calibration_networks, correct

    journal = path.with_name(path.name + ".journal") if path is not None else None
    resumed = journal is not None and journal.exists()
    if resumed:
        say(f"going on from {journal}")

    def told(done: int, total: int) -> None:
        if entry is not None and not resumed:  # else some of them are another row's
            entry.units_done, entry.units_total = done, total

    if entry is not None:
        entry.resumed = resumed
    table = device.table(space, journal=journal, report=told, progress=True)
    if networks:
        with progress_bar(1, f"{device.name}: networks") as bar:
            chosen = calibration_networks(table, space, networks)
            maker = _module_maker(space, supernet)
            table = correct(table, device, chosen, network=maker, report=follow(bar))
        about = table.provenance["correction"]
        say(
            f"corrected by {networks} whole networks: x{about['scale']:.3f} and "
            f"{about['overhead_ms']:.4f} ms; each is off by {about['error']:.1%} on average when "
            "the others correct it"
        )
    if path is not None and journal is not None:
        table.save(path)  # only now: a table that is there is whole
        journal.unlink(missing_ok=True)
    return table


def program_path() -> Path:
    """How this program was called, for the commands it suggests."""
    called = Path(sys.argv[0])
    return called if called.name == "apq-optuna" else Path("apq-optuna")


def say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def stored_study(arguments: Any) -> Study:
    from apq_optuna.storage import open_storage

    if not has_database(arguments):
        raise InvalidArgumentError(
            f"--run {arguments.run} has no study yet: there is no apq.db; run `search` first"
        )
    return find_study(arguments.study, open_storage(storage_url(arguments)), "--study")


def find_study(name: str, storage: Any, option: str) -> Study:
    import optuna

    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
        raise InvalidArgumentError(
            f"{option} {name!r} is not in {storage.url}; there are {names}"
        ) from error


def quiet() -> None:
    """Optuna's own messages, which say what ours do."""
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def completed_trials(study: Study) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
