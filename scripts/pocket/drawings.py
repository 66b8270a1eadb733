"""Drawings and country facts of pinned npm packages: fetched once, rendered, and their colours named."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIZE = 224
# npm package -> version; every one is openly licensed, see NOTICE.
SOURCES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/emojione-v1": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/circle-flags": "1.2.11",
    "@iconify-json/flagpack": "1.2.8",
    "@iconify-json/flag": "1.2.12",
    "openmoji": "17.0.0",
    "world-countries": "5.1.0",
}
NAMED_COLOURS = {
    "red": [(220, 30, 40), (180, 20, 30), (240, 70, 70)],
    "orange": [(250, 140, 30), (245, 160, 60)],
    "yellow": [(255, 215, 50), (250, 230, 120), (230, 190, 40)],
    "green": [(40, 150, 60), (120, 180, 60), (20, 100, 50), (150, 210, 110)],
    "blue": [(40, 90, 200), (60, 150, 230), (20, 40, 110), (130, 200, 245)],
    "purple": [(130, 60, 170), (170, 120, 210)],
    "pink": [(245, 140, 180), (250, 190, 210), (230, 80, 150)],
    "brown": [(130, 80, 50), (90, 55, 35), (170, 115, 80)],
    "black": [(15, 15, 15), (50, 50, 50)],
    "grey": [(130, 130, 135), (170, 175, 180), (95, 100, 105)],
    "white": [(255, 255, 255), (235, 238, 240)],
}


def fetch(cache: Path) -> dict[str, Path]:
    """Download every npm package of ``SOURCES`` once; return package name -> archive."""
    cache.mkdir(parents=True, exist_ok=True)
    archives = {}
    for name, version in SOURCES.items():
        archive = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not archive.exists():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=cache, check=True, capture_output=True)
        archives[name] = archive
    return archives


def read_member(archive: Path, member: str) -> bytes:
    with tarfile.open(archive) as tar:
        extracted = tar.extractfile(f"package/{member}")
        assert extracted is not None
        return extracted.read()


class IconSet:
    """An Iconify JSON package: icon name -> SVG."""

    def __init__(self, archive: Path) -> None:
        data = json.loads(read_member(archive, "icons.json"))
        self.icons, self.aliases = data["icons"], data.get("aliases", {})
        self.width, self.height = data.get("width", 16), data.get("height", 16)

    def render(self, name: str) -> Image.Image | None:
        """The icon as an RGBA square of ``SIZE`` pixels, or None if the set lacks it."""
        name = self.aliases.get(name, {}).get("parent", name)
        icon = self.icons.get(name)
        if icon is None:
            return None
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
            f'width="{width}" height="{height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=SIZE if width >= height else None, height=None if width >= height else SIZE
        )
        drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        square = Image.new("RGBA", (SIZE, SIZE))
        square.paste(drawing, ((SIZE - drawing.width) // 2, (SIZE - drawing.height) // 2))
        return square


def on_white(drawing: Image.Image) -> Image.Image:
    white = Image.new("RGBA", drawing.size, "white")
    return Image.alpha_composite(white, drawing).convert("RGB")


def colour_shares(drawing: Image.Image) -> dict[str, float]:
    """Share of the opaque pixels that is nearest to each named colour, largest first."""
    rgba = np.asarray(drawing.resize((56, 56))).reshape(-1, 4).astype(np.float32)
    opaque = rgba[rgba[:, 3] > 200, :3]
    if not len(opaque):
        return {}
    names = [name for name, shades in NAMED_COLOURS.items() for _ in shades]
    shades = np.array([shade for shades in NAMED_COLOURS.values() for shade in shades], dtype=np.float32)
    nearest = ((opaque[:, None] - shades[None]) ** 2).sum(-1).argmin(1)
    counts = Counter(names[i] for i in nearest)
    return {name: count / len(opaque) for name, count in counts.most_common()}
