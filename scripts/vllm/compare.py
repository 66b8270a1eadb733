"""The plugin of vLLM against transformers: the same tokens, for edited and unedited requests that share a batch.

python scripts/vllm/compare.py --out FOLDER      # in an environment with vLLM, see install.sh

Edits are made of `mini`; every question is answered greedily by plain transformers, one by one, under its edits, and
then by vLLM, all at once, several times over. Ends with exit code 1 if a token differs.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
from PIL import Image

import unike
from unike.backbones.families import mini
from unike.data.datasets.pocket import Pocket
from unike.edits.stack import attached
from unike.store import Store

CASES = ("vqa-dev-0017", "vqa-dev-0003")
TOKENS = 12
ROUNDS = 2


def facts_and_questions() -> tuple[list[Any], list[Any]]:
    """Two facts, and what is asked about each: the facts, other words, other pictures, other things."""
    cases = {case.case_id: case for case in Pocket().cases("dev") if case.case_id in CASES}
    chosen = [cases[name] for name in CASES]
    asked = [case.edit for case in chosen]
    asked += [probe.query for case in chosen for probe in case.probes[:4]]
    return [case.edit for case in chosen], [unike.Query(q.prompt, q.image) for q in asked]


def make_store(folder: Path, model: Any, facts: Sequence[Any]) -> dict[str | None, list[Any]]:
    """A store with three sets: one fact, both, and one by another method; what is in force in each."""
    editor, plain = unike.make_editor("unike"), unike.make_editor("ft", steps=5)
    made = [editor.edit(model, fact) for fact in facts]
    sets = {"one": made[:1], "both": made, "weights": [plain.edit(model, facts[1])]}
    with closing(Store.open(folder)) as store:
        for name, edits in sets.items():
            for edit in edits:
                store.add(edit, set=name, author="compare")
    return {None: [], **sets}


@torch.no_grad()
def by_transformers(model: Any, query: Any, edits: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and the answer's."""
    inputs = dict(model.encode([query]).inputs)
    length = inputs["input_ids"].shape[1]
    with attached(model, edits) if edits else nullcontext():
        ids = model.model.generate(
            **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return ids[0, :length].tolist(), ids[0, length:].tolist()


def by_vllm(folder: Path, store: Path, asked: Sequence[tuple[Any, str | None, list[int]]]) -> list[tuple[Any, ...]]:
    """For each round and request, tokens of the prompt, and the answer's; all of a round at once."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        model_impl="transformers",
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=48,  # prompts are read in parts
        enable_chunked_prefill=True,
        kv_cache_memory_bytes=1 << 28,
        limit_mm_per_prompt={"image": 1},
        additional_config={"unike": {"model": "mini", "store": str(store)}},
    )
    tokenizer = llm.get_tokenizer()
    prompts, ways = [], []
    for query, name, ids in asked:
        text = tokenizer.decode(one_placeholder(ids))
        shown = {} if query.image is None else {"multi_modal_data": {"image": Image.open(query.image).convert("RGB")}}
        prompts.append({"prompt": text, **shown})
        extra = None if name is None else {"edits": name}
        ways.append(SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=extra))
    found = []
    for _ in range(ROUNDS):
        for answer in llm.generate(prompts, ways, use_tqdm=False):
            found.append((list(answer.prompt_token_ids), list(answer.outputs[0].token_ids)))
    check_refused(llm, prompts[0])
    return found


def one_placeholder(ids: Sequence[int]) -> list[int]:
    """Tokens of a prompt with one placeholder for its picture: vLLM makes as many of it as there are features."""
    return [t for n, t in enumerate(ids) if t != mini.IMAGE_TOKEN_ID or n == 0 or ids[n - 1] != mini.IMAGE_TOKEN_ID]


def check_refused(llm: Any, prompt: Any) -> None:
    """Edits that are none are refused in one line, and the engine goes on."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    for given in ("no-such-set", "one:99", ["no-such-edit"], 7):
        try:
            llm.generate([prompt], SamplingParams(max_tokens=1, extra_args={"edits": given}), use_tqdm=False)
        except VLLMValidationError as error:
            print(f"refused {given!r}: {error}")
        else:
            sys.exit(f"{given!r} was not refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    folder = mini.build()
    model = unike.load_backbone("mini", device="cpu", dtype="float32")
    facts, questions = facts_and_questions()
    sets = make_store(out / "store", model, facts)
    asked = [(query, name) for query in questions for name in sets]
    expected = [by_transformers(model, query, sets[name]) for query, name in asked]
    found = by_vllm(
        folder, out / "store", [(q, name, ids) for (q, name), (ids, _) in zip(asked, expected, strict=True)]
    )
    rows = []
    for number, got in enumerate(found):
        (query, name), wanted = asked[number % len(asked)], expected[number % len(asked)]
        plain = expected[asked.index((query, None))][1]
        rows.append(
            {
                "prompt": query.prompt,
                "picture": query.image is not None,
                "edits": name,
                "changed": wanted[1] != plain,
                "same_prompt": list(got[0]) == wanted[0],
                "same": list(got[1]) == wanted[1],
                "transformers": model.tokenizer.decode(wanted[1]),
                "vllm": model.tokenizer.decode(got[1]),
            }
        )
    (out / "compared.json").write_text(json.dumps(rows, indent=1))
    same, prompts = (sum(row[key] for row in rows) for key in ("same", "same_prompt"))
    changed = sum(row["changed"] for row in rows)
    print(f"{same} of {len(rows)} answers the same, {changed} of them changed by edits; {prompts} prompts the same")
    for row in rows:
        if not row["same"]:
            print(json.dumps(row))
    sys.exit(0 if same == len(rows) == prompts and changed else 1)


if __name__ == "__main__":
    main()
