"""Decoding: what image files can hold, and the pixels that have to come of it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from apq_optuna.data import load_data
from apq_optuna.data.decode import decode, is_colour, open_image

Array = NDArray[Any]
WHITE, RED = [255, 255, 255], [255, 0, 0]


def png(colour: int, depth: int, samples: bytes, width: int, key: bytes = b"") -> bytes:
    """A PNG of one row in a layout that Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(b"\0" + samples))]
    chunks = [chunk(kind, content) for kind, content in [*parts, (b"IEND", b"")]
              if content or kind == b"IEND"]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def big(*values: int) -> bytes:
    return np.array(values, ">u2").tobytes()


def row(path: Path) -> list[list[int]]:
    """Pixels of an image of one row, each as its channels, not resized."""
    pixels = decode(path, open_image(path).width, not is_colour(path), "stretch")
    found: list[list[int]] = pixels[:, 0].T.tolist()
    return found


def gray(path: Path) -> list[int]:
    return [value for (value,) in row(path)]


# ---------------------------------------------------------------------- more than 8 bits


def saved(values: Array, **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        Image.fromarray(values).save(path, **options)

    return write


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


SIXTEEN = np.array([[0, 257, 32896, 65535]], np.uint16)
EIGHT = [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("file", "write", "expected"),
    [
        ("16.png", saved(SIXTEEN), EIGHT),
        ("16.tif", saved(SIXTEEN), EIGHT),
        ("16.pgm", saved(SIXTEEN), EIGHT),
        ("dark.png", saved(SIXTEEN // 257), [0, 0, 0, 1]),
        ("big-endian.tif", saved(SIXTEEN.astype(">u2")), EIGHT),
        ("white-is-zero.tif", saved(SIXTEEN, tiffinfo={262: 0}), [255, 254, 127, 0]),
        ("10-bits.pgm", written(b"P5 3 1 1023\n" + big(0, 512, 1023)), [0, 128, 255]),
        ("plain.pgm", written(b"P2 3 1 1023\n0 512 1023\n"), [0, 128, 255]),
        ("int32-of-8.tif", saved(np.array([[0, 1, 128, 255]], np.int32)), EIGHT),
        ("int32-of-16.tif", saved(SIXTEEN.astype(np.int32)), EIGHT),
        ("int32-beyond.tif", saved(np.array([[0, 10**6, 2 * 10**6]], np.int32)), [0, 128, 255]),
        ("int32-negative.tif", saved(np.array([[-128, 0, 127]], np.int32)), [0, 128, 255]),
        ("float-to-1.tif", saved(np.array([[0, 0.5, 1]], np.float32)), [0, 128, 255]),
        ("float-to-255.tif", saved(np.array([[0, 128, 200]], np.float32)), [0, 128, 200]),
        ("float-beyond.tif", saved(np.array([[-1, 0, 1]], np.float32)), [0, 128, 255]),
        ("float-one-value.tif", saved(np.full((1, 2), 300, np.float32)), [0, 0]),
        ("gray-2.png", written(png(0, 2, bytes([0b00011011]), 4)), [0, 85, 170, 255]),
        ("gray-4.png", written(png(0, 4, bytes([0x0F]), 2)), [0, 255]),
        ("gray-1.png", written(png(0, 1, bytes([0b01000000]), 2)), [0, 255]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gray_is_scaled_by_its_depth(
    file: str, write: Callable[[Path], object], expected: list[int], tmp_path: Path
) -> None:
    write(tmp_path / file)
    assert gray(tmp_path / file) == expected


def test_a_tiff_of_12_bits_is_scaled_by_12(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 4), np.uint16)).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.index(struct.pack("<HHI", 258, 3, 1)) + 8  # bits per sample
    content[place : place + 2] = struct.pack("<H", 12)
    offset = content.index(struct.pack("<HHI", 273, 4, 1)) + 8
    (start,) = struct.unpack("<I", content[offset : offset + 4])
    content[start : start + 6] = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00])  # 0, 4095, 2048, 0
    (tmp_path / "a.tif").write_bytes(content)
    assert gray(tmp_path / "a.tif") == [0, 255, 128, 0]


@pytest.mark.parametrize(
    ("colour", "samples", "expected"),
    [
        (2, big(0, 32896, 65535, 257, 257, 257), [[0, 128, 255], [1, 1, 1]]),
        (4, big(32896, 65535, 257, 65535), [[128] * 3, [1] * 3]),
        (6, big(0, 32896, 65535, 65535, 257, 257, 257, 65535), [[0, 128, 255], [1, 1, 1]]),
    ],
    ids=["rgb", "gray+alpha", "rgba"],
)
def test_16_bits_of_several_channels(
    colour: int, samples: bytes, expected: list[list[int]], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(colour, 16, samples, 2))
    assert row(tmp_path / "a.png") == expected


def test_values_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="it has values that are no numbers"):
        open_image(tmp_path / "a.tif")


# ---------------------------------------------------------------------- colour


@pytest.mark.parametrize(
    ("mode", "form", "value", "expected"),
    [
        ("CMYK", "tif", (0, 255, 255, 0), RED),
        ("YCbCr", "jpg", (76, 85, 255), [254, 0, 0]),
        ("LAB", "tif", (255, 128, 128), WHITE),
        ("RGBX", "tif", (255, 0, 0, 9), RED),
    ],
)
def test_colour_in_other_coordinates(
    mode: str, form: str, value: Any, expected: list[int], tmp_path: Path
) -> None:
    path = tmp_path / f"a.{form}"
    Image.new(mode, (8, 8), value).save(path)
    pixels = decode(path, 8, False, "crop")[:, 0, 0]
    assert np.abs(pixels.astype(int) - expected).max() <= 2
    luma = int(np.dot(expected, [0.299, 0.587, 0.114]))
    assert abs(int(decode(path, 8, True, "crop")[0, 0, 0]) - luma) <= 3


# ---------------------------------------------------------------------- transparency


def palette(**options: Any) -> Callable[[Path], object]:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    return lambda path: image.save(path, **options)


def with_alpha(mode: str, *pixels: tuple[int, ...]) -> Callable[[Path], object]:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image.save


def palette_with_alpha(path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0])
    image = image.convert("PA")
    image.putalpha(Image.fromarray(np.array([[255, 0]], np.uint8)))
    image.save(path)


@pytest.mark.parametrize(
    ("file", "write", "expected"),
    [
        ("rgba.png", with_alpha("RGBA", (*RED, 255), (*RED, 0)), [RED, WHITE]),
        ("half.png", with_alpha("RGBA", (0, 0, 0, 128)), [[127] * 3]),
        ("rgba.webp", with_alpha("RGBA", (0, 0, 0, 0)), [WHITE]),
        ("la.png", with_alpha("LA", (0, 255), (0, 0)), [[0], [255]]),
        ("palette-entry.png", palette(transparency=1), [RED, WHITE]),
        ("palette-bytes.png", palette(transparency=b"\x00\xff"), [WHITE, [0, 0, 255]]),
        ("pa.tif", palette_with_alpha, [RED, WHITE]),
        ("rgb-key.png", written(png(2, 8, bytes([1, 2, 3, 4, 5, 6]), 2, big(1, 2, 3))),
         [WHITE, [4, 5, 6]]),
        ("rgb-16-key.png", written(png(2, 16, big(40000, 1, 2, 0, 0, 257), 2, big(40000, 1, 2))),
         [WHITE, [0, 0, 1]]),
        ("gray-key.png", written(png(0, 8, bytes([85, 1]), 2, big(85))), [[255], [1]]),
        ("gray-1-key.png", written(png(0, 1, bytes([0b01000000]), 2, big(0))), [[255], [255]]),
        ("gray-2-key.png", written(png(0, 2, bytes([0b00011011]), 4, big(1))),
         [[0], [255], [170], [255]]),
        ("gray-4-key.png", written(png(0, 4, bytes([0x12]), 2, big(1))), [[255], [34]]),
        ("gray-16-key.png", written(png(0, 16, big(257, 514), 2, big(257))), [[255], [2]]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_transparency_is_white(
    file: str, write: Callable[[Path], object], expected: list[list[int]], tmp_path: Path
) -> None:
    write(tmp_path / file)
    assert row(tmp_path / file) == expected


@pytest.mark.parametrize(("mode", "straight"), [("La", "LA"), ("RGBa", "RGBA")])
def test_colour_multiplied_by_its_opacity(
    mode: str, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new(straight, (4, 4), (0,) * len(mode)).convert(mode)
    monkeypatch.setattr("apq_optuna.data.decode.open_image", lambda path: image)
    for grayscale in (True, False):
        assert decode(tmp_path, 4, grayscale, "crop").min() == 255


# ---------------------------------------------------------------------- upright and square


@pytest.mark.parametrize("form", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(form: str, orientation: int, tmp_path: Path) -> None:
    corners = np.zeros((16, 32), np.uint8)
    corners[:8, :16] = 255  # light at the top left, and wider than high
    upright = Image.fromarray(corners).convert("RGB")
    lie = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if lie is None else upright.transpose(Image.Transpose(lie))
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / f"a.{form}", exif=exif)
    image = open_image(tmp_path / f"a.{form}")
    assert image.size == (32, 16)
    np.testing.assert_allclose(np.asarray(image.convert("L"), int), corners, atol=12)


def test_metadata_that_cannot_be_read_turn_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 8)).save(tmp_path / "a.png", exif=b"garbage")
    assert open_image(tmp_path / "a.png").size == (4, 8)


@pytest.mark.parametrize(
    ("fit", "middle_row"),
    [
        ("crop", [0, 0, 255, 255]),
        ("pad", [100, 0, 255, 200]),
        ("stretch", [100, 0, 255, 200]),
    ],
)
def test_ways_to_a_square(fit: str, middle_row: list[int], tmp_path: Path) -> None:
    stripes = np.repeat(np.array([[100, 0, 255, 200]], np.uint8), 8, 1).repeat(16, 0)
    Image.fromarray(stripes).save(tmp_path / "a.png")  # 32 wide, 16 high, four stripes
    (pixels,) = decode(tmp_path / "a.png", 16, True, fit)
    quarter = 16 // 4
    assert pixels[8, quarter // 2 :: quarter].tolist() == middle_row
    above = [0] * 4 if fit == "pad" else middle_row  # black above and below
    assert pixels[1, quarter // 2 :: quarter].tolist() == above


def test_the_first_image_counts_upright(tmp_path: Path) -> None:
    """Its shorter side is the size; a wrong turn would not change that, a wrong crop would."""
    exif = Image.Exif()
    exif[274] = 6
    half = np.zeros((12, 24), np.uint8)
    half[:, :12] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(half).save(tmp_path / name / f"{i}.png", exif=exif)
    data = load_data(f"folder:{tmp_path}")
    assert data.image_size == 12
    image = data.train.images.batch(data.train.labels[:1])[0, 0]
    assert (image[:6] == 255).all() and (image[6:] == 0).all()  # light above, not at the left
