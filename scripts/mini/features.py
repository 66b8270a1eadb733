"""Vision features of PocketEdit's pretrain images, several augmented views each, cached as one safetensors file.

    python scripts/mini/features.py --weights efficientnet-lite0-57934424.pth --out .cache/mini/features.safetensors

View 0 is the plain picture; the others are random crops, flips, paddings, tints and small rotations of it.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image, ImageEnhance, ImageOps
from rich.progress import track
from safetensors.torch import save_file

from unike.backbones.families.mini import efficientnet_lite0, image_features, image_processor

DATA = Path(__file__).parents[2] / "src/unike/data/datasets/pocket_data"


def augment(image: Image.Image, domain: str, rng: random.Random) -> Image.Image:
    """A random view that keeps what the picture shows: flags are never mirrored, drawings keep their colours."""
    size = image.width
    if domain == "photo":
        side = int(size * rng.uniform(0.6, 1.0) ** 0.5)
        left, top = rng.randint(0, size - side), rng.randint(0, size - side)
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        image = ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.3))).enhance(
            rng.uniform(0.6, 1.4)
        )
    else:
        image = image.rotate(rng.uniform(-14, 14), Image.Resampling.BICUBIC, fillcolor="white")
        inner = int(size * rng.uniform(0.65, 1.0))
        canvas = Image.new("RGB", (size, size), "white")
        canvas.paste(image.resize((inner, inner)), (rng.randint(0, size - inner), rng.randint(0, size - inner)))
        image = ImageEnhance.Brightness(canvas).enhance(rng.uniform(0.9, 1.1))
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.75, 1.25))
    return ImageOps.mirror(image) if domain != "flag" and rng.random() < 0.5 else image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoder = efficientnet_lite0(torch.load(args.weights, weights_only=True)).to(memory_format=torch.channels_last)
    processor = image_processor()
    rows = pq.read_table(DATA / "images.parquet", filters=[("split", "=", "pretrain")]).to_pylist()
    rng = random.Random(0)
    features = {}
    for start in track(range(0, len(rows), 16), description="vision features"):
        chunk = rows[start : start + 16]
        views = []
        for row in chunk:
            image = Image.open(io.BytesIO(row["webp"])).convert("RGB")
            count = args.views if row["role"] == "fit" else 1
            views.append([image, *(augment(image, row["domain"], rng) for _ in range(count - 1))])
        pixels = processor([view for group in views for view in group], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            encoded = image_features(encoder, pixels.contiguous(memory_format=torch.channels_last)).half()
        for row, part in zip(chunk, encoded.split([len(group) for group in views]), strict=True):
            features[row["image_id"]] = part.clone()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(features, args.out)


if __name__ == "__main__":
    main()
