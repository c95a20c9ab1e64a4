"""The picture of the method in the README: `method.png`, beside this file.

    python studies/figures/method.py

Boxes stand on a grid of five columns and four rows. Units are pixels of the picture; it is drawn
at twice the size and reduced, so that edges are smooth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BLUE, GREY, ORANGE, DARK = "#1f5fbf", "#9aa0a6", "#d9730d", "#5f6368"  # as in the report
FILLS = {BLUE: "#eaf1fb", GREY: "#f4f5f6", ORANGE: "#fdf1e6", DARK: "#ececed"}
TEXT = "#202124"
SIZE = (1600, 800)
SCALE = 2
COLUMN, GAP, LEFT = 236, 74, 62
ROW, ROW_GAP, TOP = 114, 80, 50
HEAD, CAPTION, LABEL = 24, 18, 18
RADIUS, LINE, HEAD_LENGTH, HEAD_WIDTH = 12, 3, 15, 8

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A box: a heading and a caption, `\\n` between lines, `columns` wide from `column` on."""

    column: int
    row: int
    colour: str
    heading: str
    caption: str
    columns: int = 1

    @property
    def left(self) -> float:
        return LEFT + self.column * (COLUMN + GAP)

    @property
    def right(self) -> float:
        return self.left + self.columns * (COLUMN + GAP) - GAP

    @property
    def top(self) -> float:
        return TOP + self.row * (ROW + ROW_GAP)

    @property
    def bottom(self) -> float:
        return self.top + ROW

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.top + self.bottom) / 2


IMAGES = Box(0, 0, DARK, "images", "train, search-\nvalidation, test")
SUPERNET = Box(1, 0, BLUE, "once-for-all\nnetwork", "trained once")
PAIRS = Box(2, 0, BLUE, "fp32 pairs", "accuracies of about a thousand subnets:\nno training", 2)
FP32 = Box(4, 0, BLUE, "fp32 predictor", "ensemble of\nsmall networks")
TRIAL = Box(0, 1, DARK, "trial", "architecture,\nchannels, bits")
SUBNET = Box(1, 1, ORANGE, "subnet", "cut out of the network,\nBN measured again")
FINETUNE = Box(2, 1, ORANGE, "fold BN,\nquantize, finetune", "a few steps")
ACCURACY = Box(3, 1, ORANGE, "accuracy", "on search-validation\nimages")
QUANTIZED = Box(4, 1, BLUE, "quantized\npredictor", "what do bits cost?")
STUDY = Box(0, 2, DARK, "study (Optuna)", "storage, workers,\nPareto front")
GENOTYPE = Box(2, 2, BLUE, "next genotype", "within budgets,\nnever tried before")
SEARCH = Box(4, 2, BLUE, "evolutionary\nsearch", "with exact EHVI")
HARDWARE = Box(2, 3, GREY, "hardware model", "BitFusion, bit-serial,\nCPU, yours")
TABLE = Box(3, 3, GREY, "cost table", "every layer choice\nat every bit-width")

BOXES = (
    IMAGES, SUPERNET, PAIRS, FP32,
    TRIAL, SUBNET, FINETUNE, ACCURACY, QUANTIZED,
    STUDY, GENOTYPE, SEARCH,
    HARDWARE, TABLE,
)  # fmt: skip

BELOW_TRIALS = ACCURACY.bottom + ROW_GAP / 2
BELOW_STUDY = STUDY.bottom + ROW_GAP / 2
ASIDE = 62  # two arrows between one pair of boxes keep this far from the middle

ARROWS: tuple[tuple[str, tuple[Point, ...]], ...] = (
    (DARK, ((IMAGES.right, IMAGES.y), (SUPERNET.left, SUPERNET.y))),
    (BLUE, ((SUPERNET.right, SUPERNET.y), (PAIRS.left, PAIRS.y))),
    (BLUE, ((PAIRS.right, PAIRS.y), (FP32.left, FP32.y))),
    (BLUE, ((FP32.x, FP32.bottom), (QUANTIZED.x, QUANTIZED.top))),
    (BLUE, ((SUPERNET.x, SUPERNET.bottom), (SUBNET.x, SUBNET.top))),
    (DARK, ((TRIAL.right, TRIAL.y), (SUBNET.left, SUBNET.y))),
    (ORANGE, ((SUBNET.right, SUBNET.y), (FINETUNE.left, FINETUNE.y))),
    (ORANGE, ((FINETUNE.right, FINETUNE.y), (ACCURACY.left, ACCURACY.y))),
    (ORANGE, ((ACCURACY.right, ACCURACY.y), (QUANTIZED.left, QUANTIZED.y))),
    (
        ORANGE,
        (
            (ACCURACY.x, ACCURACY.bottom),
            (ACCURACY.x, BELOW_TRIALS),
            (STUDY.x + ASIDE, BELOW_TRIALS),
            (STUDY.x + ASIDE, STUDY.top),
        ),
    ),
    (BLUE, ((QUANTIZED.x, QUANTIZED.bottom), (SEARCH.x, SEARCH.top))),
    (BLUE, ((SEARCH.left, SEARCH.y), (GENOTYPE.right, GENOTYPE.y))),
    (BLUE, ((GENOTYPE.left, GENOTYPE.y), (STUDY.right, STUDY.y))),
    (DARK, ((STUDY.x - ASIDE, STUDY.top), (TRIAL.x - ASIDE, TRIAL.bottom))),
    (GREY, ((HARDWARE.right, HARDWARE.y), (TABLE.left, TABLE.y))),
    (GREY, ((TABLE.right, TABLE.y), (SEARCH.x, TABLE.y), (SEARCH.x, SEARCH.bottom))),
    (
        GREY,
        (
            (TABLE.x, TABLE.top),
            (TABLE.x, BELOW_STUDY),
            (STUDY.x, BELOW_STUDY),
            (STUDY.x, STUDY.bottom),
        ),
    ),
)
"""Colour and corners of every arrow, its point last."""

LABELS: tuple[tuple[Point, str, str], ...] = (
    ((FP32.x + 14, FP32.bottom + ROW_GAP / 2), "lm", "transfer"),
    ((SUPERNET.x + 14, SUPERNET.bottom + ROW_GAP / 2), "lm", "weights"),
    ((QUANTIZED.x + 14, QUANTIZED.bottom + ROW_GAP / 2), "lm", "mean, spread"),
    ((FINETUNE.x, BELOW_TRIALS - 6), "mb", "value of the trial: accuracy"),
    ((GENOTYPE.x, BELOW_STUDY - 6), "mb", "values of the trial: latency, energy"),
    (((TABLE.right + SEARCH.x) / 2 + 10, TABLE.y + 12), "mt", "latency, energy (exact)"),
)
"""Where, anchor and words of every label."""

LEGEND = (
    (BLUE, "learned or searched"),
    (ORANGE, "measured in every trial"),
    (GREY, "looked up, exact"),
    (DARK, "yours: images and study"),
)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size=size * SCALE)


def scaled(*points: Point) -> list[Point]:
    return [(x * SCALE, y * SCALE) for x, y in points]


def draw_box(draw: ImageDraw.ImageDraw, box: Box) -> None:
    """The frame, and heading and caption as one block in its middle."""
    draw.rounded_rectangle(
        scaled((box.left, box.top), (box.right, box.bottom)),
        RADIUS * SCALE,
        fill=FILLS[box.colour],
        outline=box.colour,
        width=LINE * SCALE,
    )
    lines = [(line, HEAD, TEXT) for line in box.heading.split("\n")]
    lines += [(line, CAPTION, DARK) for line in box.caption.split("\n")]
    y = box.y - sum(size + 5 for _, size, _ in lines) / 2
    for line, size, colour in lines:
        y += (size + 5) / 2
        draw.text(scaled((box.x, y))[0], line, colour, font(size), anchor="mm")
        y += (size + 5) / 2


def draw_arrow(draw: ImageDraw.ImageDraw, colour: str, corners: tuple[Point, ...]) -> None:
    """A line along the axes with a head at its last corner."""
    (x0, y0), (x, y) = corners[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    base = (x - dx * HEAD_LENGTH, y - dy * HEAD_LENGTH)
    draw.line(scaled(*corners[:-1], base), colour, LINE * SCALE, joint="curve")
    sides = [(base[0] + side * dy, base[1] + side * dx) for side in (-HEAD_WIDTH, HEAD_WIDTH)]
    draw.polygon(scaled((x, y), *sides), colour)


def draw_legend(draw: ImageDraw.ImageDraw) -> None:
    for number, (colour, words) in enumerate(LEGEND):
        y = TABLE.top + 14 + number * 29
        draw.rounded_rectangle(
            scaled((LEFT, y - 9), (LEFT + 30, y + 9)), 4 * SCALE, FILLS[colour], colour, 2 * SCALE
        )
        draw.text(scaled((LEFT + 42, y))[0], words, DARK, font(LABEL), anchor="lm")


def picture() -> Image.Image:
    """The whole picture, of `SIZE`."""
    image = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), "white")
    draw = ImageDraw.Draw(image)
    for colour, corners in ARROWS:
        draw_arrow(draw, colour, corners)
    for box in BOXES:
        draw_box(draw, box)
    for place, anchor, words in LABELS:
        draw.text(scaled(place)[0], words, DARK, font(LABEL), anchor=anchor)
    draw_legend(draw)
    return image.resize(SIZE, Image.Resampling.LANCZOS).quantize(64)


if __name__ == "__main__":
    path = Path(__file__).with_suffix(".png")
    picture().save(path, optimize=True)
    print(path)
