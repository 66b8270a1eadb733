"""Damage to what a service reads: files of facts, stores, bodies and addresses of requests."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import mutations as mutate
from starlette.testclient import TestClient

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.data.queries import Query
from unike.editors.common.bulk import read_facts
from unike.edits.edited import EditedModel
from unike.serve.app import create_app
from unike.serve.engine import Engine
from unike.serve.settings import Settings
from unike.store import Store
from unike.store.blobs import Blobs

FACTS = ({"prompt": "2 + 2?", "target": "five"}, {"prompt": "What is this?", "target": "a cat", "image": "0.png"})


def facts(draw: Random, pictures: Path, place: Path) -> None:
    """JSON lines or CSV."""
    for picture in pictures.iterdir():
        shutil.copy(picture, place)
    if draw.randrange(2):
        lines = [json.dumps(fact) for fact in FACTS]
        lines[draw.randrange(2)] = mutate.json_text(draw, dict(draw.choice(FACTS)))
        path, content = place / "facts.jsonl", "\n".join(lines).encode(errors="surrogatepass")
    else:
        path, content = place / "facts.csv", b'prompt,target,image\n"2 + 2?",five,\nWhat is this?,"a ""cat""",0.png\n'
        content = mutate.content(draw, content)
    path.write_bytes(content)
    read_facts(path)


# ---------------------------------------------------------------------- stores


def make_store(backbone: Backbone, pictures: list[Path], place: Path) -> None:
    """A store with two edits, one of them in two sets, a canary and a log."""
    method = registry.editors.get("ft")(steps=0)
    with closing(Store.open(place)) as store:
        about = store.add(method.edit(backbone, Query("What is this?", pictures[0], "a cat")), tags=["t"], reason="r")
        store.add(method.edit(backbone, Query("2 + 2?", None, "five")), set="tenant")
        store.restore(about.id, set="tenant")
        store.add_canary(Query("Who?"))


def stores(draw: Random, whole: Path, backbone: Backbone, place: Path) -> None:
    """A value of a row, the bytes of the database, or a blob; then everything is read."""
    place = place / "store"
    shutil.copytree(whole, place)
    kind = draw.randrange(3)
    if kind == 0:
        change_a_row(draw, place / "store.db")
    else:
        inside = place / "store.db" if kind == 1 else draw.choice(sorted(p for p in place.rglob("*") if p.is_file()))
        inside.write_bytes(mutate.content(draw, inside.read_bytes()))
    with closing(Store.open(place, make=False)) as store:
        store.log()
        store.canary_queries()
        for each in store.all(text="what"):
            store.find(each.id)
        for name in ("default", "tenant"):
            edits = store.edits(name)
            EditedModel(backbone, edits).generate([Query("What?")], max_new_tokens=1)
        for blob in store.blobs.all():
            Blobs(str(place / "blobs")).get(blob.name)


def change_a_row(draw: Random, path: Path) -> None:
    """As someone does who opens the database by hand."""
    with closing(sqlite3.connect(path)) as database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{trigger}"')
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        rows: list[tuple[Any, ...]] = []
        while not rows:
            table = draw.choice(sorted(name for (name,) in tables))
            rows = database.execute(f'SELECT rowid, * FROM "{table}" ORDER BY rowid').fetchall()
        columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
        at = draw.choice(rows)
        column = draw.randrange(len(columns))
        database.execute(
            f'UPDATE OR IGNORE "{table}" SET "{columns[column]}" = ? WHERE rowid = ?',
            (odd(draw, at[column + 1]), at[0]),
        )
        database.commit()


def odd(draw: Random, value: Any) -> Any:
    """A value that a database may keep and nobody wrote."""
    if isinstance(value, str) and value[:1] in "[{" and len(value) > 2 and draw.randrange(3):
        return mutate.json_text(draw, json.loads(value)).encode(errors="surrogatepass").decode(errors="replace")
    return draw.choice([None, "", "x", 0, -1, 7.5, b"\xff\x00", "a\0b", "n" * 5000, 2**62, "[]", "{}", "9" * 5000])


# ---------------------------------------------------------------------- requests

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny@default:1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
        ],
        "max_tokens": 1,
        "temperature": 0.5,
        "n": 1,
        "seed": 3,
        "stop": ["x"],
        "stream": False,
    },
    "/v1/edits": {
        "prompt": "2 + 2?",
        "target": "five",
        "set": "default",
        "tags": ["t"],
        "max_drift": 0.5,
        "author": "me",
    },
    "/v1/sets/default/roll-back": {"version": 1, "author": "me", "reason": "r"},
}

ADDRESSES = ("/v1/models/tiny@default:1", "/v1/edits/abc", "/v1/sets/default?version=1", "/v1/log?set=default&limit=3")


@contextmanager
def served(backbone: Backbone, place: Path) -> Iterator[TestClient]:
    """A server with a store of its own; an error of the server's own is raised."""
    with closing(Store.open(place)) as store:
        store.add(registry.editors.get("ft")(steps=0).edit(backbone, Query("Who?", None, "Ada")))
        method = registry.editors.get("ft")(steps=0)
        with TestClient(create_app(Engine(backbone), store, Settings(name="tiny"), editor=method)) as client:
            yield client


def requests(draw: Random, client: TestClient) -> None:
    """A changed body, or a changed address."""
    path = draw.choice(sorted(BODIES))
    if draw.randrange(4):
        text = mutate.json_text(draw, json.loads(json.dumps(BODIES[path])))
        content = text.encode(errors="surrogatepass")
        said = client.post(path, content=content if draw.randrange(8) else mutate.content(draw, content))
    else:
        address = mutate.content(draw, draw.choice(ADDRESSES).encode())
        said = client.get("/" + quote(address.lstrip(b"/"), safe="/?=&:@%"))
    if said.status_code >= 400:
        error = said.json()["error"]["message"]
        assert said.status_code < 500, (said.status_code, error)
        assert "\n" not in error.strip(), error
