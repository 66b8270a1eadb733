"""Where the gate is read and opens, against reading every prompt alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preparing import CONFIG, FAST, QUESTION, Scripted, alone
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.data.provenance import every_query
from unike.data.queries import EditCase, Probe, Query
from unike.editors.unike.calibration import calibrate, separation
from unike.editors.unike.prepare.config import PrepareConfig
from unike.editors.unike.prepare.gate import gate_layers
from unike.editors.unike.prepare.pipeline import prepare

pytestmark = pytest.mark.usefixtures("at_home")


def probed(cases: list[EditCase]) -> list[EditCase]:
    """With every kind of probe."""
    pictures = [case.edit.image for case in cases]
    return [
        replace(
            case,
            probes=(
                *case.probes,
                Probe("m_generality", Query(QUESTION, pictures[i - 1])),
                Probe("m_locality", Query("Is it far?", pictures[i - 2])),
                Probe("specificity", Query("Which colour has it?", pictures[i])),
                Probe("portability", Query("Where does it live?", pictures[i])),
            ),
        )
        for i, case in enumerate(cases)
    ]


@pytest.mark.parametrize("family", ["llava", "blip2-opt", "qwen3_vl"])
def test_the_gate_is_calibrated_where_it_separates_best(
    family: str, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against reading every prompt alone; some families cannot even mix those with and without a picture."""
    backbone, chosen = tiny_backbone(family), probed(cases[:12])
    monkeypatch.setattr(backbone, "generate", Scripted())
    known = prepare(backbone, chosen, tmp_path / "out", PrepareConfig(**{**FAST, "rows": 4}, gate_layers=(1, -2)))
    report = known.description["report"]["gate"]
    assert report["cases"] == 12 and set(report["separation"]) == {"1", "2"}
    separated = {}
    for layer in (1, 2):
        keys = torch.stack([alone(backbone, replace(c.edit, target=None), layer)["in_p"] for c in chosen])
        probes = {
            kind: (
                torch.tensor([i for i, case in enumerate(chosen) for probe in case.probes if probe.kind == kind]),
                torch.stack(
                    [
                        alone(backbone, probe.query, layer)["in_p"]
                        for case in chosen
                        for probe in case.probes
                        if probe.kind == kind
                    ]
                ),
            )
            for kind in {probe.kind for probe in chosen[0].probes}
        }
        gate = calibrate(layer, keys, probes, 0.02)
        separated[layer] = (separation(gate, keys, probes), gate)
        assert report["separation"][str(layer)] == pytest.approx(separated[layer][0], abs=1e-2)
    best = max(separated, key=lambda layer: separated[layer][0])
    assert known.gate is not None and known.gate.layer == report["layer"] == best
    expected = separated[best][1]
    assert torch.allclose(known.gate.mean, expected.mean, atol=1e-4)
    assert torch.allclose(known.gate.whitening, expected.whitening, rtol=1e-2, atol=1e-2)
    assert known.gate.question.low == pytest.approx(expected.question.low, abs=1e-2)
    assert known.gate.fact.high == pytest.approx(expected.fact.high, abs=1e-2)


def test_where_the_gate_may_be_read() -> None:
    backbone = tiny_backbone("llava")
    assert gate_layers(backbone, PrepareConfig(layers=(-1,))) == [2, 3]
    assert gate_layers(backbone, PrepareConfig(layers=(-4, -1))) == [0]
    assert gate_layers(backbone, PrepareConfig(layers=(-2, -1), gate_layers=(-4, 2, 1))) == [0, 1, 2]
    with pytest.raises(UnikeError, match="gate_layers: layer 3 is above the lowest edited layer, 2"):
        gate_layers(backbone, PrepareConfig(layers=(-2, -1), gate_layers=(-1, 0)))


def test_the_last_layer_alone_can_be_prepared(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    known = prepare(backbone, probed(cases), tmp_path / "out", PrepareConfig(**FAST | {"layers": (-1,)}))
    assert known.gate is not None and known.gate.layer in (2, 3)


def test_there_may_be_no_gate(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    """Because nobody wants one, or because there is nothing to draw a line between."""
    known = prepare(backbone, cases[:12], tmp_path / "none", PrepareConfig(**FAST, gate_cases=0))
    assert known.gate is None and known.description["report"]["gate"] == {}
    for kind in ("t_locality", "t_generality"):
        lacking = [replace(case, probes=tuple(p for p in case.probes if p.kind != kind)) for case in cases[:12]]
        assert prepare(backbone, lacking, tmp_path / kind, CONFIG).gate is None


def test_the_gate_is_not_calibrated_on_what_is_evaluated(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path
) -> None:
    chosen = probed(cases[:12])
    against = [
        EditCase("e", Query("?", cases[20].edit.image), (Probe("m_locality", Query("??", cases[3].edit.image)),))
    ]
    known = prepare(backbone, chosen, tmp_path / "out", CONFIG, against=against)
    kept = [c for c in chosen if cases[3].edit.image not in {q.image for q in every_query([c])}]
    assert known.description["report"]["gate"]["cases"] == len(kept) == 12 - 3
    few = prepare(backbone, chosen, tmp_path / "few", PrepareConfig(**FAST, gate_cases=5))
    assert few.description["report"]["gate"]["cases"] == 5
