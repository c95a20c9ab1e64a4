"""A folder as people have it, searched end to end: what an ordinary one gives, and the same images
in every form that folders come in.

    python benchmarks/messy_folder.py --images FOLDER [--minutes 2] [--trials 8]

FOLDER has train/CLASS/IMAGE and test/CLASS/IMAGE. Of four classes, 400 training and 100 test
images each are written twice: as they are, and in turn as 16-bit gray, turned with an EXIF
orientation, transparent with noise below, gray, wide (the image in the middle of a larger one),
and 32-bit float TIFF, below `Training/` and `Testing/`, among litter and damaged files. Then
`apq-optuna` trains, collects, searches and finishes on both, with the same seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, TRAINING, TESTING = 4, 400, 100
FORMS = ("gray 16", "turned", "transparent", "gray", "wide", "float", "plain", "plain", "plain")
TURNED = 6  # EXIF: to be turned by a quarter to the right


def write(image: Image.Image, form: str, path: Path, rng: np.random.Generator) -> None:
    """One image in one of the forms."""
    pixels = np.asarray(image.convert("RGB"))
    gray = np.asarray(image.convert("L"))
    if form == "gray 16":
        Image.fromarray(gray.astype(np.uint16) * 257).save(path.with_suffix(".png"))
    elif form == "float":
        Image.fromarray(gray.astype(np.float32) / 255).save(path.with_suffix(".tiff"))
    elif form == "turned":
        about = Image.Exif()
        about[0x0112] = TURNED
        turned = Image.fromarray(np.rot90(pixels).copy())
        turned.save(path.with_suffix(".png"), exif=about)
    elif form == "transparent":
        white = (pixels >= 250).all(axis=2)
        hidden = np.where(white[:, :, None], rng.integers(0, 255, pixels.shape), pixels)
        alpha = np.where(white, 0, 255)[:, :, None]
        Image.fromarray(np.concatenate([hidden, alpha], axis=2).astype(np.uint8)).save(
            path.with_suffix(".png")
        )
    elif form == "gray":
        Image.fromarray(gray).save(path.with_suffix(".png"))
    elif form == "wide":
        edge = np.repeat(pixels[:, :1], 10, axis=1), np.repeat(pixels[:, -1:], 10, axis=1)
        wide = np.concatenate([edge[0], pixels, edge[1]], axis=1)
        Image.fromarray(wide).save(path.with_suffix(".PNG"))
    else:
        image.save(path.with_suffix(".png"))


def make(source: Path, folder: Path, *, messy: bool) -> int:
    """Writes the folder; how many damaged files are in it."""
    rng = np.random.default_rng(0)
    broken = 0
    classes = sorted(path.name for path in (source / "train").iterdir())[:CLASSES]
    for split, name, count in (("train", "Training", TRAINING), ("test", "Testing", TESTING)):
        for label in classes:
            target = folder / (name if messy else split) / label
            target.mkdir(parents=True)
            for i, path in enumerate(sorted((source / split / label).iterdir())[:count]):
                with Image.open(path) as image:
                    form = FORMS[i % len(FORMS)] if messy else "plain"
                    write(image, form, target / f"{i:04}", rng)
            if messy:
                whole = (target / "0000.png").read_bytes()
                (target / "damaged.png").write_bytes(whole[: len(whole) // 2])
                (target / "empty.jpg").touch()
                (target / "text.png").write_text("not an image")
                broken += 3
                (target / "._0000.png").write_bytes(b"\0\5\26\7")
                (target / ".ipynb_checkpoints").mkdir()
                (target / ".ipynb_checkpoints" / "0000-checkpoint.png").write_bytes(whole)
                (target / "Thumbs.db").touch()
    if messy:
        (folder / "__MACOSX" / "Training").mkdir(parents=True)
        (folder / ".DS_Store").touch()
    return broken


def run(*words: str) -> str:
    """One command; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "apq_optuna.cli", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr[-2000:]}")
    print(done.stdout.strip(), flush=True)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--trials", type=int, default=8)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for kind in ("ordinary", "messy"):
            folder, results = Path(place) / kind / "images", str(Path(place) / kind / "run")
            broken = make(arguments.images, folder, messy=kind == "messy")
            options = ["--skip-broken", "--fit", "crop", "--augment", "shift"]
            said = run(
                "train", "--data", f"folder:{folder}", "--run", results, "--image-size", "32",
                "--minutes", str(arguments.minutes), *(options if broken else []),
            )  # fmt: skip
            run("collect", "--run", results, "--pairs", "60")
            said += run("search", "--run", results, "--trials", str(arguments.trials))
            said += run("finetune", "--run", results, "--epochs", "2")
            found[kind] = {
                "damaged": broken,
                "images": re.findall(r"(\d+) training, (\d+) search-validation, (\d+) test", said)[
                    0
                ],
                "largest and smallest": re.findall(r"largest ([\d.]+), smallest ([\d.]+)", said)[
                    0
                ],
                "test": re.findall(r", test ([\d.]+)\n", said)[-1],
            }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
