"""MMEdit as it is published, hand-made and in miniature: both tasks, train and eval, with nothing in common."""

import json
from pathlib import Path
from typing import Any

from preparing import paint

FILES = {
    ("vqa", "train"): "vqa_train.json",
    ("vqa", "eval"): "vqa_eval.json",
    ("caption", "train"): "caption_train_edit.json",
    ("caption", "eval"): "caption_eval_edit.json",
}

THINGS = ("cat", "dog", "cow", "pig", "hen", "fox", "bee", "owl", "ant", "eel", "elk", "emu", "ape", "bat")


def write_mmedit(folder: Path, *, train: int = 12, evaluated: int = 4) -> Path:
    """Files and pictures of so many records a task."""
    for place in ("train2014", "val2014", "val2014_image_rephrase"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for seed, ((task, split), file) in enumerate(FILES.items()):
        count = train if split == "train" else evaluated
        records = [record(folder, task, split, number, count, 1000 * seed) for number in range(count)]
        (folder / file).write_text(json.dumps(records))
    return folder


def record(folder: Path, task: str, split: str, number: int, count: int, seed: int) -> dict[str, Any]:
    """One record, and its pictures."""
    place = "train2014" if split == "train" else "val2014"

    def picture(index: int) -> str:
        name = f"{place}/COCO_{place}_{seed + index:012d}.png"
        if not (folder / name).is_file():
            paint(folder / name, seed + index)
        return name

    rephrased = f"val2014_image_rephrase/{seed + number}.png"
    paint(folder / rephrased, seed + 500 + number)
    thing = THINGS[number % len(THINGS)]
    asked = f"{task} {split}: which {thing} number {number} is seen"
    return {
        "src": f"{asked}?",
        "pred": "no",
        "rephrase": f"So, {asked}?",
        "alt": thing,
        "image": picture(number),
        "image_rephrase": rephrased,
        "loc": f"nq question: who is {task} {split} {number}",
        "loc_ans": "bob",
        "m_loc": picture(count + number),
        "m_loc_q": f"What grows near {task} {split} {number}?",
        "m_loc_a": "roots",
    }
