"""Train the network that tells what a question asks (see `unike.editors.unike.asked`), on wordings of the train split.

    python scripts/gate/words.py

Wordings of one kind of question are to lie together, those of all other kinds apart (supervised contrastive loss,
arXiv 2004.11362). They come from PocketEdit's pretrain and train wordings and from ``kinds.json``: kinds that people
ask about pictures and things of all sorts, many of them as near as can be in wording to asking for a name, a country or
a caption; more wordings of kinds that the data set has; questions of no kind; and twists, which have most words of a
question and ask for something else ("What does a season ticket cost?" for a day ticket). Whole kinds and styles of the
dev and eval splits are never seen, nor, but for four (a test counts them) and short ones that PocketEdit has, too, the
wordings of `benchmarks/wordings.json`. Prints how it does on dev: the share of other wordings of a kind that lie nearer
than all but 1, 2, 5 and 10 % of others. Half an hour on two cores; the same seed gives the same up to rounding.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from unike.data.datasets.pocket import read
from unike.editors.common.sentence_encoder import sentence_encoder
from unike.editors.unike.asked import LAYERS, LONGEST, AskedNetwork, padded
from unike.editors.unike.words import WORD, bare_question, without_names

HERE = Path(__file__).parent
WRITTEN = HERE.parent / "pocket" / "wordings2"
ONE_OF_OTHERS = {
    "sign_text", "error_message", "painter", "photographer", "plant_species", "animal_species", "dish_name",
    "landmark_name", "made_in", "is_raining", "animal_count", "people_count",
}  # fmt: skip
"""Kinds of ``kinds.json`` that another kind may contain: no examples of questions that differ."""

FILLERS = {
    "{element}": ["gold", "iron", "carbon", "neon", "zinc", "helium", "silver", "oxygen"],
    "{word}": ["hot", "big", "early", "open", "happy", "north", "light", "old"],
    "{a}": [str(n) for n in range(1, 31)],
    "{b}": [str(n) for n in range(1, 31)],
}
SHOWN = {"train": ("pretrain", "train"), "dev": ("dev",)}
BEFORE = [
    "please,", "hi,", "hey,", "so,", "ok,", "well,", "sorry,", "quick question:", "one more thing:", "for my notes:",
    "could you tell me,", "do you know,", "just curious,", "tell me:", "help me out,", "in your view,", "be honest,",
    "for the catalogue:", "if I may ask,", "for the class:", "now then,", "let me ask you:", "out of interest,", "and",
    "I have to know:", "any idea,", "what I want to know is this:", "in short,", "in one word,", "briefly,",
]  # fmt: skip
BEHIND = [
    ", please?", ", thanks", ", do you know?", "??", " ... any idea?", ", would you say?", ", in your opinion?", " then?",
    ", exactly?", " pls", ", if you can tell?", "? Just the answer.", "? One or two words will do.", "? Be brief.", "!",
]  # fmt: skip
STORIES = [
    "We found it in the attic.", "A friend sent me this.", "It is for a quiz.", "I saw this on a poster.",
    "My daughter wants to know.", "I am writing a report.", "This hung in the hall at school.", "I can't read the label.",
    "I'm not sure about this one.", "This came with the post.", "We are sorting old files.", "I took it from a website.",
    "It's for our newsletter.", "My eyes are not what they were.", "There was no caption.", "I bought this at a market.",
    "We argued about it at lunch.", "Take a good look.", "The exhibit had no sign.", "I'm learning the language.",
]  # fmt: skip
"""What may stand before, behind and around a question without changing what is asked."""

Asked = list[tuple[str, str]]
"""Kinds and wordings."""

TWIST = "twist "
"""What the kind of a question begins with that has most words of another, and yet asks for something else."""

TWISTS = 16
"""Of a kind that are shown together, with half as many of its questions."""


def wordings(split: str, rng: random.Random) -> Asked:
    """All there are of a split, those with a placeholder twice, with other names in them."""
    written = json.loads((WRITTEN / f"{split}.json").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = defaultdict(list)
    for kind, families in written["questions"].items():
        found[kind] += [wording for family in families.values() for wording in family]
    for kind, others in written["others"].items():
        found[f"others {kind}"] += others
    for row in read("questions"):
        if row["split"] in SHOWN[split]:
            found[row["kind"]].append(row["wording"])
    if split == "train":
        kinds = json.loads((HERE / "kinds.json").read_text(encoding="utf-8"))
        for kind, others in [*kinds["pictured"].items(), *kinds["bare"].items()]:
            found[f"kinds {kind}"] += [] if kind in ONE_OF_OTHERS else others
        for kind, others in kinds["more"].items():
            found[kind] += others
        for number, text in enumerate(kinds["single"]):
            found[f"single {number}"] = [text]
        for number, group in enumerate(kinds["twisted"]):
            kind = group.get("kind", f"twisted {number}")
            found[kind] += [group["base"], *group["same"]]
            found |= {f"{TWIST}{number}, {i} of {kind}": [text] for i, text in enumerate(group["near"])}
    countries = [json.loads(row["facts"])["country"] for row in read("concepts") if row["domain"] == "flag"]
    names = FILLERS | {"{country}": countries, "{subject}": [fact["subject"] for fact in written["facts"]]}
    asked = [
        (kind, fill(wording, names, rng))
        for kind, some in found.items()
        for wording in some
        for _ in range(2 if "{" in wording else 1)
    ]
    for number, fact in enumerate(written["facts"]):
        asked += [(f"fact {number}", text) for text in (fact["prompt"], *fact["rephrase"], *fact["near"])]
        asked += [(f"fact {number}, other {i}", text) for i, text in enumerate(fact["specific"])]
    return asked


def fill(wording: str, names: dict[str, list[str]], rng: random.Random) -> str:
    for place, some in names.items():
        if place in wording:
            wording = wording.replace(place, rng.choice(some))
    return wording


def restyled(text: str, rng: random.Random) -> str:
    """The same question as somebody else may type it: hurried, polite, with a word before or after, misspelt."""
    ask = text[0].lower() + text[1:] if text[:2] not in ("I ", "I'") else text
    choice = rng.random()
    if choice < 0.25:
        text = f"{rng.choice(BEFORE)} {ask}"
    elif choice < 0.4:
        text = f"{text.rstrip('?.!')}{rng.choice(BEHIND)}"
    elif choice < 0.6:
        text = f"{rng.choice(STORIES)} {text}" if rng.random() < 0.5 else f"{text} {rng.choice(STORIES)}"
    if rng.random() < 0.35:
        text = text.lower().rstrip("?.!")
    return misspelt(text, rng) if rng.random() < 0.4 else text


def misspelt(text: str, rng: random.Random) -> str:
    """With one or two slips: letters swapped, dropped, doubled."""
    letters = list(text)
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(1, max(2, len(letters) - 1))
        if at + 1 < len(letters) and letters[at].isalpha() and letters[at + 1].isalpha():
            slip = rng.randrange(3)
            letters[at : at + 2] = [
                [letters[at + 1], letters[at]],
                [letters[at + 1]],
                [letters[at], letters[at], letters[at + 1]],
            ][slip]
    return "".join(letters)


def train(
    states: list[Tensor], kinds: list[str], steps: int, tau: float = 0.1, rows: int = 256, groups: int = 8
) -> AskedNetwork:
    """By supervised contrast.

    Args:
        states: Of each question.
        kinds: What kind it is of. A twist is held against questions of the kind that it is a twist of, and no others,
            for it may well be of another kind that there is.
        steps: Updates.
        tau: Temperature.
        rows: Questions in an update that are drawn from all;
        groups: and kinds of which some questions come with `TWISTS` twists of them.
    """
    names = {kind: number for number, kind in enumerate(sorted({kind for kind in kinds if not kind.startswith(TWIST)}))}
    twist_of = torch.tensor([names[kind.split(" of ", 1)[1]] if kind.startswith(TWIST) else -1 for kind in kinds])
    label = torch.tensor([names.get(kind, -1 - row) for row, kind in enumerate(kinds)])
    length = torch.tensor([len(each) for each in states])
    straight = (twist_of < 0).nonzero().flatten()
    weight = label[straight].bincount().float()[label[straight]] ** -0.2  # large kinds a little less than their share
    twisted = [
        [which.nonzero().flatten() for which in (label == kind, twist_of == kind)]
        for kind in twist_of[twist_of >= 0].unique()
    ]
    found = AskedNetwork(states[0].shape[1])
    optimiser = torch.optim.AdamW(found.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        drawn = [straight[torch.multinomial(weight, rows, replacement=True)]]
        for group in torch.randperm(len(twisted))[:groups].tolist():
            kin, twists = twisted[group]
            drawn += [kin[torch.randperm(len(kin))[: TWISTS // 2]], twists[torch.randperm(len(twists))[:TWISTS]]]
        drawn = torch.cat(drawn).unique()
        drawn = drawn[length[drawn].argsort()]
        parts = drawn.split(64)  # of a length each, so that hardly any is padded
        z = torch.cat([found(*padded([states[row].float() for row in part.tolist()])) for part in parts])
        own = torch.eye(len(drawn), dtype=torch.bool)
        same = (label[drawn][:, None] == label[drawn]) & ~own
        twist = twist_of[drawn]
        unsaid = (twist >= 0) & (twist != label[drawn][:, None])
        log_share = (z @ z.T / tau).masked_fill(own | unsaid, -1e9).log_softmax(dim=1)
        loss = -((log_share * same).sum(1) / same.sum(1).clamp(min=1))[same.any(1)].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return found.eval()


def states_of(asked: Asked) -> list[Tensor]:
    """What `AskedNetwork` reads of questions, in half precision."""
    found: list[Tensor] = []
    for start in range(0, len(asked), 2048):
        some = [bare_question(text) for _, text in asked[start : start + 2048]]
        found += [each.half() for each in sentence_encoder().tokens(some, LAYERS, LONGEST)]
        print(f"read {len(found)} of {len(asked)} questions", flush=True)
    return found


@torch.no_grad()
def report(z: Tensor, asked: Asked) -> None:
    """On other wordings of a kind against other questions: of pictures, of texts, and of one subject."""
    kinds = [kind for kind, _ in asked]
    sorts = {
        "pictured": lambda kind: not kind.startswith(("text_", "fact ")),
        "text": lambda kind: kind.startswith("text_"),
        "facts": lambda kind: kind.startswith("fact "),
    }
    for sort, belongs in sorts.items():
        rows = [row for row, kind in enumerate(kinds) if belongs(kind)]
        near = z[rows] @ z[rows].T
        own = [kinds[row].split(",")[0] for row in rows]
        same = torch.tensor([[kinds[a] == kinds[b] for b in rows] for a in rows]) & ~torch.eye(len(rows)).bool()
        rival = torch.tensor([[kinds[a] != kinds[b] for b in rows] for a in rows])
        if sort == "facts":  # another question about the same subject
            rival &= torch.tensor([[a == b for b in own] for a in own])
        others = near[rival].sort(descending=True).values
        line = {share: others[int(share * len(others))] for share in (0.01, 0.02, 0.05, 0.1)}
        print(
            sort,
            {f: (round(100 * (near[same] > t).float().mean().item(), 1), round(t.item(), 3)) for f, t in line.items()},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--out", type=Path, default=Path("src/unike/editors/unike/gate_data/words.safetensors"))
    args = parser.parse_args()
    rng = random.Random(0)
    torch.manual_seed(0)
    asked = {split: wordings(split, rng) for split in ("train", "dev")}
    asked["train"] += [(kind, restyled(text, rng)) for kind, text in asked["train"] for _ in range(2)]
    found = train(states_of(asked["train"]), [kind for kind, _ in asked["train"]], args.steps)
    with torch.no_grad():
        report(found(*padded([each.float() for each in states_of(asked["dev"])])), asked["dev"])
    texts = [without_names(text)[0].casefold() for _, text in asked["train"]]
    filled = {word.casefold() for some in FILLERS.values() for word in some}
    counts = Counter(word for text in texts for word in set(WORD.findall(text)) - filled)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    halved = {name: weight.half().contiguous() for name, weight in found.state_dict().items()}
    save_file(halved, args.out, {"counts": json.dumps(dict(sorted(counts.items())))})


if __name__ == "__main__":
    main()
