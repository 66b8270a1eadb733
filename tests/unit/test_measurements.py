"""Runs are put together where they compare, named by what was set, and kept apart where they do not."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from reports import HEADER, case, header, sequence, shown, unike, write

from unike.bench.header import Header, settings_of_0_1
from unike.bench.summary import select
from unike.core.errors import UnikeError
from unike.editors.unike.config import UniKEConfig
from unike.report import (
    Block,
    Entry,
    read,
    report_tables,
    score_table,
)
from unike.report.measurements import method_names

# ---------------------------------------------------------------------- nothing is mixed


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"fingerprint": "beef"},
        {"dtype": "bfloat16"},
        {"cases": "0ther"},
        {"split": "dev"},
        {"max_new_tokens": 32},
    ],
)
def test_other_conditions_are_another_table(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", editor="zap")
    write(tmp_path / "c", **changes)
    measurements = read([tmp_path])
    tables = report_tables(measurements, ["strict/exact"])
    assert sorted([*shown(table)] for table in tables) == [["ft"], ["ft", "zap"]]
    (key,) = changes
    entries = tuple(Entry(m, select(m.rows, "strict/exact", "one-step")) for m in measurements)
    with pytest.raises(UnikeError, match=rf"one table cannot mix different {key} \("):
        Block("x", tuple(entry for entry in entries if entry.method == "ft"))
    blocks = [Block(str(entry.measurement.number), (entry,)) for entry in entries]
    if key in ("model", "fingerprint", "dtype"):
        with pytest.raises(UnikeError, match=f"one table cannot mix different {key}"):
            score_table(blocks, "strict/exact")


def test_mixed_protocols_and_scorers_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (measurement,) = read([tmp_path])

    def block(*views: str) -> Block:
        return Block("x", (Entry(measurement, [r for v in views for r in select(measurement.rows, v, "one-step")]),))

    with pytest.raises(UnikeError, match=r"cannot mix protocols \(strict, teacher_forced\)"):
        score_table([block("strict/exact", "teacher_forced/em")], "strict/exact")
    with pytest.raises(UnikeError, match=r"cannot mix protocols \(strict, teacher_forced\)"):
        score_table([block("strict/exact"), block("teacher_forced/em")], "teacher_forced/em")
    with pytest.raises(UnikeError, match=r"a table of teacher_forced/em cannot have the scorer token"):
        score_table([block("teacher_forced/em"), block("teacher_forced/token")], "teacher_forced/em")
    with pytest.raises(UnikeError, match=r"unknown view 'strict'; did you mean 'strict/exact'"):
        report_tables([measurement], ["strict"])
    with pytest.raises(UnikeError, match="the same method twice"):
        Block("x", (*block("strict/exact").entries, *block("strict/exact").entries))


def test_times_of_a_sequence_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, sequence(0, 2), setting="sequential", k=2, edited=2)
    (measurement,) = read([tmp_path])
    rows = [row for when in ("", ":own") for row in select(measurement.rows, "strict/exact", f"sequential{when}")]
    with pytest.raises(UnikeError, match="mixes numbers of several times"):
        score_table([Block("x", (Entry(measurement, rows),))], "strict/exact")


# ---------------------------------------------------------------------- several runs


def test_seeds_are_put_together_over_cases(tmp_path: Path) -> None:
    write(tmp_path / "s2", {"a": [case("a")], "c": [case("c")]}, seed=2)
    write(tmp_path / "s0", {"a": [case("a", ["reliability"])], "b": [case("b")]})
    (measurement,) = read([tmp_path])
    assert list(measurement.runs) == [tmp_path / "s0", tmp_path / "s2"]
    row = next(row for row in measurement.rows if row["metric"] == "reliability")
    assert (row["value"], row["n"], row["seed"]) == (0.75, 4, "0+2")
    assert (measurement.done, measurement.planned) == (4, 8)
    # What is drawn are the cases a (right once of two), b and c: the worst draw has a alone.
    assert (row["low"], row["high"]) == (0.5, 1.0)


def test_sequences_of_several_seeds_are_units_of_their_own(tmp_path: Path) -> None:
    changes = {"setting": "sequential", "k": 2, "edited": 2}
    for seed in (0, 1):
        write(tmp_path / str(seed), sequence(0, 2, {} if seed else {"0-0": ["reliability"]}), seed=seed, **changes)
    (measurement,) = read([tmp_path])
    row = select(measurement.rows, "strict/exact", "sequential")[0]
    assert (row["value"], row["low"], row["high"], row["n"]) == (0.75, 0.5, 1.0, 4)


def test_one_measurement_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", git=None, threads=8)
    with pytest.raises(UnikeError, match=r"a and .*b measured the same with seed 0; report one of them"):
        read([tmp_path])
    assert len(read([tmp_path / "a", tmp_path / "a" / ".." / "a"])) == 1, "named twice, there once"


KNOWN_TO_0_1 = json.loads(resources.files("unike.bench").joinpath("settings_0_1.json").read_text(encoding="utf-8"))


def names(*changes: dict[str, Any]) -> list[str]:
    return method_names([header(**each) for each in changes])


def test_methods_are_named_by_what_was_set() -> None:
    assert names(unike(), unike(only_intrinsic=True), unike(k=40), unike(paper=True, beta=0.5), {}) == [
        "unike",
        "unike (ablation=only_intrinsic)",
        "unike (memory.k=40)",
        "unike (paper, collaboration.beta=0.5)",
        "ft",
    ]
    assert names(unike(gate=False, zeta="off")) == ["unike (collaboration.zeta=off, gate.on=false)"]


def test_methods_that_differ_never_share_a_name() -> None:
    other = {"editor": "zap", "config": {"depth": 1}}
    assert names(other, other | {"config": {"depth": 2}}) == ["zap (depth=1)", "zap (depth=2)"]
    assert names(other) == ["zap"], "an editor of which nothing is known"
    assert names(unike(), unike() | {"learned": "abc"}) == ["unike (learned=null)", "unike (learned=abc)"]
    old = unike()["config"] | {"gate": {"on": True, "rivalry": 0.1}}
    assert names(unike(), {"editor": "unike", "config": old}) == [
        f"unike (gate.slack={slack})" for slack in (0.3, "null")
    ]
    assert names({"limit": 5}, {"limit": None}) == ["ft (limit=5)", "ft (limit=null)"]
    assert names({"limit": 5}, {"limit": None, "dataset": "pocket-caption"}) == ["ft", "ft"], "never in one column"


def test_the_fewest_settings_make_the_config() -> None:
    settings = {"paper": True, "ablation": "only_latent", "memory.k": 3}
    assert UniKEConfig.parse(settings).fewest() == settings
    assert UniKEConfig.parse({}).fewest() == {}


def test_settings_of_headers_without_them_are_those_of_their_version() -> None:
    settings = {"paper": True, "only_latent": True, "k": 3}
    (config,) = (each["defaults"] | each["follows"]["paper"] | settings for each in [KNOWN_TO_0_1["unike"]])
    assert settings_of_0_1("unike", config) == settings
    assert UniKEConfig.parse(config) == UniKEConfig.parse(settings), "what they are called today"
    assert settings_of_0_1("unike", config | {"gone": 1})["gone"] == 1, "of an older version"
    assert settings_of_0_1("nobody", {"a": 1}) == {"a": 1}
    entry = {key: value for key, value in HEADER.to_json().items() if key not in ("settings", "skip_bad", "anchors")}
    assert Header.from_json({"format": 1, **entry}) == HEADER
