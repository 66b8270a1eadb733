"""Numbers of seeded UniKE edits on two tiny models, kept so that a change of the method is noticed.

    PYTHONPATH=src:tests python tests/golden/make.py   # writes tests/golden/unike.json

They are not right because they are there: that the method is the paper's is tested in
``unit/method/test_unike_equations.py``. If it is changed on purpose, run this again and say in the commit why the
numbers moved.
"""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

HERE = Path(__file__).parent
FILE = HERE / "unike.json"

FAMILIES = ("blip2-opt", "llava")

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"alpha_offset": 0.2},
    "paper": {"paper": True},
    "every part trained": {"train_entry": True, "entry": "every", "zeta": "learned", "site": "raw"},
}

COMMON = {"layers": (-2, -1), "n_pairs": 4, "k": 5, "steps": 3, "rounds": 1}
"""Few steps: Adam makes the noise of other platforms grow."""


def load_conftest() -> Any:
    """The tests' own, by its path: there are several of that name."""
    spec = importlib.util.spec_from_file_location("shared_fixtures", HERE.parent / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values(family: str, folder: Path) -> dict[str, Any]:
    """What is compared: losses, the first logits behind the prompt of either row, and the norm of each tensor."""
    from tinies import tiny_backbone

    from unike.backbones.forward.functional import token_nll
    from unike.data.queries import Query
    from unike.editors.common.anchors import Anchors
    from unike.editors.unike.editor import UniKE

    conftest = load_conftest()
    pixels = torch.randint(0, 256, (40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = folder / "picture.png"
    Image.fromarray(pixels.numpy()).save(picture)
    backbone = tiny_backbone(family)
    conftest.some_knowledge(backbone).save_pretrained(folder / "knowledge")
    facts = [Query("What is this?", picture, "a cat"), Query("Which colour has the thing?", picture, "red")]
    anchors = Anchors([Query("Is it near?", picture), Query("Who wrote it?")])
    batch = backbone.encode(facts)
    found: dict[str, Any] = {"plain": {"loss": token_nll(backbone.forward(batch), batch.labels).tolist()}}
    for name, settings in SETTINGS.items():
        editor = UniKE(anchors=anchors, knowledge=str(folder / "knowledge"), **COMMON, **settings)
        edit = editor.edit(backbone, facts)
        with edit.attached(backbone):
            logits = backbone.forward(batch)
        found[name] = {
            "loss": token_nll(logits, batch.labels).tolist(),
            "logits": logits[torch.arange(2), batch.prompt_last, 3:8].tolist(),
            "norms": {key: tensor.norm().item() for key, tensor in edit.tensors.items() if tensor.is_floating_point()},
        }
    return found


def rounded(value: Any) -> Any:
    """Six digits are more than the platforms agree on."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else float(f"{value:.6g}")


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        families = {family: rounded(values(family, Path(folder))) for family in FAMILIES}
    origin = (
        f"Made by tests/golden/make.py with torch {torch.__version__} on a CPU: random tiny models and random "
        "knowledge, all seeded; a record of what the code does, not of what is right."
    )
    FILE.write_text(json.dumps({"origin": origin, "families": families}, indent=1) + "\n")


if __name__ == "__main__":
    main()
