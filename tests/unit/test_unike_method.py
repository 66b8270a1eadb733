"""UniKE against the paper's equations, written out in loops, and what each of its settings changes.

`by_hand` replaces the forward methods of the edited layers' attention and feed-forward networks; it shares nothing with
the hooks, the memory, the gate and the pairs of the library but the numbers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tinies import tiny_backbone
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions, token_nll
from unike.backbones.forward.hooks import inject, trace
from unike.backbones.forward.split import Batch
from unike.backbones.sites import AttentionSite
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.editors.unike import editor as method
from unike.editors.unike.collaboration import PLAIN_ALPHA
from unike.editors.unike.config import PAPER, UniKEConfig
from unike.editors.unike.editor import UniKE, UniKEEdit, wrong_positions
from unike.editors.unike.gate import Ramp
from unike.editors.unike.injection import LatentInjection, RecallLog
from unike.editors.unike.knowledge import Knowledge, LayerKnowledge, evenly, knowledge_of
from unike.edits.edit import Edit
from unike.edits.stack import attached

LAYERS = (-2, -1)
SETTINGS: dict[str, Any] = {
    "entry": "last",
    "layers": LAYERS,
    "k": 5,
    "n_pairs": 4,
    "alpha_slope": 0.7,
    "alpha_offset": 0.3,
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def named(settings: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in settings.items()) or "default"


# ---------------------------------------------------------------------- the models


@pytest.fixture(scope="module", params=["llava", "qwen3_vl", "blip2-opt"])
def tiny(request: pytest.FixtureRequest) -> Backbone:
    """Grouped queries; with head norms; with biases, a flat network and a head for each key."""
    return tiny_backbone(request.param)


@pytest.fixture(scope="module")
def llava() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture(scope="module")
def knowledge(make_knowledge: Callable[..., Knowledge], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``knowledge(backbone)``: a folder with a gate that is read at layer 1, where prompts differ."""
    folder = tmp_path_factory.mktemp("knowledge")

    def make(backbone: Backbone) -> str:
        there = folder / backbone.fingerprint()
        if not there.exists():
            ramps = ((-1.0, 1.0), (-1.0, 1.0))
            make_knowledge(backbone, gate_layer=1, ramps=ramps).save_pretrained(there)
        return str(there)

    return make


@pytest.fixture(scope="module")
def anchors(pictures: list[Path]) -> Anchors:
    return Anchors([Query("Is it near?", pictures[1]), Query("Who wrote it?"), Query("1 + 1?")])


Make = Callable[..., UniKE]


@pytest.fixture(scope="module")
def editor(knowledge: Any) -> Callable[..., Make]:
    """``editor(backbone)(**settings)``."""

    def of(backbone: Backbone) -> Make:
        return lambda anchors=None, **settings: UniKE(
            anchors=anchors, **{**SETTINGS, "knowledge": knowledge(backbone), **settings}
        )

    return of


def random_edit(editor: UniKE, backbone: Backbone, facts: list[Query], seed: int = 0) -> UniKEEdit:
    """With the keys of an edit that was made, so that something is near, and everything else drawn."""
    edit = UniKE(editor.config.model_copy(update={"steps": 0})).edit(backbone, facts)
    tensors = dict(edit.tensors)
    for number, (name, tensor) in enumerate(tensors.items()):
        part, generator = name.rpartition(".")[2], torch.Generator().manual_seed(97 * seed + number)
        if part in ("values", "bias", "shift", "own_values"):
            tensors[name] = torch.randn(tensor.shape, generator=generator)
        elif name != method.GATE_KEYS and part == "keys":
            tensors[name] = torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5
    found = UniKEEdit(editor.config, tensors, facts, fingerprint=edit.fingerprint, source=edit.source)
    return found


# ---------------------------------------------------------------------- the equations, by hand


def linear(module: nn.Linear, v: Tensor) -> Tensor:
    return module.weight @ v + (0 if module.bias is None else module.bias)


def head_norm(module: Any, v: Tensor) -> Tensor:
    return v if module is None else module.weight * v / (v.pow(2).mean() + module.variance_epsilon).sqrt()


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt())


def softmax(scores: list[Tensor]) -> list[float]:
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def attend(site: AttentionSite, x: Tensor, states: list[Tensor]) -> Tensor:
    """Appendix A: ``Attn(x, X_know, X_know)`` of one position, through every head of the layer's own attention."""
    q, heads = linear(site.q_proj, x), []
    keys, values = ([linear(map_, state) for state in states] for map_ in (site.k_proj, site.v_proj))
    for head in range(site.n_heads):
        group = head // (site.n_heads // site.n_kv_heads)
        mine = slice(head * site.head_dim, (head + 1) * site.head_dim)
        theirs = slice(group * site.head_dim, (group + 1) * site.head_dim)
        query = head_norm(site.q_norm, q[mine])
        scores = [query @ head_norm(site.k_norm, key[theirs]) / math.sqrt(site.head_dim) for key in keys]
        heads.append(sum(w * value[theirs] for w, value in zip(softmax(scores), values, strict=True)))
    return linear(site.o_proj, torch.cat(heads))


def attend_raw(x: Tensor, states: list[Tensor]) -> Tensor:
    weights = softmax([x @ state / math.sqrt(len(x)) for state in states])
    return sum((w * state for w, state in zip(weights, states, strict=True)), torch.zeros_like(x))


def encode(known: LayerKnowledge, h: Tensor) -> Tensor:
    """``g = Enc_sem``: Linear, GELU, Linear."""
    hidden = linear(known.semantic.inner, h)
    return linear(known.semantic.outer, hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def rows_of(edits: Sequence[Edit], rows: int) -> list[list[dict[str, Tensor]]]:
    """For each of the rows, what each edit of a stack holds for it."""
    return [
        [{name: tensor[row * len(edit) // rows] for name, tensor in edit.tensors.items()} for edit in edits]
        for row in range(rows)
    ]


@contextmanager
def by_hand(
    backbone: Backbone, config: UniKEConfig, acting: list[list[dict[str, Tensor]]], batch: Batch
) -> Iterator[None]:
    """Let the model compute Eq. 2, 3, 6, 7 and 8 in loops; rows come in as many copies as there are beams."""
    knowledge = knowledge_of(backbone, config.knowledge)
    gates: dict[int, list[tuple[float, float, float]]] = {}

    first_token = batch.inputs["attention_mask"].argmax(dim=1)

    def of_row(row: int, rows: int) -> tuple[list[dict[str, Tensor]], int]:
        own = row * len(acting) // rows
        return acting[own], int(batch.prompt_last[own])

    def gates_of(edits: list[dict[str, Tensor]], x: Tensor) -> list[tuple[float, float, float]]:
        """For each edit: the kind of question, what it is about, and whether it is the edit's own question."""
        gate = knowledge.gate
        assert gate is not None
        state, keys = x[-1] - gate.mean, [tensors["gate.keys"][0] - gate.mean for tensors in edits]
        wholes = [tensors["gate.whole"][0] for tensors in edits]
        common = sum(wholes) / len(wholes)

        def cosines(matrix: Tensor) -> list[float]:
            return [cosine(matrix @ key, matrix @ state) for key in keys]

        def on(ramp: Ramp, s: float) -> float:
            return clamp((s - ramp.low) / (ramp.high - ramp.low))

        whitened = cosines(gate.whitening)
        mean, floor = sum(x) / len(x) - common, 0.05 * float(common.norm())
        alike = [
            float(whole @ mean) / max(float(whole.norm()), floor) / max(float(mean.norm()), floor)
            for whole in (each - common for each in wholes)
        ]
        near = [w + 2 * a for w, a in zip(whitened, alike, strict=True)]
        first = [1 if config.rivalry is None else max(1 - (max(near) - s) / config.rivalry, 0) for s in near]
        asked = [on(gate.question, s) for s in cosines(torch.eye(len(state)))]
        about = [on(gate.fact.of(1), s) * c for s, c in zip(whitened, first, strict=True)]
        strict = [on(gate.fact.of(len(edits)), s) * c for s, c in zip(whitened, first, strict=True)]
        return [(q, f, q * own) for q, f, own in zip(asked, about, strict, strict=True)]

    def shifted(layer: int, row: int, edits: list[dict[str, Tensor]], x: Tensor, h_input: Tensor, p: int) -> Tensor:
        known, site = knowledge.layer(layer), backbone.attention(layer)
        shared = evenly(len(knowledge), config.memory_size)
        entries = [(known.h_sem[i], (known.h_pos if config.site == "projected" else known.raw_pos)[i]) for i in shared]
        for number, edit in enumerate(edits if config.own_entry else []):
            if row in gates and not gates[row][number][2]:
                continue  # what is about something else is not there
            entries += zip(edit[f"{layer}.own_keys"], edit[f"{layer}.own_values"], strict=True)
        mean = known.mean if config.centred_retrieval else 0
        likeness = [cosine(key - mean, x[p] - mean) for key, _ in entries]
        best = sorted(range(len(entries)), key=lambda i: -likeness[i])[: config.k]
        states = [entries[i][1] for i in best]
        if config.site == "projected":
            h_know = torch.stack([attend(site, x[s], states) for s in range(len(x))])
        else:
            h_know = torch.stack([attend_raw(h_input[s], states) for s in range(len(x))])
        alpha = config.fixed_alpha
        if alpha is None and config.collaborates:
            alpha = clamp(config.alpha_slope * cosine(encode(known, h_know[p]), h_input[p]) + config.alpha_offset)
        elif alpha is None:
            alpha = 0.1
        weight = (1 - alpha if config.literal_eq7 else alpha) * max(own for *_, own in gates.get(row, [(1.0,)]))
        changed = (1 - weight) * h_input + weight * h_know
        return changed if config.everywhere else torch.cat([h_input[:p], changed[p:]])

    def new_attention(layer: int, original: Any) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = original(hidden_states, *args, **kwargs)
            found = []
            for row, (x, h_input) in enumerate(zip(hidden_states, output[0], strict=True)):
                edits, p = of_row(row, len(hidden_states))
                if config.has_gate and layer == knowledge.gate.layer:  # type: ignore[union-attr]
                    gates[row] = gates_of(edits, x[first_token[row * len(acting) // len(hidden_states)] : p + 1])
                edited = layer in edited_layers and config.has_memory
                found.append(shifted(edited_layers[layer], row, edits, x, h_input, p) if edited else h_input)
            return (torch.stack(found), *output[1:])

        return forward

    def new_terms(layer: int, q: Tensor, rows: int) -> Tensor:
        q = q.reshape(rows, -1, q.shape[-1])
        found = torch.zeros_like(q)
        for row in range(rows):
            edits, p = of_row(row, rows)
            begin = 0 if config.everywhere else p
            for number, edit in enumerate(edits):
                asked, about, own = gates[row][number] if row in gates else (0.0, 1.0, 0.0)
                shift = edit[f"{layer}.shift"][0] if f"{layer}.shift" in edit else 0
                pairs = (edit[f"{layer}.{part}"] for part in ("keys", "bias", "values"))
                first = edit["gate.at_prompt"] if row in gates else torch.zeros(config.n_pairs)
                for key, bias, value, of_prompt in zip(*pairs, first, strict=True):
                    activation = torch.relu(q[row] @ key + bias + config.slack * asked).unsqueeze(1)
                    scale = own if of_prompt else own + (1 - asked) * about
                    found[row, begin:] += activation[begin:] * scale * (value + shift)
        return found

    def new_network(layer: int) -> None:
        site, read = backbone.ffn(layer), []
        if site.inputs is site.outputs:
            whole = site.inputs.forward
            replaced(site.inputs, lambda x: whole(x) + new_terms(layer, x, len(x)))
            return
        first, second = site.inputs.forward, site.outputs.forward

        def keep(x: Tensor) -> Tensor:
            read[:] = [x]
            return first(x)

        def add(hidden: Tensor) -> Tensor:
            output = second(hidden)
            rows = len(gates) or (len(read[0]) if read[0].ndim == 3 else len(acting))
            return output + new_terms(layer, read.pop(), rows).reshape(output.shape)

        replaced(site.inputs, keep)
        replaced(site.outputs, add)

    changed: list[nn.Module] = []

    def replaced(module: nn.Module, forward: Any) -> None:
        module.forward = forward  # type: ignore[method-assign]
        changed.append(module)

    edited_layers = {backbone.layer_index(layer): layer for layer in config.layers}
    gate_layers = {knowledge.gate.layer} if config.has_gate and knowledge.gate else set()
    try:
        for layer in sorted(edited_layers | dict.fromkeys(gate_layers)):
            module = backbone.attention(layer).module
            replaced(module, new_attention(layer, module.forward))
        for layer in config.layers if config.has_pairs else ():
            new_network(layer)
        yield
    finally:
        for module in changed:
            del module.forward


def compare(backbone: Backbone, config: UniKEConfig, edits: Sequence[Edit], asked: list[Query]) -> None:
    """The logits of every position, under the library's hooks and by hand."""
    batch = backbone.encode(asked)
    plain = backbone.forward(batch)
    with attached(backbone, edits):
        found = backbone.forward(batch)
    with by_hand(backbone, config, rows_of(edits, len(asked)), batch):
        expected = backbone.forward(batch)
    assert torch.equal(backbone.forward(batch), plain), "both are off"
    real = batch.inputs["attention_mask"].bool()
    acted_on = real & (torch.arange(real.shape[1]) >= batch.prompt_last.unsqueeze(1))
    assert (expected - plain)[acted_on].abs().mean() > 0.05, "an edit that does nothing proves nothing"
    assert torch.allclose(found[real], expected[real], atol=1e-3, rtol=1e-3), (found - expected)[real].abs().max()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"literal_eq7": True},
        {"site": "raw"},
        {"site": "raw", "literal_eq7": True, "fixed_alpha": 0.6},
        {"fixed_alpha": 0.3},
        {"fixed_alpha": 0},
        {"own_entry": False},
        {"own_entry": False, "site": "raw"},
        {"entry": "every"},
        {"centred_retrieval": False},
        {"memory_size": 3, "k": 2},
        {"memory_size": 0},
        {"gate": False},
        {"gate": False, "zeta": "off"},
        {"only_latent": True},
        {"no_collaboration": True},
        {"only_intrinsic": True},
        {"paper": True},
        {"layers": (-1,)},
    ],
    ids=named,
)
def test_an_installed_edit_is_the_equations(
    tiny: Backbone, editor: Any, facts: list[Query], settings: dict[str, Any]
) -> None:
    """Two independent edits in one batch; row 0 is asked its own question, row 1 the other's."""
    chosen = editor(tiny)(**settings)
    edit = random_edit(chosen, tiny, facts[:2])
    compare(tiny, chosen.config, [edit], [facts[0], replace(facts[2], target="something else")])


def test_a_stack_is_the_equations(tiny: Backbone, editor: Any, facts: list[Query]) -> None:
    """A single edit that serves all rows, below a batch of two, above another single one."""
    chosen = editor(tiny)()
    edits = [
        random_edit(chosen, tiny, facts[:1]),
        random_edit(chosen, tiny, facts[1:], 1),
        random_edit(chosen, tiny, facts[2:], 2),
    ]
    compare(tiny, chosen.config, edits, [facts[1], facts[0]])
    compare(tiny, chosen.config, edits, [facts[1], facts[0], facts[2], facts[0]])


def test_batches_of_different_sizes_share_the_rows(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    chosen = editor(llava)()
    edits = [random_edit(chosen, llava, facts[:2]), random_edit(chosen, llava, facts, 1)]
    compare(llava, chosen.config, edits, [*facts, *facts])


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_is_the_equations_without_a_cache(
    family: str, beams: int, editor: Any, facts: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recalled once from the prompt is what would be recalled anew for each token; each row its own edit."""
    backbone = tiny_backbone(family)
    chosen = editor(backbone)()
    edit, asked = random_edit(chosen, backbone, facts[:2]), facts[:2]
    generate = partial(backbone.generate, asked, max_new_tokens=4, num_beams=beams)
    placeholder = torch.tensor([backbone.image_token_id])
    with inject(backbone.head, output=lambda logits: logits.index_fill(-1, placeholder, -1e3)):
        plain = generate()
        with edit.attached(backbone):
            answers = generate()
        batch = backbone.encode([replace(query, target=None) for query in asked], padding_side="left")
        without_cache = partial(transformers.GenerationConfig, use_cache=False)
        monkeypatch.setattr(transformers, "GenerationConfig", without_cache)
        with by_hand(backbone, chosen.config, rows_of([edit], 2), batch):
            assert generate() == answers
    assert answers != plain


# ---------------------------------------------------------------------- the prompt alone decides


@contextmanager
def recalled() -> Iterator[list[RecallLog]]:
    """The logs of every injection that is installed within the block, in the order of the layers."""
    logs: list[RecallLog] = []
    install = LatentInjection.install
    with pytest.MonkeyPatch.context() as patch:

        def logged(self: LatentInjection, *args: Any) -> RecallLog:
            logs.append(install(self, *args))
            return logs[-1]

        patch.setattr(LatentInjection, "install", logged)
        yield logs


def test_answers_change_neither_alpha_nor_what_is_retrieved(tiny: Backbone, editor: Any, facts: list[Query]) -> None:
    edit = random_edit(editor(tiny)(), tiny, facts)
    asked = [facts[1], facts[0], facts[2]]
    seen, logits = [], []
    with recalled() as logs, edit.attached(tiny):
        for targets in [("a cat", "red", "bob"), ("xq!", "a very long answer that is quite another", "5")]:
            batch = tiny.encode([replace(query, target=t) for query, t in zip(asked, targets, strict=True)])
            logits.append(tiny.forward(batch)[torch.arange(3), batch.prompt_last])
            seen.append([log.latest for log in logs])
            tiny.run_from_split(tiny.run_to_split(batch, 1))
            seen.append([log.latest for log in logs])
        for beams in (1, 2):
            tiny.generate(asked, max_new_tokens=4, num_beams=beams)
            seen.append([log.latest for log in logs])
    assert len(logs) == len(LAYERS)
    assert torch.allclose(*logits, atol=1e-4), "nor what is computed up to the prompt's end"
    for recalls in seen:
        for first, other in zip(seen[0], recalls, strict=True):
            assert first is not None and other is not None
            beams = len(other.alpha) // 3
            assert torch.equal(other.indices, first.indices.repeat_interleave(beams, dim=0))
            assert torch.allclose(other.alpha, first.alpha.repeat_interleave(beams), atol=1e-4)
            assert torch.allclose(other.weight, first.weight.repeat_interleave(beams), atol=1e-4)
    alphas = torch.stack([recall.alpha for recall in seen[0] if recall is not None])
    assert (alphas > 0).all() and (alphas < 1).all() and len(set(alphas.flatten().tolist())) == 6
    assert len({tuple(sorted(row.tolist())) for recall in seen[0] if recall for row in recall.indices}) > 1


# ---------------------------------------------------------------------- gradients


def test_gradients_are_those_of_finite_differences(
    tiny: Backbone, editor: Any, facts: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is cast to fp32 stays in fp64 for once; LLaMA's norms do not, hence a larger step there."""
    backbone = TINIES[{"tiny-llava": "llava", "tiny-qwen3-vl": "qwen3_vl"}.get(tiny.source, "blip2-opt")]()
    chosen = editor(tiny)(entry="every")
    edit = random_edit(chosen, tiny, facts[:2])
    known = knowledge_of(tiny, chosen.config.knowledge)
    backbone.model.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    layers = {i: LayerKnowledge.from_tensors(layer.tensors()) for i, layer in known.layers.items()}
    for layer in layers.values():
        layer.semantic.double()
    gate = replace(known.gate, mean=known.gate.mean.double(), whitening=known.gate.whitening.double())  # type: ignore[type-var, union-attr]
    monkeypatch.setattr(method, "knowledge_of", lambda *_: Knowledge(layers, known.triplets, known.description, gate))

    names = [f"{layer}.{part}" for layer in LAYERS for part in ("keys", "bias", "values", "shift", "own_values")]
    tensors = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in edit.tensors.items()}
    trained = [tensors[name].requires_grad_() for name in names]
    live = UniKEEdit(
        chosen.config.model_copy(update={"train_entry": True}),
        tensors,
        edit.facts,
        fingerprint=edit.fingerprint,
        source=edit.source,
    )
    monkeypatch.setattr(method, "check_knowledge", lambda *_: None)
    batch, exact = backbone.encode(facts[:2]), "opt" in tiny.source
    width, rel, floor = (1e-5, 1e-5, 1e-8) if exact else (1e-3, 2e-3, 5e-4)
    with live.attached(backbone):
        state = backbone.run_to_split(batch, -2)

        def loss(*_: Tensor) -> Tensor:
            return token_nll(backbone.run_from_split(state, target_positions(state.labels)), state.labels)

        assert loss().dtype == torch.float64
        for name, gradient in zip(names, torch.autograd.grad(loss().sum(), trained), strict=True):
            flat, slopes = tensors[name].detach().view(-1), gradient.flatten()
            assert slopes.abs().max() > 2e-3, name
            for index in {int(slopes.abs().argmax()), 0, len(flat) // 2, len(flat) - 1}:
                value, ends = flat[index].item(), []
                for step in (width, -width):
                    flat[index] = value + step
                    with torch.no_grad():
                        ends.append(loss().sum().item())
                flat[index] = value
                slope = (ends[0] - ends[1]) / 2 / width
                assert slopes[index].item() == pytest.approx(slope, rel=rel, abs=floor), name


# ---------------------------------------------------------------------- settings: which parts there are


PAIRS, OWN = {"keys", "bias", "values"}, {"own_keys", "own_values"}
OF_GATE = {"gate.keys", "gate.whole", "gate.at_prompt"}
TRAINED = PAIRS | {"own_values"}

PARTS: list[tuple[dict[str, Any], set[str], set[str]]] = [
    ({}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"only_intrinsic": True}, PAIRS, PAIRS),
    ({"only_latent": True, "train_entry": False}, OWN, set()),
    ({"only_latent": True}, OWN, {"own_values"}),
    ({"only_latent": True, "own_entry": False}, set(), set()),
    ({"no_collaboration": True}, PAIRS | OWN, TRAINED),
    ({"fixed_alpha": 0.3}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"fixed_alpha": 0}, PAIRS | {"shift"} | OF_GATE, PAIRS),
    ({"zeta": "off"}, PAIRS | OWN | OF_GATE, TRAINED),
    ({"zeta": "semantic"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"zeta": "random"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"zeta": "learned"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED | {"shift"}),
    ({"gate": False}, PAIRS | OWN | {"shift"}, TRAINED),
    ({"own_entry": False}, PAIRS | {"shift"} | OF_GATE, PAIRS),
    ({"train_entry": False}, PAIRS | OWN | {"shift"} | OF_GATE, PAIRS),
    ({"entry": "every"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"train_keys": False}, PAIRS | OWN | {"shift"} | OF_GATE, {"values", "own_values"}),
    ({"site": "raw"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"literal_eq7": True}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"paper": True}, PAIRS | OWN | {"shift"}, PAIRS),
]


@pytest.mark.parametrize(("settings", "parts", "trained"), PARTS, ids=[named(settings) for settings, *_ in PARTS])
def test_each_setting_has_its_parts_and_trains_its_own(
    llava: Backbone,
    editor: Any,
    facts: list[Query],
    anchors: Anchors,
    settings: dict[str, Any],
    parts: set[str],
    trained: set[str],
) -> None:
    make = editor(llava)
    start = make(anchors, steps=0, **settings).edit(llava, facts[:2])
    edit = make(anchors, steps=4, lr=1e-2, **settings).edit(llava, facts[:2])
    expected = {f"{layer}.{part}" for layer in LAYERS for part in parts - OF_GATE} | (parts & OF_GATE)
    if not settings.get("only_intrinsic"):
        expected.add("knowledge")
    assert start.tensors.keys() == edit.tensors.keys() == expected
    for name in expected:
        in_rows = (start.tensors[name] != edit.tensors[name]).flatten(1).any(dim=1).tolist()
        assert in_rows == [name not in OF_GATE and name.rpartition(".")[2] in trained] * 2, name
    batch = llava.encode(facts[:2])
    with start.attached(llava):
        before = token_nll(llava.forward(batch), batch.labels)
    with edit.attached(llava):
        after = token_nll(llava.forward(batch), batch.labels)
    assert (after < before).all() if trained else torch.equal(after, before)


def test_without_both_kinds_of_collaboration_and_alpha_it_is_the_intrinsic_half(
    tiny: Backbone, editor: Any, facts: list[Query], anchors: Anchors
) -> None:
    alone = editor(tiny)(anchors, only_intrinsic=True, steps=5).edit(tiny, facts)
    other = editor(tiny)(anchors, fixed_alpha=0, zeta="off", gate=False, steps=5).edit(tiny, facts)
    assert alone.tensors.keys() == other.tensors.keys() - {"knowledge"}
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in alone.tensors.items())
    batch = tiny.encode(facts)
    with alone.attached(tiny):
        expected, answers = tiny.forward(batch), tiny.generate(facts, max_new_tokens=3)
    with other.attached(tiny):
        assert torch.equal(tiny.forward(batch), expected)
        assert tiny.generate(facts, max_new_tokens=3) == answers


def test_the_rows_of_table_4_are_the_method_with_switches_off(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """``no_collaboration`` is a fixed alpha, no zeta, no gate; ``only_latent`` is that without pairs."""
    batch = llava.encode(facts[:2])

    def logits(**settings: Any) -> Tensor:
        with editor(llava)(**settings).edit(llava, facts[:2]).attached(llava):
            return llava.forward(batch)

    plain = {"fixed_alpha": PLAIN_ALPHA, "zeta": "off", "gate": False}
    assert torch.equal(logits(no_collaboration=True, steps=3), logits(**plain, steps=3))
    untrained = {"only_latent": True, "train_entry": False}
    assert torch.equal(logits(**untrained), logits(**plain, steps=0))
    assert torch.equal(logits(**untrained, fixed_alpha=0.4), logits(**plain | {"fixed_alpha": 0.4}, steps=0))
    assert not torch.equal(logits(no_collaboration=True, steps=3), logits(only_latent=True))
    assert torch.equal(logits(only_latent=True, fixed_alpha=0), llava.forward(batch))


def test_settings_without_knowledge_need_none(
    llava: Backbone, facts: list[Query], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    bare = tiny_backbone("llava")
    UniKE(layers=LAYERS, steps=1, only_intrinsic=True).edit(bare, facts[0])
    for settings in ({}, {"only_latent": True}, {"no_collaboration": True}, {"fixed_alpha": 0.0}):
        editor = UniKE(layers=LAYERS, steps=1, **settings)
        for fails in (partial(editor.edit, bare, facts[0]), partial(editor.prepare, bare)):
            with pytest.raises(UnikeError, match=r"run: unike prepare --model .* or edit with only_intrinsic=true"):
                fails()
        assert not bare.edits


def test_knowledge_without_a_gate(
    llava: Backbone, facts: list[Query], make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    replace(make_knowledge(llava), gate=None).save_pretrained(tmp_path)
    settings = {"layers": LAYERS, "steps": 1, "knowledge": str(tmp_path)}
    with pytest.raises(UnikeError, match=r"has no gate; run unike prepare anew, or set gate=false"):
        UniKE(**settings).edit(llava, facts[0])
    UniKE(**settings, gate=False).edit(llava, facts[0])


def test_a_gate_above_the_edited_layers_is_refused(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    with pytest.raises(UnikeError, match="the gate is read at layer 1, which this pass has not reached"):
        editor(llava)(layers=(0, -1)).edit(llava, facts[0])


def test_edits_are_cut_in_two_no_higher_than_where_the_gate_is_read(llava: Backbone, editor: Any) -> None:
    assert editor(llava)().split(llava) == 1
    assert editor(llava)(gate=False).split(llava) == 2
    assert editor(llava)(only_intrinsic=True, layers=(-1, -3)).split(llava) == 1


@pytest.mark.parametrize("settings", [{}, {"train_entry": True}, {"paper": True}, {"only_latent": True}])
def test_the_same_without_a_split(llava: Backbone, editor: Any, facts: list[Query], settings: dict[str, Any]) -> None:
    """A state that was run to the editor's split is finished as a whole pass would be."""
    chosen = editor(llava)(steps=2, **settings)
    edit, state = chosen.edit(llava, facts), llava.run_to_split(llava.encode(facts), chosen.split(llava))
    whole = UniKEEdit.target_logits([edit], llava, facts)
    assert torch.allclose(UniKEEdit.target_logits([edit], llava, facts, state), whole, atol=1e-5)


def test_what_is_read_before_the_end_of_the_prompt_stays(tiny: Backbone, editor: Any, facts: list[Query]) -> None:
    batch = tiny.encode(facts)
    before = batch.inputs["attention_mask"].bool() & (
        torch.arange(batch.labels.shape[1]) < batch.prompt_last.unsqueeze(1)
    )
    for everywhere in (False, True):
        edit = random_edit(editor(tiny)(everywhere=everywhere), tiny, facts)
        plain = tiny.forward(batch)
        with edit.attached(tiny):
            found = tiny.forward(batch)
        assert torch.equal(found[before], plain[before]) is not everywhere
        rows = torch.arange(len(facts))
        assert not torch.isclose(found[rows, batch.prompt_last], plain[rows, batch.prompt_last]).all()


def test_what_the_method_says_about_each_row(tiny: Backbone, editor: Any, facts: list[Query]) -> None:
    """Alpha and activations are means over the layers; the gate is open for an edit's own question."""
    edit, notes = random_edit(editor(tiny)(), tiny, facts), {}
    with edit.attached(tiny):
        for kind, queries in (("own", facts), ("other", facts[1:] + facts[:1])):
            tiny.forward(tiny.encode(queries))
            notes[kind] = {name: torch.stack(values).mean(dim=0) for name, values in tiny.notes.items()}
    assert notes["own"].keys() == {"alpha", "gate", "fact", "activation"}
    assert torch.allclose(notes["own"]["gate"], torch.ones(3)) and (notes["other"]["gate"] < 1).all()
    assert (notes["own"]["fact"] >= notes["own"]["gate"]).all()
    assert all(((found["alpha"] >= 0) & (found["alpha"] <= 1)).all() for found in notes.values())
    tiny.forward(tiny.encode(facts))
    assert tiny.notes == {}, "nobody has anything to say about the plain model"


# ---------------------------------------------------------------------- settings: what they mean


def test_paper_is_what_the_paper_says_and_can_be_overridden() -> None:
    assert UniKEConfig(paper=True) == UniKEConfig(
        paper=True,
        gate=False,
        centred_retrieval=False,
        k=40,
        entry="last",
        train_entry=False,
        key_init="raw",
        threshold=0.0,
    )
    assert UniKEConfig(paper=True).model_dump() == UniKEConfig().model_dump() | PAPER | {"paper": True}
    assert UniKEConfig(paper=True, gate=True, threshold=0.2).gate
    assert UniKEConfig(paper=True, gate=True, threshold=0.2).threshold == 0.2
    assert UniKEConfig(paper=False) == UniKEConfig()
    for config in (UniKEConfig(paper=True, gate=True, k=3), UniKEConfig(paper=True)):
        assert UniKEConfig.parse(config.model_dump(mode="json")) == config


def test_settings_that_exclude_each_other_are_refused_in_one_line() -> None:
    rows = ("only_intrinsic", "only_latent", "no_collaboration")
    for first in rows:
        UniKEConfig.parse({first: True})
        for second in set(rows) - {first}:
            with pytest.raises(UnikeError, match=r"^settings do not go together: choose one of only_intrinsic, .*"):
                UniKEConfig.parse({first: True, second: True})
    for wrong in ({"fixed_alpha": 1.5}, {"k": 0}, {"zeta": "true"}, {"layers": []}, {"beta": -1}, {"site": "both"}):
        with pytest.raises(UnikeError, match=f"setting {next(iter(wrong))}="):
            UniKEConfig.parse(wrong)


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_zeta_is_as_long_as_beta_says_and_points_where_it_should(
    llava: Backbone, editor: Any, knowledge: Any, facts: list[Query], beta: float
) -> None:
    """Eq. 6: ``beta zeta'``, ``zeta' = W_zeta zeta``, in units of what the network usually writes."""
    make, known = editor(llava), knowledge_of(llava, knowledge(llava))
    shifts = {
        kind: make(zeta=kind, beta=beta, steps=0).edit(llava, facts[:2]).tensors
        for kind in ("truthful", "semantic", "random", "learned")
    }
    for layer in LAYERS:
        kept = known.layer(layer)
        for kind in ("truthful", "semantic", "random"):
            shift = shifts[kind][f"{layer}.shift"]
            assert shift.shape == (2, 1, 32) and torch.equal(shift[0], shift[1])
            assert shift[0].norm().item() == pytest.approx(beta * 2.5, rel=1e-4)
        truthful, semantic, random = (
            shifts[kind][f"{layer}.shift"][0, 0] for kind in ("truthful", "semantic", "random")
        )
        assert cosine(truthful, kept.w_zeta @ kept.zeta) == pytest.approx(1, abs=1e-5)
        assert cosine(semantic, kept.w_semantic @ kept.semantic_zeta) == pytest.approx(1, abs=1e-5)
        assert abs(cosine(random, truthful)) < 0.999
        into = torch.linalg.lstsq(kept.w_zeta, random.unsqueeze(1)).solution
        assert torch.allclose(kept.w_zeta @ into, random.unsqueeze(1), atol=1e-4), "through the same W_zeta"
        assert not shifts["learned"][f"{layer}.shift"].any()


def test_a_random_zeta_depends_on_the_seed_alone(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    make = editor(llava)

    def shifts(facts: list[Query], **settings: Any) -> list[Tensor]:
        tensors = make(zeta="random", steps=0, **settings).edit(llava, facts).tensors
        return [tensors[f"{layer}.shift"][0] for layer in LAYERS]

    first = shifts(facts[:1])
    torch.manual_seed(123)
    for same in (shifts(facts[1:]), shifts(facts[:1], n_pairs=2, gate=False, site="raw", lr=0.1)):
        assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, shifts(facts[:1], seed=1), strict=True))
    assert abs(cosine(first[0][0], first[1][0])) < 0.99, "another one in each layer"


def test_beta_of_0_is_no_zeta(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """Not bit for bit: adding nothing is another sum."""
    batch, logits = llava.encode(facts), []
    for settings in ({"beta": 0.0}, {"zeta": "off"}, {"beta": 0.5}):
        with editor(llava)(steps=3, **settings).edit(llava, facts).attached(llava):
            logits.append(llava.forward(batch))
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not torch.allclose(logits[2], logits[1], atol=1e-2)


def test_own_entries_are_states_of_the_answer(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """``"last"``: at its last token; ``"every"``: where its tokens are predicted, in turn."""
    batch = llava.encode(facts[:2])
    for site in ("projected", "raw"):
        edits = {entry: editor(llava)(entry=entry, site=site, steps=0).edit(llava, facts[:2]) for entry in ENTRIES}
        for layer in LAYERS:
            with trace(llava.attention(layer).module) as record:
                llava.forward(batch)
            content = record.input if site == "projected" else record.output[0]
            for row in range(2):
                answer = (batch.labels[row] != -100).nonzero()[:, 0].tolist()
                positions = {"last": [answer[-2]], "every": [answer[i % len(answer)] - 1 for i in range(4)]}
                for entry, edit in edits.items():
                    keys, values = (edit.tensors[f"{layer}.{part}"][row] for part in ("own_keys", "own_values"))
                    assert torch.allclose(values, content[row, positions[entry]], atol=1e-4)
                    at_p = record.input[row, batch.prompt_last[row]]
                    assert torch.allclose(keys, at_p.expand_as(keys), atol=1e-4)


ENTRIES = ("last", "every")


def test_keys_of_the_gate_are_states_of_the_prompt(
    llava: Backbone, editor: Any, knowledge: Any, facts: list[Query]
) -> None:
    edit, gate = editor(llava)(steps=1).edit(llava, facts), knowledge_of(llava, knowledge(llava)).gate
    assert gate is not None
    batch = llava.encode(facts)
    with trace(llava.attention(gate.layer).module) as record:
        llava.forward(batch)
    for row, p in enumerate(batch.prompt_last.tolist()):
        assert torch.allclose(edit.tensors["gate.keys"][row, 0], record.input[row, p], atol=1e-5)
        assert torch.allclose(edit.tensors["gate.whole"][row, 0], record.input[row, : p + 1].mean(dim=0), atol=1e-5)


def test_what_an_edit_is_not_about_keeps_its_answer_bit_for_bit(
    tiny: Backbone, facts: list[Query], make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    """The promise of the gate, with a real edit: closed for other prompts, open for its own."""
    gate = make_knowledge(tiny, gate_layer=1).gate
    states = gate.read(tiny, tiny.run_to_split(tiny.encode(facts), 0)).last
    whitened = gate.similarities(states[:1], states)[1][:, 0]
    low = max(whitened[1:].tolist()) + 1e-3
    ramps = ((-3.0, -2.0), (low, (low + 1) / 2))
    make_knowledge(tiny, layers=LAYERS, gate_layer=1, ramps=ramps).save_pretrained(tmp_path)
    edit = UniKE(**SETTINGS, steps=3, lr=0.05, knowledge=str(tmp_path)).edit(tiny, facts[0])
    batch = tiny.encode(facts)
    plain, answers = tiny.forward(batch), tiny.generate(facts, max_new_tokens=3)
    with edit.attached(tiny):
        edited = tiny.forward(batch)
        assert torch.equal(edited[1:], plain[1:])
        assert not torch.allclose(edited[0], plain[0], atol=1e-2)
        assert tiny.generate(facts, max_new_tokens=3)[1:] == answers[1:]


# ---------------------------------------------------------------------- training


@contextmanager
def training(seen: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """The loss that is minimised, before and after."""
    optimise = method.optimise

    def watched(parameters: Sequence[Tensor], loss: Callable[[], Tensor], **settings: Any) -> Tensor:
        before = loss().detach()
        history = optimise(parameters, loss, **settings)
        seen.append((before, loss().detach()))
        return history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "optimise", watched)
        yield


@pytest.mark.parametrize(
    "settings",
    [{}, {"train_entry": True}, {"zeta": "learned"}, {"only_latent": True, "train_entry": True}, {"gate": False}],
)
@pytest.mark.parametrize("older", [False, True])
def test_what_is_minimised_is_the_loss_under_the_installed_edit(
    tiny: Backbone, editor: Any, facts: list[Query], settings: dict[str, Any], older: bool
) -> None:
    """So the memory, alpha, zeta and the gate are active while training, and so are older edits; and the hooks see
    the parameters as they are now, not copies that were made when they were installed."""
    chosen = editor(tiny)(steps=4, lr=2e-2, locality=0.0, rivalry=8.0, **settings)
    stack: list[Edit] = [random_edit(chosen, tiny, facts[2:])] if older else []
    batch, seen = tiny.encode(facts[:2]), []
    before = [{name: t.clone() for name, t in edit.tensors.items()} for edit in stack]
    with attached(tiny, stack):
        start = UniKE(chosen.config.model_copy(update={"steps": 0})).edit(tiny, facts[:2])
        with training(seen):
            edit = chosen.edit(tiny, facts[:2])
    for old, was in zip(stack, before, strict=True):
        assert all(torch.equal(old.tensors[name], tensor) for name, tensor in was.items()), "older edits are frozen"
        assert not any(tensor.requires_grad or tensor.grad is not None for tensor in old.tensors.values())
    for new, minimised in zip((start, edit), seen[0], strict=True):
        with attached(tiny, [*stack, UniKEEdit(chosen.config, new.tensors, new.facts, **made_for(new))]):
            assert torch.allclose(token_nll(tiny.forward(batch), batch.labels), minimised, atol=1e-4)
    assert (seen[0][1] < seen[0][0]).all()
    if older:
        with edit.attached(tiny):
            assert not torch.allclose(token_nll(tiny.forward(batch), batch.labels), seen[0][1], atol=1e-3)


def made_for(edit: Edit) -> dict[str, str]:
    return {"fingerprint": edit.fingerprint, "source": edit.source}


def test_the_memory_shapes_what_is_learned(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    alone, beside = (
        editor(llava)(steps=3, zeta="off", gate=False, fixed_alpha=alpha).edit(llava, facts[0]) for alpha in (0, 0.4)
    )
    start = editor(llava)(steps=0, zeta="off", gate=False, fixed_alpha=0.4).edit(llava, facts[0])
    assert not torch.allclose(alone.tensors["-2.values"], beside.tensors["-2.values"], atol=1e-3)
    assert not start.tensors["-2.values"].any()


def test_hooks_see_live_parameters(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """A regression: parts put side by side when hooks were installed are copies, which go stale while training."""
    chosen = editor(llava)(train_entry=True, zeta="learned")
    older, edit = random_edit(chosen, llava, facts[1:2], 1), random_edit(chosen, llava, facts[:1])
    names = [f"{layer}.{part}" for layer in LAYERS for part in ("keys", "bias", "values", "shift", "own_values")]
    batch = llava.encode(facts[:1])
    for name in names:
        edit.tensors[name].requires_grad_()
    with attached(llava, [older, edit]):
        for name in names:
            old = llava.forward(batch).detach()
            with torch.no_grad():
                edit.tensors[name] += 0.5
            live = llava.forward(batch)
            assert not torch.allclose(live, old, atol=1e-3), name
            frozen = UniKEEdit(
                chosen.config, {n: t.detach().clone() for n, t in edit.tensors.items()}, edit.facts, **made_for(edit)
            )
            again = tiny_backbone("llava")
            with attached(again, [older, frozen]):
                assert torch.equal(again.forward(batch), live), name


def test_only_the_new_edit_is_trained_on_top_of_older_ones(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """The shape of its tensors, and that an edit of another config or method may lie below."""
    below = [
        editor(llava)(steps=2).edit(llava, facts[0]),
        editor(llava)(steps=2, k=3, gate=False).edit(llava, facts[1]),
        editor(llava)(steps=2, only_intrinsic=True, layers=(0, 1)).edit(llava, facts[2]),
    ]
    for settings in ({}, {"gate": False}, {"only_intrinsic": True, "layers": (-1,)}, {"only_latent": True}):
        chosen = editor(llava)(steps=2, **settings)
        alone = chosen.edit(llava, facts[0])
        with attached(llava, below):
            edit = chosen.edit(llava, facts[0])
            with edit.attached(llava):
                llava.forward(llava.encode(facts[:1]))
        assert {name: t.shape for name, t in edit.tensors.items()} == {n: t.shape for n, t in alone.tensors.items()}
        assert not all(torch.equal(edit.tensors[name], tensor) for name, tensor in alone.tensors.items())


def test_keys_start_where_the_edited_model_is_wrong(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """``q_e`` are inputs of the plain model: what its own memory shifts comes later, and older edits count."""
    chosen = editor(llava)(steps=0, noise=0.0, key_init="raw", threshold=0.0)
    older = random_edit(chosen, llava, facts[1:2])
    for stack in ([], [older]):
        with attached(llava, stack):
            batch = llava.encode(facts[:1])
            wrong = wrong_positions(llava, llava.run_to_split(batch, 1))
            with trace(llava.ffn(-1).inputs) as record:
                llava.forward(batch)
            keys = chosen.edit(llava, facts[0]).tensors["-1.keys"][0]
        q = record.input[wrong]
        expected = q / q.square().sum(dim=1, keepdim=True)
        assert torch.allclose(keys, expected[torch.arange(4) % len(expected)], atol=1e-4)


def test_an_edit_that_is_not_called_upon_lends_no_entries(
    llava: Backbone, editor: Any, facts: list[Query], make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    """Under a stack, what is asked about one fact is answered as if the others were not there, memory included."""
    knows = make_knowledge(llava, gate_layer=1, ramps=((0.96, 0.99), (0.96, 0.99)))
    knows.save_pretrained(tmp_path / "knowledge")
    method = UniKE(knowledge=str(tmp_path / "knowledge"), steps=4, lr=0.1, layers=(-2, -1), memory_size=0)
    edits = [method.edit(llava, fact) for fact in facts]
    for fact, own in zip(facts, edits, strict=True):
        with own.attached(llava):
            alone = llava.forward(llava.encode([fact]))
        with attached(llava, edits):
            together = llava.forward(llava.encode([fact]))
        assert torch.allclose(alone, together, atol=1e-4)
