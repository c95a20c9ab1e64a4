"""One image file as pixels: 8 bits, upright, on white where it is transparent, a square.

What a file can hold beside 8 bits a channel, and what becomes of it:

    16 bits, gray     by the depth of the file: 65535, or 4095 where a TIFF has 12 bits; the
                      library scales a PGM by its own maximum, and 16 bits of colour to 8
    32 bits, integer  by 255 or 65535, whichever the largest value first fits into
    signed 16 bits    by 32767
    float             by 1 where all values lie in [0, 1], by 255 where they lie in [0, 255]
    anything beyond   by the image's own least and largest value
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

FITS = ("crop", "pad", "stretch")
"""Ways to a square: the middle of it; whole on black; whole, its sides pulled to one length."""

_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 258, 262, 339  # of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2


def decode(path: Path, size: int, grayscale: bool, fit: str) -> NDArray[np.uint8]:
    """An image file as `(C, size, size) uint8`.

    Whatever the library raises on a broken file goes through; `why_unreadable` words it.
    """
    image = _flattened(open_image(path), "L" if grayscale else "RGB")
    if image.size != (size, size):
        image = _square(image, size, fit)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if grayscale else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def open_image(path: Path) -> Image:
    """An image file, decoded and upright, with at most 8 bits a channel."""
    from PIL import Image

    with Image.open(path) as file:
        _mend_colour_key(file)
        file.load()
        turn = _turn(file)
        image = _in_eight_bits(file) if is_deep(file.mode) else file
        return image if turn is None else image.transpose(turn)


def is_deep(mode: str) -> bool:
    """Whether images of a mode are gray with more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def is_gray(mode: str) -> bool:
    """Whether a folder whose first image has this mode is gray."""
    return mode in ("1", "L") or is_deep(mode)


def is_colour(path: Path) -> bool:
    """Whether a file, by its header, can hold colour; False where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("P", "PA"):
                colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
                return bool((colours != colours[:, :1]).any())
            return image.mode not in ("LA", "La") and not is_gray(image.mode)
    except Exception:  # reading it will say what is wrong with it
        return False


def check(path: Path) -> None:
    """Finds most damage without decoding: raises whatever decoding would raise.

    A PNG has checksums and a JPEG an end marker; only one that looks damaged is decoded, and
    formats that have neither. A WebP is looked through when it is opened.
    """
    from PIL import Image

    with Image.open(path) as image:
        form = image.format
        try:
            image.verify()
            sound = form in ("PNG", "WEBP") or (form == "JPEG" and _ends_as_jpeg(path))
        except Exception:
            sound = False
    if not sound:
        open_image(path)


def why_unreadable(error: Exception) -> str:
    """What is wrong with a file, in a few words without its name."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of no known kind"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------------- as it lies in the file


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))  # cameras put a little behind it
        return b"\xff\xd9" in file.read()


def _mend_colour_key(file: Any) -> None:
    """Scales a PNG's transparent colour, which is given in the file's depth, as its pixels are."""
    key = file.info.get("transparency")
    if key is None or file.format != "PNG" or not file.tile:
        return
    layout = file.tile[0].args
    if layout in ("L;2", "L;4"):
        file.info["transparency"] = key * (85 if layout == "L;2" else 17)
    elif layout == "RGB;16B":
        file.info["transparency"] = tuple(part >> 8 for part in key)


def _turn(file: Image) -> Any:
    """The turn that sets an image upright; None for none."""
    from PIL import Image

    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata nobody can read turn nothing; the pixels are whole
        return None
    turn = Image.Transpose
    return {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }.get(orientation)  # fmt: skip


def _in_eight_bits(file: Any) -> Image:
    """A gray image of more than 8 bits as one of 8; the docstring above says how."""
    from PIL import Image

    values = np.asarray(file).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are no numbers")
    tags: Any = getattr(file, "tag_v2", {})
    least, largest = values.min(), values.max()
    fitting = [top for top in _tops(file.mode, tags) if least >= 0 and largest <= top]
    low, high = (0.0, fitting[0]) if fitting else (least, largest)
    scaled = ((values - low) * (255 / max(high - low, 1e-300))).round().astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    if "transparency" in file.info:
        scaled[values == file.info["transparency"]] = 255
    return Image.fromarray(scaled)


def _tops(mode: str, tags: Any) -> tuple[float, ...]:
    """Values that may stand for white, smallest first."""
    if mode == "F":
        return (1.0, 255.0)
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # only a TIFF says it and needs it
    if bits > 16:
        return (255.0, 65535.0)
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    return (2.0 ** (bits - signed) - 1,)


# ---------------------------------------------------------------------- as it is used


def _flattened(image: Image, mode: str) -> Image:
    """Gray or colour of 8 bits, with white behind what is transparent."""
    from PIL import Image

    if image.mode in ("La", "RGBa"):  # multiplied by their opacity: of no other use
        image = image.convert(image.mode.upper())
    if image.mode == "LAB" and mode == "L":
        image = image.convert("RGB")  # there is no direct way
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", layer.size, "white")
            return Image.alpha_composite(white, layer).convert(mode)
    return image.convert(mode)


def _square(image: Image, size: int, fit: str) -> Image:
    from PIL import Image, ImageOps

    ways: dict[str, Callable[..., Image.Image]] = {
        "crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize
    }  # fmt: skip
    return ways[fit](image, (size, size), Image.Resampling.BILINEAR)
