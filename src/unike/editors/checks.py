"""What editing takes for granted of a backbone, as laws that can be measured on the model at hand.

The contract tests hold them on a tiny model of every family; ``unike models check`` measures them on a model that
nobody has listed. Each law is measured by a function of a backbone and questions with images and targets; most return
how far what should be equal is apart, as a fraction of the largest value: 0 where it is equal bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import cycle, target_positions, token_nll
from unike.backbones.forward.hooks import Hooks, trace
from unike.data.queries import Query
from unike.editors.common.anchors import ffn_inputs
from unike.editors.common.optimise import optimise
from unike.editors.common.pairs import FFNPatch, install_patch

SIDES = ("right", "left")
"""Where rows are padded: to score targets, and to generate."""

ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How far logits may be apart where sums are added up in another order, by what the decoder computes in."""

QUANTIZED = 1e-1
"""The same where each pass rounds what it reads to 8 bits, by the largest value in it."""


@dataclass(frozen=True)
class Law:
    """One thing that editing takes for granted.

    Args:
        name: A word for it.
        promise: What it says.
        measure: Its function.
        allowed: The largest value with which it holds; None for `rounding`.
    """

    name: str
    promise: str
    measure: Callable[[Backbone, Sequence[Query]], float]
    allowed: float | None = None


@dataclass(frozen=True)
class Finding:
    """Whether a law holds.

    Args:
        law: Which.
        holds: Whether it does.
        measured: What was found, or None where it could not be measured.
        error: Why not.
    """

    law: Law
    holds: bool
    measured: float | None = None
    error: str = ""


def check(
    backbone: Backbone, queries: Sequence[Query], report: Callable[[str], None] = lambda promise: None
) -> list[Finding]:
    """Measure every law.

    Args:
        backbone: Any; it is left as it is.
        queries: At least two, of different lengths, with images and targets.
        report: Called with each law's promise before it is measured.
    """
    findings = []
    for law in LAWS:
        report(law.promise)
        try:
            measured = law.measure(backbone, queries)
        except Exception as error:  # whatever a model does that nobody has seen before is a finding, too
            findings.append(Finding(law, False, error=f"{type(error).__name__}: {error}"))
        else:
            allowed = rounding(backbone) if law.allowed is None else law.allowed
            findings.append(Finding(law, measured <= allowed, measured))
    return findings


# ---------------------------------------------------------------------- the laws


def split(backbone: Backbone, queries: Sequence[Query]) -> float:
    """``run_from_split(run_to_split(b, k))`` is ``forward(b)``, for several ``k``, also when a state is used twice."""
    worst = 0.0
    for side in SIDES:
        batch = backbone.encode(queries, padding_side=side)
        whole = backbone.forward(batch)
        for layer in some_layers(backbone):
            state = backbone.run_to_split(batch, layer)
            worst = max([worst, *(apart(backbone.run_from_split(state), whole) for _ in range(2))])
    return worst


def shortened(backbone: Backbone, queries: Sequence[Query]) -> float:
    """What `Backbone.shorten` leaves of a state ends as the whole one does."""
    worst = 0.0
    for side in SIDES:
        batch = backbone.encode(queries, padding_side=side)
        for layer in some_layers(backbone):
            state = backbone.run_to_split(batch, layer)
            short = backbone.shorten(state)
            real = batch.inputs["attention_mask"].bool()[:, short.start :]
            whole = backbone.run_from_split(state)[:, short.start :]
            for _ in range(2):
                worst = max(worst, apart(backbone.run_from_split(short)[real], whole[real]))
    return worst


def hooks(backbone: Backbone, queries: Sequence[Query]) -> float:
    """A patch beside the last feed-forward network adds ``relu(q K^T + b) V`` (Eq. 3), as widening it would."""
    batch, site, patch = backbone.encode(queries), backbone.ffn(-1), some_patch(backbone)
    with trace([site.inputs, site.outputs]) as (inputs, plain):
        backbone.forward(batch)
    with Hooks() as on:
        install_patch(patch, site, on)
        with trace(site.outputs) as hooked:
            backbone.forward(batch)
    keys, bias, values = patch.keys[0], patch.bias[0], patch.values[0]
    literal = plain.output.float() + torch.relu(inputs.input.float() @ keys.T + bias) @ values
    return apart(hooked.output, literal)


def rows(backbone: Backbone, queries: Sequence[Query]) -> float:
    """A row of a padded batch is the row alone."""
    worst = 0.0
    for side in SIDES:
        batch = backbone.encode(queries, padding_side=side)
        together = backbone.forward(batch)
        for row, query in enumerate(queries):
            real = batch.inputs["attention_mask"][row].bool()
            worst = max(worst, apart(together[row][real], backbone.forward(backbone.encode([query]))[0]))
    return worst


def generation(backbone: Backbone, queries: Sequence[Query]) -> float:
    """Under a patch, the logits of each generated token are those of a whole pass without a cache."""
    patch = some_patch(backbone)
    worst = 0.0
    with Hooks() as on:
        install_patch(patch, backbone.ffn(-1), on)
        for query in queries:
            with trace(backbone.head, keep_all=True) as record:
                backbone.generate([query], max_new_tokens=5)
            cached = backbone.read_out(torch.cat([call.input[:, -1] for call in record.calls]))
            asked = backbone.encode([query.question], padding_side="left")
            whole = backbone.forward(backbone.extended(asked, cached.argmax(dim=-1)[None, :-1]))
            worst = max(worst, apart(whole[0, -len(cached) :], cached))
    return worst


def learning(backbone: Backbone, queries: Sequence[Query]) -> float:
    """Pairs are trained through the split, in fp32: what is left of the loss of the target that falls least."""
    batch = backbone.encode(queries)
    state, positions = backbone.run_to_split(batch, -1), target_positions(batch.labels)
    q = ffn_inputs(backbone, state, [-1])[-1][cycle(positions, 8)].float()
    keys = q / q.square().sum(dim=-1, keepdim=True)  # each fires by 1 where a token is predicted
    patch = FFNPatch(keys, torch.zeros_like(keys[..., 0]), torch.zeros_like(keys))

    def loss() -> Tensor:
        return token_nll(backbone.run_from_split(state, positions), state.labels)

    with Hooks() as on:
        install_patch(patch, backbone.ffn(-1), on)
        losses = optimise([patch.values.requires_grad_()], loss, steps=20, lr=3e-2)
    return float((losses[-1] / losses[0]).max())


def detaching(backbone: Backbone, queries: Sequence[Query]) -> float:
    """Once a patch is off, logits and weights are what they were, bit for bit."""
    batch, patch = backbone.encode(queries), some_patch(backbone)
    before, fingerprint = backbone.forward(batch), backbone.fingerprint()
    with Hooks() as on:
        install_patch(patch, backbone.ffn(-1), on)
        if torch.equal(backbone.forward(batch), before):
            raise RuntimeError("the patch changed nothing while it was on")
    after = backbone.forward(batch)
    return apart(after, before) if backbone.fingerprint() == fingerprint else float("inf")


LAWS = (
    Law("split", "a pass that is split and resumed is the whole pass, bit for bit", split, allowed=0.0),
    Law("shortened", "a state that begins at the prompts' ends ends as the whole one", shortened),
    Law("hooks", "a hooked patch is the equation, as literal widening would be", hooks),
    Law("rows", "rows of a padded batch equal single rows", rows),
    Law("generation", "generating equals decoding without a cache, under a patch", generation),
    Law("learning", "a patch trained through the split lowers every loss by a tenth", learning, allowed=0.9),
    Law("detaching", "without the patch, logits and weights are what they were, bit for bit", detaching, allowed=0.0),
)
"""In the order of what rests on what."""


# ---------------------------------------------------------------------- parts


def rounding(backbone: Backbone) -> float:
    """How far logits of a backbone may be apart where a law does not say bit for bit."""
    return QUANTIZED if getattr(backbone.model, "is_quantized", False) else ROUNDING[backbone.dtype]


def some_layers(backbone: Backbone) -> list[int]:
    """The lowest, a middle and the last layer."""
    return sorted({0, backbone.n_layers // 2, backbone.n_layers - 1})


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a fraction of the largest value; infinite where something is not a number."""
    difference = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    return float(difference.nan_to_num(nan=float("inf")))


def some_patch(backbone: Backbone, size: int = 8, values: float = 1.0) -> FFNPatch:
    """Random keys of unit length in fp32, always the same.

    Args:
        backbone: Whose width and device it has.
        size: Pairs.
        values: Scale of the values.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator) / backbone.width**0.5
        return drawn.unsqueeze(0).to(backbone.device)

    return FFNPatch(draw(size, backbone.width), draw(size), values * draw(size, backbone.width))


def some_questions(folder: Path) -> list[Query]:
    """Questions of different lengths, about pictures of different shapes that are made in a folder."""
    channels = [Image.radial_gradient("L"), Image.linear_gradient("L"), Image.new("L", (256, 256), 90)]
    asked = [
        ("What is this?", "a cat", (320, 320)),
        ("Which colour has the thing in the middle of it?", "bright red", (480, 300)),
        ("Who?", "the baker, on a bench", (256, 400)),
    ]
    questions = []
    for number, (prompt, target, size) in enumerate(asked):
        image = folder / f"{number}.png"
        Image.merge("RGB", channels[number:] + channels[:number]).resize(size).save(image)
        questions.append(Query(prompt, image, target))
    return questions


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings for ``--json``."""
    return [
        {"law": f.law.name, "promise": f.law.promise, "holds": f.holds, "measured": f.measured, "error": f.error}
        for f in findings
    ]
