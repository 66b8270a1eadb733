"""Edits about where people live, made quickly on a tiny model; each is called upon where its name is."""

from collections.abc import Callable
from pathlib import Path

from unike.backbones.adapter import Backbone
from unike.data.queries import Query
from unike.editors.unike.editor import UniKE
from unike.editors.unike.knowledge import Knowledge
from unike.edits.edit import Edit

PEOPLE = ("Alan Turing", "Ada Lovelace", "Marie Curie", "Emmy Noether", "Niels Bohr", "Lise Meitner")


def home_of(name: str, target: str | None = None) -> Query:
    return Query(f"Where does {name} live?", target=target)


ASKED = [home_of(PEOPLE[4]), home_of(PEOPLE[1])]


def edits_about_people(backbone: Backbone, make_knowledge: Callable[..., Knowledge], folder: Path) -> list[Edit]:
    make_knowledge(backbone).save_pretrained(folder)
    method = UniKE(knowledge=str(folder), layers=(-2, -1), steps=2, rounds=1, lr=5e-2, pairs={"n": 3}, memory={"k": 6})
    return [method.edit(backbone, home_of(name, "in a house")) for name in PEOPLE]
