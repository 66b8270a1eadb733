"""Reading image files: every way in which a picture can be bad ends in one clear line."""

import math
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from unike.core.errors import UnikeError

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded; a small file that unpacks to more is a decompression bomb."""

READ_PIXELS = 12_845_056
"""Larger pictures are scaled down to this at once: where Qwen2-VL's processor stops, and no family reads more."""

GREY_SCALES = (255, 65_535)
"""What white is in pictures of 16 and 32 bits, whose values say which: no file names it."""


def load_image(path: Path | str) -> Image.Image:
    """Read a picture as RGB, upright, of at most `READ_PIXELS` pixels; transparency becomes white.

    Raises:
        UnikeError: No file, a folder, not a picture, a truncated picture, one of more than `MAX_PIXELS` pixels, or
            grey values without a scale.
    """
    path = Path(path)
    if not path.exists():
        raise UnikeError(f"image not found: {path}")
    if path.is_dir():
        raise UnikeError(f"image is a folder: {path}; give the path of one picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
            opened = Image.open(path)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise UnikeError(
                    f"image too large: {path} has {size} pixels, the limit is {MAX_PIXELS:,}; scale it down"
                )
            return _as_rgb(image, path)
    except UnidentifiedImageError:
        raise UnikeError(
            f"not an image that can be read: {path}; give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    except Image.DecompressionBombError:
        raise UnikeError(f"image too large: {path} has more than {MAX_PIXELS:,} pixels; scale it down") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise for truncated or broken files
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
