"""The command line with somebody's own images, and with a supernet of the package."""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import apq_optuna as apq
from apq_optuna.cli import main
from apq_optuna.collect import architectures
from apq_optuna.commands.common import take_in_pairs
from apq_optuna.data import AUGMENTATIONS, ImageData
from apq_optuna.data.decode import FITS
from apq_optuna.pairs import PairStore

Text = pytest.CaptureFixture[str]


def write(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (root / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 256, (8, 14), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / "two" / "7.png").write_bytes(b"")


def test_a_supernet_remembers_how_its_images_were_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Text
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "images")
    train = ["train", "--data", "folder:images", "--preset", "digits", "--run", "run", "--epochs",
             "1", "--batch-size", "16", "--image-size", "8", "--fit", "pad"]  # fmt: skip
    assert main(train) == 2
    assert "two/7.png cannot be read as an image" in capsys.readouterr().err
    train.append("--skip-broken")
    assert main([*train, "--augment", "shift"]) == 0
    out = capsys.readouterr().out
    assert out.count("note: data='folder:images': left out 1 of 60 images") == 1
    assert re.search(r"folder:images: 41 training, \d+ search-validation", out)
    info = json.loads(Path("run/supernet.json").read_text())["data"]
    assert (info["fit"], info["skip_broken"], info["augment"]) == ("pad", True, "shift")
    assert main([*train, "--augment", "none"]) == 2
    assert "is of another run (of another data)" in capsys.readouterr().err
    assert main(["collect", "--run", "run", "--pairs", "3"]) == 0  # else of another split
    search = ["search", "--run", "run", "--steps", "1", "--no-baselines", "--trials"]
    assert main([*search, "5"]) == 0
    assert main([*search, "6", "--augment", "none"]) == 2
    assert "augmentation 'shift', now 'none'" in capsys.readouterr().err
    assert main([*search, "5", "--study", "still", "--augment", "none"]) == 0
    predict = ["search", "--run", "run", "--predict-only", "--enqueue", "1", "--study"]
    assert main([*predict, "still"]) == 0
    assert "--augment none" in capsys.readouterr().out
    assert main([*predict, "search"]) == 0
    assert "--augment" not in capsys.readouterr().out
    assert main(["finetune", "--run", "run", "--trial", "0", "--epochs", "1"]) == 0
    assert apq.load_network("run/finished-0").about["fit"] == "pad"
    assert main(["collect", "--run", "run", "--pairs", "3", "--fit", "crop"]) == 2
    assert "is not what the supernet was trained on" in capsys.readouterr().err


def test_a_supernet_that_says_nothing_of_it_was_trained_as_usual(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = apq.OnceForAllNet.load(run_folder)
    for key in ("fit", "skip_broken", "augment"):
        del net.data_info[key]
    net.save(tmp_path / "run")
    seen: list[ImageData] = []
    monkeypatch.setattr("apq_optuna.collect.collect_pairs",
                        lambda net, data, store, *rest, **more: seen.append(data) or store.add(
                            architectures(net, 2, 0), np.array([0.5, 0.6])))  # fmt: skip
    assert main(["collect", "--run", str(tmp_path / "run"), "--pairs", "2"]) == 0
    assert (seen[0].augment, seen[0].fit, seen[0].skip_broken) == ("shift", "crop", False)


@pytest.mark.parametrize(
    ("option", "choices"), [("--fit", FITS), ("--augment", AUGMENTATIONS)], ids=["fit", "augment"]
)
def test_the_command_line_offers_what_the_library_does(
    option: str, choices: tuple[str, ...], capsys: Text
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--run", "r", option, "other"])
    listed = re.search(r"choose from (.*)\)", capsys.readouterr().err)
    assert listed and re.findall(r"[a-z+]+", listed[1]) == list(choices)


# ---------------------------------------------------------------------- pairs of the package


@pytest.fixture
def packaged(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a digits supernet, `pretrained:mine`, and 60 pairs of 100 images."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "package" / "mine"
    shutil.copytree(run_folder, folder)
    net = apq.OnceForAllNet.load(folder)
    store = PairStore("sqlite:///packing.db", supernet=net)
    store.agree("100 images, 512 for statistics")
    rows = architectures(net, 60, 0)
    store.add(rows, np.linspace(0.5, 0.9, len(rows)))
    store.export_npz(folder / "pairs.npz")
    monkeypatch.setattr("apq_optuna.supernet.checkpoint.PRETRAINED", folder.parent)
    return folder


RUN = ("--run", "pretrained:mine")
TAKEN_IN = "60 fp32 pairs of the package taken in (100 images, 512 for statistics)"


def test_a_search_begins_with_the_pairs_of_the_package(packaged: Path, capsys: Text) -> None:
    search = ["search", *RUN, "--steps", "1", "--images", "50", "--no-baselines", "--trials"]
    assert main([*search, "1"]) == 0
    out = capsys.readouterr().out
    assert TAKEN_IN in out and "0 of 1 trials done, 60 fp32 pairs" in out
    assert main([*search, "2"]) == 0
    out = capsys.readouterr().out
    assert "taken in" not in out and "1 of 2 trials done, 60 fp32 pairs" in out


def test_a_front_is_predicted_with_them(packaged: Path, capsys: Text) -> None:
    """Also one of a study that began before they were taken in."""
    (packaged / "pairs.npz").rename("away.npz")
    assert main(["search", *RUN, "--steps", "1", "--images", "50", "--no-baselines",
                 "--trials", "5"]) == 0  # fmt: skip
    assert "0 fp32 pairs" in capsys.readouterr().out
    Path("away.npz").rename(packaged / "pairs.npz")
    assert main(["search", *RUN, "--predict-only"]) == 0
    assert TAKEN_IN in capsys.readouterr().out


def test_collecting_counts_them_and_goes_on_as_they_were_measured(
    packaged: Path, capsys: Text
) -> None:
    assert main(["collect", *RUN, "--pairs", "60"]) == 0
    out = capsys.readouterr().out
    assert TAKEN_IN in out and "60 fp32 pairs: accuracy 0.5000 to 0.9000" in out
    assert main(["collect", *RUN, "--pairs", "61"]) == 0
    store = PairStore("sqlite:///runs/mine/apq.db", supernet=apq.OnceForAllNet.load(packaged))
    assert (len(store), store.protocol) == (61, "100 images, 512 for statistics")


@pytest.mark.parametrize("collected_before", [False, True])
def test_pairs_measured_otherwise_stay_out(
    collected_before: bool, packaged: Path, capsys: Text
) -> None:
    if collected_before:
        (packaged / "pairs.npz").rename("away.npz")
        assert main(["collect", *RUN, "--pairs", "2", "--images", "40"]) == 0
        Path("away.npz").rename(packaged / "pairs.npz")
    assert main(["collect", *RUN, "--pairs", "3", "--images", "40"]) == 0
    out = capsys.readouterr().out
    assert "the fp32 pairs of the package are not used" in out and "not of 40 images" in out
    assert "3 fp32 pairs: accuracy" in out


def test_pairs_of_another_supernet_stay_out(packaged: Path, capsys: Text) -> None:
    net = apq.OnceForAllNet.load(packaged)
    net.classifier.bias.data += 1
    net.save(packaged)
    assert main(["collect", *RUN, "--pairs", "2", "--images", "40"]) == 0
    out = capsys.readouterr().out
    assert "the fp32 pairs of the package are not used" in out and "2 fp32 pairs: acc" in out


def test_the_package_has_pairs_that_fit_its_supernet(url: str, capsys: Text) -> None:
    store = PairStore(url, supernet=apq.OnceForAllNet.load("cifar10"))
    arguments = Namespace(run=Path("pretrained:cifar10"))
    assert take_in_pairs(arguments, store) == "all images, 512 for statistics"
    assert len(store) == 1103
    assert "1103 fp32 pairs of the package taken in" in capsys.readouterr().out
    other = PairStore(url, supernet=apq.OnceForAllNet.load("cifar10"), split="0" * 16)
    assert take_in_pairs(arguments, other) is None
    assert len(other) == 0
    assert "holds pairs of data split fc17469a3ab21ecd, not of 0000" in capsys.readouterr().out


def test_a_study_goes_on_with_the_supernet_it_was_begun_with(packaged: Path, capsys: Text) -> None:
    """A package's supernet may be replaced by a better one; the former stays beside it."""
    search = ["search", *RUN, "--steps", "1", "--images", "50", "--no-baselines", "--trials"]
    assert main([*search, "1"]) == 0
    shutil.copytree(packaged, packaged.with_name("mine-1"))
    net = apq.OnceForAllNet.load(packaged)
    net.classifier.bias.data += 0.1
    net.save(packaged)
    (packaged / "pairs.npz").unlink()
    capsys.readouterr()
    assert main([*search, "2"]) == 0
    out = capsys.readouterr().out
    assert "study 'search' was begun with mine-1: going on with it" in out
    assert "1 of 2 trials done, 60 fp32 pairs" in out
    assert main([*search, "1", "--study", "new"]) == 0
    out = capsys.readouterr().out
    assert "going on with it" not in out and "0 of 1 trials done, 0 fp32 pairs" in out
