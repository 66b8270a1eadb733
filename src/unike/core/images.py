"""Reading image files: every way in which a picture can be bad ends in one clear line."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from unike.core.errors import UnikeError

MAX_PIXELS = 100_000_000
"""The largest picture that is decoded; a small file that unpacks to more is a decompression bomb."""


def load_image(path: Path | str) -> Image.Image:
    """Read a picture as RGB, upright; transparency becomes white.

    Raises:
        UnikeError: No file, a folder, not a picture, a truncated picture, or one of more than `MAX_PIXELS` pixels.
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
            upright = ImageOps.exif_transpose(image)  # phones store turned pictures with a note to turn them back
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to white
                return upright.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            return upright.convert("RGB")
    except UnidentifiedImageError:
        raise UnikeError(
            f"not an image that can be read: {path}; give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    except Image.DecompressionBombError:
        raise UnikeError(f"image too large: {path} has more than {MAX_PIXELS:,} pixels; scale it down") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise for truncated or broken files
        raise UnikeError(f"broken image: {path} ({error}); open it in a viewer, or export it anew") from None
