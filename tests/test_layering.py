"""The house rules a machine can check: which rooms there are, who imports whom, and what.

The floors are written here; CONTRIBUTING.md has their picture.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "apq_optuna"

FLOORS: list[dict[str, str]] = [
    {
        "errors": "the errors there are",
        "_text": "text as it is printed",
        "_files": "files, whole or not at all",
        "_checkpoints": "safetensors with a JSON sidecar",
        "_memory": "large buffers, kept from step to step",
        "_progress": "progress bars",
        "_threads": "cores shared among processes",
        "_energy": "energy and CO2 of what takes time",
        "_torchvision": "torchvision, importable beside a CPU-only torch",
        "_optuna": "everything of Optuna that is private or differs between its versions",
    },
    {
        "networks": "networks as values, and the family protocol",
        "space": "decisions, genotypes, features, coordinates",
        "predictor": "what learns accuracies",
        "data": "images as three splits",
    },
    {
        "search": "the evolutionary engine and the acquisition",
        "storage": "the tuned storage",
        "supernet": "supernets and the modules they give",
        "quantization": "the quantized network and its finetuning",
        "export": "networks as files for runtimes",
        "hardware": "devices, cost tables and their files",
        "tracing": "a torch model as a search space",
        "pairs": "the store of fp32 and quantized pairs",
    },
    {
        "sampler": "what proposes trials",
        "objective": "a trial turned into values",
        "collect": "fp32 and quantized pairs, collected",
        "ledger": "what every stage took",
        "baselines": "what joint search is compared with",
    },
    {
        "finishing": "the last step of one network",
        "confirming": "a front's networks measured again",
        "prediction": "a front for another device",
        "report": "figures, HTML and dashboard",
        "comparison": "joint search beside what it is compared with",
    },
    {
        "commands": "what each command does",
        "cli": "the command line",
    },
]  # fmt: skip
"""Rooms from the ground up. A room may import what stands before it; nothing imports upward."""

CONVENIENCES = {
    ("hardware/devices/device", "hardware/tables/build"): "device.table(space)",
    ("hardware/devices/device", "hardware/tables/table"): "its return type",
    ("supernet/network", "supernet/checkpoint"): "net.save and net.load",
}
"""Late imports, one line each, that would else close a circle."""

AT_IMPORT = {
    "torch": ("_checkpoints", "_torchvision", "predictor/mlp", "predictor/transfer_learning",
              "data", "supernet", "quantization", "export/building", "export/modules",
              "export/running", "export/writing", "hardware/layers", "tracing", "objective",
              "collect", "finishing", "baselines"),
    "safetensors": ("_checkpoints", "predictor/mlp"),
    "optuna": ("_optuna", "storage", "sampler", "objective", "prediction", "report", "baselines",
               "confirming", "comparison"),
    "sqlalchemy": ("storage", "pairs", "ledger"),
    "plotly": ("report", "comparison/tables"),
    "onnx": (),
    "onnxruntime": (),
    "optuna_dashboard": (),
    "PIL": (),
}  # fmt: skip
"""Files that load a package when they are imported; all others load it where they need it."""

ROOMS = [room for floor in FLOORS for room in floor]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
WHAT = {room: what for floor in FLOORS for room, what in floor.items()}

FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FRONT_DOOR = "__init__"


def room_of(name: str) -> str:
    return name.split("/")[0]


def imported(name: str, *, at_import: bool = False) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a file; late ones too unless `at_import`."""

    def walk(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node
                for part in ("body", "orelse", "handlers", "finalbody"):
                    yield from walk(getattr(node, part, []))

    tree = ast.parse(FILES[name].read_text())
    for node in walk(tree.body) if at_import else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""


def needs(name: str) -> set[str]:
    """Files of the package that a file imports."""
    found = set()
    for module, item in imported(name):
        if module.split(".")[0] != "apq_optuna":
            continue
        path = "/".join(module.split(".")[1:])
        for candidate in (f"{path}/{item}".strip("/"), path, f"{path}/__init__".strip("/")):
            if candidate in FILES:
                found.add(candidate)
                break
        else:
            raise AssertionError(f"{name} imports {module}, which is not there")
    return found - {name, FRONT_DOOR}


def test_every_file_has_a_room() -> None:
    for name in FILES:
        room = room_of(name)
        assert room in ROOMS or name == FRONT_DOOR, (
            f"{name} is in no room: give {room!r} a place in FLOORS, or move the file"
        )
    assert set(ROOMS) == {room_of(name) for name in FILES} - {FRONT_DOOR}


@pytest.mark.parametrize("name", [name for name in FILES if name != FRONT_DOOR])
def test_nothing_imports_upward(name: str) -> None:
    room = room_of(name)
    for target in sorted(needs(name)):
        other = room_of(target)
        if other == room:
            continue
        assert ROOMS.index(other) < ROOMS.index(room), (
            f"{name} imports {target}: {room!r} ({WHAT[room]}, floor {FLOOR_OF[room]}) stands "
            f"below {other!r} ({WHAT[other]}, floor {FLOOR_OF[other]}); what needs both belongs "
            f"into {other!r} or above it"
        )


def test_no_files_form_a_circle() -> None:
    edges = {
        name: {target for target in needs(name) if (name, target) not in CONVENIENCES}
        for name in FILES
        if name != FRONT_DOOR
    }
    placed: set[str] = set()
    while len(placed) < len(edges):
        free = {name for name, targets in edges.items() if targets <= placed} - placed
        rest = {name: targets - placed for name, targets in edges.items() if name not in placed}
        while above := rest.keys() - {target for targets in rest.values() for target in targets}:
            rest = {name: targets for name, targets in rest.items() if name not in above}
        assert free, f"these files import each other in a circle: {rest}"
        placed |= free


def test_the_conveniences_are_still_needed() -> None:
    for name, target in CONVENIENCES:
        assert target in needs(name), f"{name} no longer imports {target}: take it off the list"


@pytest.mark.parametrize("name", FILES)
def test_packages_are_loaded_in_their_rooms_only(name: str) -> None:
    for module, _ in imported(name, at_import=True):
        package = module.split(".")[0]
        allowed = AT_IMPORT.get(package, (name,))
        assert any(name == a or name.startswith(f"{a}/") for a in allowed), (
            f"{name} loads {package} when it is imported; that is for {', '.join(allowed)}. "
            "Import it in the function that needs it, or move the code there"
        )


OWN_WORDS = re.compile(r"(^|_)(stage|block)s?(_|$)")
KNOW_STAGES = ("networks/mobile", "networks/blocks", "networks/presets", "supernet")


@pytest.mark.parametrize("name", FILES)
def test_only_the_mobile_family_knows_stages_and_blocks(name: str) -> None:
    if any(name == k or name.startswith(f"{k}/") for k in KNOW_STAGES):
        return
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        for field in ("id", "attr", "arg", "name"):
            word = getattr(node, field, None)
            assert not (isinstance(word, str) and OWN_WORDS.search(word)), f"{name}: {word}"
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr in ("startswith", "endswith", "partition", "split", "rsplit"):
            texts = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            parsed = [text for text in texts if re.search("stage|block|_bits", text)]
            assert not parsed, f"{name}, line {node.lineno}: parses a parameter's name"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_unpickled_and_private_optuna_stays_in_one_place(name: str) -> None:
    text = FILES[name].read_text()
    assert not {module.split(".")[0] for module, _ in imported(name)} & {
        "pickle",
        "joblib",
        "dill",
    }
    assert "torch.load(" not in text and "allow_pickle=True" not in text
    if name != "_optuna":
        for private in ("._storage", "_trial_id", "_study_id", "optuna._"):
            assert f"study{private}" not in text and f"trial.{private}" not in text, private
        assert not [m for m, _ in imported(name) if m.startswith("optuna._")]


# ---------------------------------------------------------------------- what runs without what


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_WITHOUT_OPTUNA = """
import sys
for name in ("optuna", "sqlalchemy"):
    sys.modules[name] = None
import apq_optuna.data, apq_optuna.export, apq_optuna.hardware, apq_optuna.networks
import apq_optuna.predictor, apq_optuna.quantization, apq_optuna.search, apq_optuna.space
import apq_optuna.supernet
space = apq_optuna.space.SearchSpace.preset("digits")
apq_optuna.hardware.bitfusion_small().table(space).compile(space)
"""


def test_the_lower_floors_work_without_optuna_and_sqlalchemy() -> None:
    run(_WITHOUT_OPTUNA)


_WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "safetensors", "sklearn", "onnx", "onnxruntime"):
    sys.modules[name] = None  # importing it fails
import tempfile
import optuna
import apq_optuna as apq
from apq_optuna import APQSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
space = apq.SearchSpace.preset("digits")
costs = apq.hardware.bitfusion_small().table(space)
limit = float(costs.compile(space).maxima[0] / 2)
folder = tempfile.mkdtemp()
storage = apq.open_storage(f"sqlite:///{folder}/core.db")


def measure(trial):
    subnet = space.suggest(trial)
    accuracy = 0.5 + 0.4 * subnet.bitops / 4e7
    return (accuracy, *costs.network_cost(subnet.layers()))


def new(name, **options):
    study = optuna.create_study(
        study_name=name, storage=storage, directions=["maximize", "minimize", "minimize"],
        sampler=APQSampler(space, costs=costs, budgets={"latency_ms": limit}, seed=0, **options),
    )
    study.set_metric_names(["accuracy", "latency_ms", "energy_mj"])
    return study


first = new("first")
first.optimize(measure, n_trials=20)
second = new("second", source=first)
second.optimize(measure, n_trials=5, callbacks=[apq.ParetoReport(f"{folder}/r.html", space=space)])
for study in (first, second):
    assert all(trial.values[1] <= limit for trial in study.trials)
front = apq.predicted_front(first, space, costs, size=10, generations=2)

plain = optuna.create_study(directions=["minimize"] * 2, sampler=APQSampler(seed=0))
plain.optimize(lambda t: (t.suggest_float("x", -1, 1) ** 2, t.suggest_int("y", 0, 9)), n_trials=14)
print(len(first.trials), len(second.trials), len(plain.trials), len(front) > 0)
"""


def test_a_study_runs_where_torch_cannot_be_imported() -> None:
    assert run(_WITHOUT_TORCH) == "20 5 14 True"


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'optuna', 'plotly', 'sqlalchemy', 'scipy'}"
    assert run(f"import sys, apq_optuna; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_every_public_name_can_be_imported() -> None:
    import apq_optuna

    for name in apq_optuna.__all__:
        assert getattr(apq_optuna, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = apq_optuna.nothing
