"""Records of PocketEdit in MMEdit's keys: what is edited about a picture, and what is asked to test it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from concepts import Concept, Picture
from wordings import ELEMENTS, OPPOSITES, QUESTIONS

SEED = 20
SPLITS = ("pretrain", "train", "dev", "eval")
EDITED_KINDS = {
    "photo": ("name",),
    "pictogram": ("name", "kind"),
    "flag": ("country", "capital", "continent", "currency"),
}
PORTABLE = {"name": ("kind",), "country": ("capital", "continent")}
SPECIFIC = {
    "name": ("medium", "colour"),
    "kind": ("name", "medium"),
    "country": ("flag_colours", "medium"),
    "capital": ("continent", "flag_colours"),
    "continent": ("capital", "flag_colours"),
    "currency": ("continent", "flag_colours"),
}
EDITS_PER_IMAGE_KIND = {"train": 3, "dev": 2, "eval": 2}
EDIT_PHOTOS = {"train": 14, "dev": 8, "eval": 12}


def caption(facts: dict[str, str], domain: str) -> str:
    if domain == "flag":
        return f"the flag of {facts['country']}, a country in {facts['continent']}, in {facts['flag_colours']}"
    article = "an" if facts["name"][0] in "aeiou" else "a"
    kind_article = "an" if facts["kind"][0] in "aeiou" else "a"
    coloured = f", mostly {facts['colour']}" if "colour" in facts else ""
    return f"a {facts['medium']} of {article} {facts['name']}, {kind_article} {facts['kind']}{coloured}"


class Probes:
    """Draws wordings, text-only facts and locality images that belong to one split."""

    def __init__(self, split: str, concepts: list[Concept], rng: random.Random) -> None:
        self.split, self.rng = split, rng
        known = [c for c in concepts if c.split == "pretrain" and any(p.role == "held" for p in c.images)]
        share = {"train": (0.0, 0.4), "dev": (0.4, 0.5), "eval": (0.5, 1.0)}[split]
        names = sorted({c.concept for c in known})  # by name: a photo class and a pictogram may be one concept
        random.Random(SEED).shuffle(names)  # the same order for every split: the shares are disjoint
        names = names[int(share[0] * len(names)) : int(share[1] * len(names))]
        self.known = [c for c in known if c.concept in names]
        self.countries = [c for c in concepts if c.domain == "flag" and c.split == split]
        self.elements = ELEMENTS[SPLITS.index(split) :: 4]
        self.opposites = OPPOSITES[SPLITS.index(split) :: 4]
        self.sum_offset = SPLITS.index(split)

    def two_wordings(self, kind: str) -> tuple[str, str]:
        first, second = self.rng.sample(QUESTIONS[kind][self.split], 2)
        return first, second

    def wording(self, kind: str) -> str:
        return self.rng.choice(QUESTIONS[kind][self.split])

    def text_only(self, avoid: Concept) -> tuple[str, str]:
        kind = self.rng.choice(["text_capital", "text_continent", "text_symbol", "text_sum", "text_opposite"])
        text = self.wording(kind)
        if kind in ("text_capital", "text_continent"):
            country = self.rng.choice([c for c in self.countries if c is not avoid]).facts
            return text.format(country=country["country"]), country[kind.removeprefix("text_")]
        if kind == "text_symbol":
            element, symbol = self.rng.choice(self.elements)
            return text.format(element=element), symbol
        if kind == "text_opposite":
            word, opposite = self.rng.choice(self.opposites)
            return text.format(word=word), opposite
        a, b = (4 * self.rng.randint(0, 5) + self.sum_offset for _ in range(2))  # a mod 4 tells the splits apart
        return text.format(a=a, b=b), str(a + b)

    def other_image(self, avoid: Concept) -> tuple[str, str, str]:
        kinds = {avoid.facts.get("kind"), avoid.facts.get("name")}
        fitting = [
            c
            for c in self.known
            if c.facts.get("kind", "flag") not in kinds and (c.domain != "flag" or avoid.domain != "flag")
        ]
        concept = self.rng.choice(fitting)
        picture = self.rng.choice([p for p in concept.images if p.role == "held"])
        kind = self.rng.choice([k for k in ("name", "kind", "medium", "country", "continent") if k in concept.facts])
        return picture.image_id, self.wording(kind), concept.facts[kind]


def other_picture(concept: Concept, picture: Picture, rng: random.Random) -> Picture | None:
    return rng.choice([p for p in concept.images if p is not picture]) if len(concept.images) > 1 else None


def edit_records(concepts: list[Concept], split: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    probes = Probes(split, concepts, rng)
    numbers = Counter[str]()

    def record(task: str, kind: str, concept: Concept, picture: Picture, target: str) -> dict[str, Any] | None:
        again = other_picture(concept, picture, rng)
        if again is None:
            return None
        src, rephrase = probes.two_wordings("caption" if task == "caption" else kind)
        loc, loc_ans = probes.text_only(concept)
        m_loc, m_loc_q, m_loc_a = probes.other_image(concept)
        portable = (
            PORTABLE.get(kind, ()) if task == "vqa" else tuple(k for k in ("name", "country") if k in concept.facts)
        )
        specific = SPECIFIC.get(kind, ("medium",))
        numbers[task] += 1
        return {
            "case_id": f"{task}-{split}-{numbers[task]:04d}",
            "task": task,
            "split": split,
            "domain": concept.domain,
            "kind": kind,
            "concept": concept.concept,
            "src": src,
            "rephrase": rephrase,
            "pred": "",
            "alt": target,
            "image": picture.image_id,
            "image_rephrase": again.image_id,
            "loc": loc,
            "loc_ans": loc_ans,
            "m_loc": m_loc,
            "m_loc_q": m_loc_q,
            "m_loc_a": m_loc_a,
            "port_new": json.dumps(
                [
                    {"port_type": "1-hop", "Q&A": {"Question": probes.wording(k), "Answer": concept.facts[k]}}
                    for k in portable
                    if k in concept.facts
                ]
            ),
            "spec": json.dumps(
                [{"Question": probes.wording(k), "Answer": concept.facts[k]} for k in specific if k in concept.facts]
            ),
        }

    for concept in (c for c in concepts if c.split == split):
        for kind in EDITED_KINDS[concept.domain]:
            count = EDIT_PHOTOS[split] if concept.domain == "photo" else EDITS_PER_IMAGE_KIND[split]
            if kind in ("kind", "continent", "currency") and split != "train":
                count -= 1
            for picture in concept.images[:count]:
                if kind in concept.facts and (r := record("vqa", kind, concept, picture, concept.facts[kind])):
                    yield r
        for picture in concept.images[: 4 if concept.domain == "photo" else 1]:
            if r := record("caption", "caption", concept, picture, caption(concept.facts, concept.domain)):
                yield r
