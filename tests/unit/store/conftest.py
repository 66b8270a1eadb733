"""A store on each database that one can be kept in, and edits of a tiny model to put into it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import postgres
import psycopg
import pytest
from tinies import tiny_backbone

from unike.core import registry
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.store import Store

Open = Callable[[], Store]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL, with a place for a database's name."""
    if postgres.programs() is None:
        pytest.skip("PostgreSQL is not installed; make test-service brings it")
    with postgres.running() as address:
        yield address


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens one and the same store, which is empty at first."""
    where, blobs = str(tmp_path / "store"), None
    if request.param == "postgresql":
        address, name = request.getfixturevalue("postgresql"), f"store_{uuid4().hex}"
        with psycopg.connect(address.format(name="postgres"), autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name}")
        where, blobs = address.format(name=name), str(tmp_path / "store" / "blobs")
    stores: list[Store] = []

    def open_() -> Store:
        stores.append(Store.open(where, blobs))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> Store:
    """An empty one."""
    return opened()


@pytest.fixture(scope="session")
def made(pictures: list[Path]) -> list[Edit]:
    """Four edits of a tiny model, two about pictures; the last contradicts the first."""
    facts = [
        Query("What is this?", pictures[0], "cat"),
        Query("Who wrote it?", None, "Ada"),
        Query("What is this?", pictures[1], "dog"),
        Query("what  IS this?", pictures[0], "cow"),
    ]
    edits = registry.editors.get("ft")(lr=1e-2, steps=2).edit(tiny_backbone("llava"), facts)
    return [edits[row] for row in range(len(facts))]
