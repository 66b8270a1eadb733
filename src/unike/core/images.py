"""Reading image files: every way in which a picture can be bad ends in one clear line."""

import hashlib
import math
import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unike.core import home
from unike.core.errors import UnikeError
from unike.core.files import open_file, replace_file
from unike.core.folders import reason

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read; Pillow would also try dozens of others, and start other programs for some."""

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded; a small file that unpacks to more is a decompression bomb."""

MAX_RATIO = 100
"""How many times as long as the other a side may be: processors scale the shorter one to hundreds of pixels."""

MAX_SIDE = 65_535
"""The longest side, which is the longest that a JPEG has; the processors take seconds for a line of millions."""

READ_PIXELS = 12_845_056
"""Larger pictures are scaled down to this at once: where Qwen2-VL's processor stops, and no family reads more."""

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""What a PNG file holds; of other modes (CMYK, YCbCr, HSV) it has what they look like."""

ALPHA_MODES = ("PA", "La", "RGBa")

GREY_SCALES = (255, 65_535)
"""What white is in pictures of 16 and 32 bits, whose values say which: no file names it."""


def picture(image: Any) -> Path | None:
    """The file of a picture, whatever a program has of it; what is no file yet is put into the cache folder, as PNG.

    Args:
        image: A path, a ``file:`` URL, a PIL image, a file's bytes, an array or tensor ``[H, W]``, ``[H, W, 3 or 4]``
            or ``[3, H, W]`` (0..255, or floats from 0 to 1); or None.

    Raises:
        UnikeError: It is something else, an address on the net, or several pictures.
    """
    if image is None or isinstance(image, Path):
        return image
    if isinstance(image, str):
        if image.startswith("file:"):
            return Path(url2pathname(urlparse(image).path))
        if "://" in image[:12]:
            raise UnikeError(f"{image} is on the net, and nothing is fetched; download the picture and give its path")
        return Path(image)
    if isinstance(image, os.PathLike):
        return Path(image)
    if isinstance(image, list | tuple):
        if len(image) == 1:
            return picture(image[0])
        raise UnikeError(f"{len(image)} pictures were given; a question is about one, or none")
    return _kept(_opened(image))


def _opened(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                return Image.open(BytesIO(bytes(image)), formats=FORMATS)
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise UnikeError(f"these {len(image)} bytes are no picture ({error})") from None
    try:
        values = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
        if values.ndim not in (2, 3):
            raise ValueError(f"it has {values.ndim} dimensions")
        if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] not in (3, 4):
            values = values.transpose(1, 2, 0)
        if values.dtype.kind == "f" and values.size and values.min() >= 0 and values.max() <= 1:
            values = (values * 255).round()
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("some values are not finite")
        if values.dtype.kind not in "biuf" or not values.size or values.min() < 0 or values.max() > 255:
            raise ValueError("values are neither 0..255 nor 0..1")
        return Image.fromarray(values.astype(np.uint8).squeeze())
    except (TypeError, ValueError, RuntimeError) as error:
        what = type(image).__name__
        raise UnikeError(f"a picture is a path, a PIL image, bytes or an array, and not {what} ({error})") from None


def _kept(image: Image.Image) -> Path:
    """A picture's file in the cache folder, by its content."""
    buffer = BytesIO()
    try:
        if image.mode in ("F", "I"):
            image = _grey(image, Path("the picture"))
        image = image if image.mode in PNG_MODES else image.convert("RGBA" if image.mode in ALPHA_MODES else "RGB")
        image.save(buffer, "PNG")
    except (OSError, ValueError) as error:
        raise UnikeError(f"the picture cannot be kept as PNG: {error}; convert it to RGB") from None
    content = buffer.getvalue()
    path = home.folder() / "pictures" / f"{hashlib.sha256(content).hexdigest()}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    return path


def load_image(path: Path | str) -> Image.Image:
    """Read a picture as RGB, upright, of at most `READ_PIXELS` pixels; transparency becomes white.

    Raises:
        UnikeError: No file, a folder, not a picture, a truncated picture, one of more than `MAX_PIXELS` pixels or
            with a side of more than `MAX_SIDE` or `MAX_RATIO` times the other, or grey values without a scale.
    """
    path = Path(path)
    try:
        file = open_file(path)
    except FileNotFoundError:
        raise UnikeError(f"image not found: {path}") from None
    except IsADirectoryError:
        raise UnikeError(f"image is a folder: {path}; give the path of one picture") from None
    except OSError as error:
        raise UnikeError(f"cannot read the image {path}: {reason(error)}; give another path") from None
    try:
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise UnikeError(
                    f"image too large: {path} has {size} pixels, the limit is {MAX_PIXELS:,}; scale it down"
                )
            if max(image.size) > MAX_SIDE:
                raise UnikeError(
                    f"image too long: {path} has {image.width} x {image.height} pixels, and a side has at most "
                    f"{MAX_SIDE:,}; cut it up"
                )
            if max(image.size) > MAX_RATIO * min(image.size):
                raise UnikeError(
                    f"image too long: {path} has {image.width} x {image.height} pixels, and one side may be at most "
                    f"{MAX_RATIO} times the other; cut it up"
                )
            return _as_rgb(image, path)
    except UnidentifiedImageError:
        raise UnikeError(
            f"not an image that can be read: {path}; give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    except Image.DecompressionBombError:
        raise UnikeError(f"image too large: {path} has more than {MAX_PIXELS:,} pixels; scale it down") from None
    except Exception as error:  # Pillow's decoders raise all sorts for truncated or broken files
        if isinstance(error, UnikeError):
            raise
        raise UnikeError(f"broken image: {path} ({error}); open it in a viewer, or export it anew") from None


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    scale = math.sqrt(READ_PIXELS / (image.width * image.height))
    if scale < 1:  # first, so that nothing below is done at full size; a JPEG is not even decoded at it
        image.thumbnail((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    upright = ImageOps.exif_transpose(image)  # phones store turned pictures with a note to turn them back
    if upright.mode == "F" or upright.mode.startswith("I"):
        return _grey(upright, path).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


def _grey(image: Image.Image, path: Path) -> Image.Image:
    """Grey values of more than 8 bits, which Pillow would clip, as 8 bits."""
    import numpy as np  # Pillow tells no NaN

    values = np.asarray(image if image.mode == "F" else image.convert("I"), dtype=np.float64)
    scales = (1, *GREY_SCALES) if image.mode == "F" else GREY_SCALES
    low, high = float(values.min()), float(values.max())
    white = next((scale for scale in scales if high <= scale), None)
    if white is None or not low >= 0:
        raise UnikeError(
            f"image of unknown scale: {path} has values from {low:g} to {high:g}, and grey is read from 0 to "
            f"{' or '.join(map(str, scales))}; export it with 8 bits"
        )
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))
