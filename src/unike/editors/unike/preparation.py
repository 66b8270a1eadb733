"""Collecting the in-context knowledge of a backbone and disentangling it (section 3.3, Appendix C).

What a backbone answers wrongly makes triplets ``(Q_I, A_pos, A_neg)``; the states behind both answers train two small
encoders for each edited layer. Nothing of an evaluation may be learned from, and every step says how much fell out.

All of it happens in stages whose results are kept in ``.work`` of the folder to be, under names that say what they were
made from. A run that is cut off goes on where it stopped, and ends with the same bytes.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.backbones.forward.split import IGNORE
from unike.backbones.loading import DTYPES
from unike.backbones.sites import AttentionSite
from unike.core.errors import UnikeError
from unike.core.files import WORK, check_folder, replace_file, replace_folder
from unike.core.progress import Progress, silent
from unike.core.settings import Layers, Settings
from unike.core.version import __version__
from unike.data.leaks import LEAKS, ImageHashes, LeakGuard, worded
from unike.data.matching import normalise
from unike.data.provenance import describe_data, digest, every_query
from unike.data.queries import EditCase, Query
from unike.editors.unike.calibration import OTHER_FACTS, RELATED, calibrate, separation
from unike.editors.unike.gate import Gate
from unike.editors.unike.knowledge import (
    CONFIG_FILE,
    SAVED,
    Knowledge,
    LayerKnowledge,
    Triplet,
    as_attention_output,
    evenly,
)
from unike.editors.unike.memory import last_answer_token, read_entries
from unike.editors.unike.spaces import (
    Encoder,
    Epoch,
    fit_w_zeta,
    hold_out,
    probe_accuracy,
    retrieval_accuracy,
    semantic_loss,
    split_by_answer,
    train_encoder,
    truthfulness_loss,
    zeta,
)
from unike.edits.stack import edits_on

TEXTS = 256
"""At most so many questions without a picture take part in the mean of attention inputs."""


class PrepareConfig(Settings):
    """Settings of `prepare`.

    Attributes:
        layers: Which layers to prepare (paper: the last four).
        limit: Learn from at most so many triplets, evenly spread over the cases, and ask no more than that takes.
        keep: Store the states of at most so many of them; None for all.
        hidden: Width of the encoders' inner layer.
        truth_width: ``d``, of the truthfulness space.
        tau: Temperature of both losses.
        lr: Learning rate (paper: 1e-4).
        max_epochs: Of either encoder.
        patience: Epochs without a gain on held-out triplets after which an encoder is done.
        ridge: Of `fit_w_zeta`.
        batch: Triplets a step.
        seed: Of every choice.
        store_dtype: Precision of what is kept.
        max_new_tokens: An answer of the backbone that is as long is taken to be cut off.
        rows: Questions the backbone reads at once.
        gate_layers: Where the gate may be read, the best of these is taken; None for five between 60 % of the depth
            and the lowest of ``layers``.
        gate_cases: How many cases the gate is calibrated on; 0 for no gate.
        gate_error: See `unike.editors.unike.gate.calibrate`.
    """

    layers: Layers = (-4, -3, -2, -1)
    limit: int | None = Field(default=None, ge=1)
    keep: int | None = Field(default=None, ge=1)
    hidden: int = Field(default=512, ge=1)
    truth_width: int = Field(default=128, ge=1)
    tau: float = Field(default=0.1, gt=0)
    lr: float = Field(default=1e-4, gt=0)
    max_epochs: int = Field(default=300, ge=0)
    patience: int = Field(default=20, ge=1)
    ridge: float = Field(default=1e-2, gt=0)
    batch: int = Field(default=256, ge=2)
    seed: int = 0
    store_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    max_new_tokens: int = Field(default=32, ge=1)
    rows: int = Field(default=32, ge=1)
    gate_layers: tuple[int, ...] | None = None
    gate_cases: int = Field(default=300, ge=0)
    gate_error: float = Field(default=0.02, gt=0, lt=0.5)


def prepare(
    backbone: Backbone,
    cases: Sequence[EditCase],
    out: Path,
    config: PrepareConfig | None = None,
    *,
    against: Sequence[EditCase] = (),
    tags: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Knowledge:
    """Collect what a backbone answers wrongly, and learn from it.

    Args:
        backbone: Without edits.
        cases: Of a train split: their edits are the candidates.
        out: The folder to write; if it holds the very same already, that is read. What an earlier run left there is
            used.
        config: Settings.
        against: What will be evaluated on: nothing that shares a picture or a telling question with it is learned from.
        tags: For ids of cases, why a wrong answer to them is wrong (Appendix C, Figure 6).
        progress: Told about every stage.

    Returns:
        The knowledge, as it was written.

    Raises:
        UnikeError: The folder holds something else, a setting does not fit the backbone, a picture cannot be read, or
            too little is left to learn from.
    """
    config = config or PrepareConfig()
    if len({backbone.layer_index(layer) for layer in config.layers}) < len(config.layers):
        raise UnikeError(f"layers={list(config.layers)} names a layer of {backbone.source} twice")
    check_place(out)
    if is_prepared(out, backbone.source, cases, config, against=against):
        knowledge = Knowledge.from_pretrained(out)
        knowledge.check(backbone)
        return knowledge
    if edits_on(backbone):
        raise UnikeError("the knowledge is that of the unedited model; detach the edits first")
    work = Work(out, backbone)

    guard = LeakGuard(every_query(against), every_query(cases), partial(progress, "reading pictures"))
    candidates, dropped = find_candidates(cases, guard, tags or {})
    mistakes, answers = collect(backbone, candidates, work, config, progress)
    mistakes = kept_first(mistakes, config.keep)
    triplets = [mistake.triplet for mistake in mistakes]
    states, tokens = read_states(backbone, mistakes, work, config, progress)
    texts = text_questions(cases, against)
    means = read_means(backbone, texts, states, work, config, progress)
    layers, learned = {}, {}
    for layer in config.layers:
        tensors, learned[str(layer)] = work.once(
            f"layer{layer}",
            [texts, [astuple(triplet) for triplet in triplets], config.model_dump(mode="json")],
            partial(
                learn,
                backbone.attention(layer),
                triplets,
                states[layer],
                means[layer],
                config,
                partial(progress, f"layer {layer}"),
            ),
        )
        layers[layer] = LayerKnowledge.from_tensors(tensors)
    gate, opened = find_gate(backbone, cases, guard, work, config, progress)

    report = {
        "candidates": {"cases": len(cases), "dropped": dropped, "left": len(candidates)},
        "answers": answers,
        "tags": dict(Counter(triplet.tag or "untagged" for triplet in triplets)),
        "answer_tokens": tokens,
        "text_questions": len(texts),
        "layers": learned,
        "gate": opened,
    }
    described = describe(backbone, cases, against, config) | {"report": report}
    knowledge = Knowledge(layers, tuple(triplets), described, gate)
    replace_folder(out, knowledge.files(), known_by=WORK)
    return knowledge


# ---------------------------------------------------------------------- the folder


def describe(
    backbone: Backbone, cases: Sequence[EditCase], against: Sequence[EditCase], config: PrepareConfig
) -> dict[str, Any]:
    """What knowledge is made from."""
    return {
        "unike": __version__,
        "backbone": {
            "source": backbone.source,
            "fingerprint": backbone.fingerprint(),
            "template": backbone.template,
            "n_layers": backbone.n_layers,
        },
        "dtype": config.store_dtype,
        "config": config.model_dump(mode="json"),
        "data": describe_data(cases, against),
    }


def is_prepared(
    out: Path, source: str, cases: Sequence[EditCase], config: PrepareConfig, *, against: Sequence[EditCase] = ()
) -> bool:
    """Whether a folder holds the knowledge of a backbone called ``source`` with these settings; reads no tensors."""
    wanted = (source, config.model_dump(mode="json"), describe_data(cases, against))
    try:
        there = SAVED.describe(out)
    except UnikeError:
        return False
    return (there["backbone"]["source"], there.get("config"), there.get("data")) == wanted


def check_place(out: Path) -> None:
    """Refuse a folder that is neither new nor knowledge, finished or begun."""
    check_folder(out, known_by=WORK if (out / WORK).is_dir() else CONFIG_FILE)


class Work:
    """What is done so far, in a folder within the one to be.

    Args:
        out: The folder to be.
        backbone: Whose answers and states are kept; those of others are not found.
    """

    def __init__(self, out: Path, backbone: Backbone) -> None:
        self.folder = out / WORK
        self.made_for = [backbone.fingerprint(), str(backbone.dtype), backbone.template]

    def key(self, made_from: Any) -> str:
        """A short hash of everything that a result depends on: the backbone, and a JSON value."""
        return digest([self.made_for, made_from])

    def once(
        self, name: str, made_from: Any, make: Callable[[], tuple[dict[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        """Tensors and a JSON value, made now or by an earlier run.

        Args:
            name: Of the file.
            made_from: A JSON value with everything that the result depends on beside the backbone.
            make: Called if there is no such result.
        """
        path = self.folder / f"{name}-{self.key(made_from)}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["notes"])  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            tensors, notes = make()
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            self._make_folder()
            replace_file(path, save(tensors, {"notes": json.dumps(notes)}))
            return tensors, notes

    def answers(self) -> dict[str, str]:
        """Key of a question to the answer it got."""
        try:
            content = self._answer_file.read_bytes()
        except FileNotFoundError:
            return {}
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a line that was cut off
            replace_file(self._answer_file, whole)
        try:
            return {line["key"]: line["answer"] for line in map(json.loads, whole.splitlines())}
        except (ValueError, LookupError, TypeError):
            raise UnikeError(f"{self._answer_file} is damaged; delete it, and the questions are asked anew") from None

    def remember(self, answers: Mapping[str, str]) -> None:
        """Append answers."""
        self._make_folder()
        lines = [json.dumps({"key": key, "answer": answer}, ensure_ascii=False) for key, answer in answers.items()]
        try:
            with self._answer_file.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise UnikeError(f"cannot write {self._answer_file}: {error.strerror}") from None

    @property
    def _answer_file(self) -> Path:
        return self.folder / "answers.jsonl"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnikeError(f"cannot write {self.folder}: {error.strerror}; choose another folder") from None


# ---------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class Candidate:
    """A question with its true answer that the backbone may get wrong."""

    query: Query
    hashes: ImageHashes
    tag: str


def find_candidates(
    cases: Sequence[EditCase], guard: LeakGuard, tags: Mapping[str, str]
) -> tuple[list[Candidate], dict[str, int]]:
    """The edits of the cases that are about a picture and share nothing with what is evaluated.

    Returns:
        The candidates, each once, and for each reason how many are not among them.

    Raises:
        UnikeError: There is none.
    """
    found: dict[tuple[str, str, str], Candidate] = {}
    dropped: Counter[str] = Counter(dict.fromkeys(("no picture", *LEAKS, "repeated"), 0))
    for case in cases:
        if case.edit.image is None:
            dropped["no picture"] += 1
        elif reason := guard.leak(case.edit):
            dropped[reason] += 1
        else:
            candidate = Candidate(case.edit, guard.hashes[case.edit.image], tags.get(case.case_id, ""))
            same = (worded(case.edit.prompt), candidate.hashes.content, normalise(case.edit.target or ""))
            dropped["repeated"] += same in found
            found.setdefault(same, candidate)
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise UnikeError(f"none of {len(cases)} cases can be learned from: {reasons}")
    return list(found.values()), dict(dropped)


# ---------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Mistake:
    """A candidate that is answered wrongly."""

    triplet: Triplet
    image: Path


def collect(
    backbone: Backbone, candidates: Sequence[Candidate], work: Work, config: PrepareConfig, progress: Progress
) -> tuple[list[Mistake], dict[str, int]]:
    """Ask the unedited backbone, greedily, and keep what it answers wrongly.

    Returns:
        The mistakes in the order of the candidates, and how many answers there were of each verdict (see `judge`).

    Raises:
        UnikeError: There is no mistake to learn from.
    """
    known = work.answers()
    batches = [candidates[start : start + config.rows] for start in range(0, len(candidates), config.rows)]
    mistakes: dict[int, list[Mistake]] = {}
    counts: Counter[str] = Counter()
    for done, index in enumerate(far_apart(len(batches)), 1):
        answers = ask(backbone, batches[index], known, work, config)
        mistakes[index] = []
        for answer, candidate in zip(answers, batches[index], strict=True):
            verdict = judge(backbone, answer, candidate.query.target or "", config.max_new_tokens)
            counts[verdict] += 1
            if verdict == "wrong":
                mistakes[index].append(as_mistake(candidate, answer))
        progress("asking", done, len(batches))
        if config.limit is not None and counts["wrong"] >= config.limit:
            break
    found = [mistake for index in sorted(mistakes) for mistake in mistakes[index]]
    if not found:
        raise UnikeError(f"{backbone.source} has no clear mistake among {counts.total()} answers; there is no triplet")
    kept = [found[i] for i in evenly(len(found), config.limit)]
    return kept, {"asked": counts.total(), **counts, "beyond the limit": len(found) - len(kept)}


def ask(
    backbone: Backbone, batch: Sequence[Candidate], known: dict[str, str], work: Work, config: PrepareConfig
) -> list[str]:
    """Greedy answers to a batch, which is asked as a whole: how long the others are may tip the last bit of a row."""
    keys = [work.key([each.query.prompt, each.hashes.content, config.max_new_tokens]) for each in batch]
    if not known.keys() >= set(keys):
        said = backbone.generate([each.query for each in batch], max_new_tokens=config.max_new_tokens)
        answers = dict(zip(keys, said, strict=True))
        work.remember(answers)
        known.update(answers)
    return [known[key] for key in keys]


def kept_first(mistakes: Sequence[Mistake], keep: int | None) -> list[Mistake]:
    """The mistakes whose states are stored, evenly spread, and then those that are only learned from."""
    kept = evenly(len(mistakes), keep)
    return [mistakes[i] for i in kept] + [mistakes[i] for i in sorted(set(range(len(mistakes))) - set(kept))]


def far_apart(count: int) -> list[int]:
    """The numbers below ``count`` in an order whose every beginning is spread over all: steps of the golden ratio."""
    return sorted(range(count), key=lambda i: i * (5**0.5 - 1) / 2 % 1)


def judge(backbone: Backbone, answer: str, target: str, max_new_tokens: int) -> str:
    """What an answer is worth as ``A_neg``.

    Returns:
        ``"right"``, ``"empty"``, ``"truncated"``; ``"substring"`` if one of answer and target holds the other,
        ``"reordered"`` if they have the same words: both may mean the same; else ``"wrong"``.
    """
    said, wanted = normalise(answer), normalise(target)
    if said == wanted:
        return "right"
    if not said:
        return "empty"
    if len(backbone.tokenizer(" " + answer, add_special_tokens=False)["input_ids"]) >= max_new_tokens:
        return "truncated"
    if said in wanted or wanted in said:
        return "substring"
    return "reordered" if sorted(said.split()) == sorted(wanted.split()) else "wrong"


def as_mistake(candidate: Candidate, answer: str) -> Mistake:
    """Answers lose what they end with: a full stop behind all true answers alone would tell them from false ones."""
    assert candidate.query.image is not None and candidate.query.target is not None
    positive, negative = (text.strip().rstrip(".,;:!? ") for text in (candidate.query.target, answer))
    content, perceptual = astuple(candidate.hashes)
    return Mistake(
        Triplet(candidate.query.prompt, content, perceptual, positive, negative, candidate.tag), candidate.query.image
    )


# ---------------------------------------------------------------------- states

States = dict[str, Tensor]
"""Of one layer, ``[T, D]`` fp32 each.

``h_sem, h_pos, h_neg`` are attention inputs, ``raw_sem, raw_pos`` attention outputs, ``written_pos, written_neg`` what
the feed-forward network writes; ``sem`` is at the last prompt token, ``pos`` and ``neg`` at the last of the answer.
`learn` adds ``out_pos, out_neg``, the attention outputs that ``h_pos`` and ``h_neg`` alone would lead to.
"""


def read_states(
    backbone: Backbone, mistakes: Sequence[Mistake], work: Work, config: PrepareConfig, progress: Progress
) -> tuple[dict[int, States], dict[str, float]]:
    """The states of all triplets, in one teacher-forced pass for each answer.

    Returns:
        The states of each layer, and the mean length in tokens of true and false answers.
    """
    chunks = []
    lengths = []
    for start in range(0, len(mistakes), config.rows):
        some = mistakes[start : start + config.rows]
        tensors, tokens = work.once(
            f"states-{start // config.rows:05}",
            [config.layers, [astuple(mistake.triplet) for mistake in some]],
            partial(read_some, backbone, some, config.layers),
        )
        chunks.append(tensors)
        lengths.append(tokens)
        progress("reading states", start + len(some), len(mistakes))
    whole = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    states: dict[int, States] = {layer: {} for layer in config.layers}
    for name, tensor in whole.items():
        layer, part = name.split(".")
        states[int(layer)][part] = tensor
    return states, {side: round(sum(each[side] for each in lengths) / len(mistakes), 2) for side in ("pos", "neg")}


def read_some(
    backbone: Backbone, mistakes: Sequence[Mistake], layers: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """`States` of one batch as ``{layer}.{part}``, and how many tokens its true and false answers have."""
    found: dict[str, Tensor] = {}
    tokens = {}
    for side in ("pos", "neg"):
        queries = [
            Query(each.triplet.prompt, each.image, each.triplet.positive if side == "pos" else each.triplet.negative)
            for each in mistakes
        ]
        state = backbone.run_to_split(backbone.encode(queries), min(map(backbone.layer_index, layers)))
        where = last_answer_token(backbone, state)
        rows, prefill = torch.arange(len(where), device=where.device), state.prefill()
        attentions = [backbone.attention(layer).module for layer in layers]
        networks = [backbone.ffn(layer).outputs for layer in layers]
        with trace([*attentions, *networks]) as records:
            entries = read_entries(backbone, state, layers, positions=where)
        for layer, attention, network in zip(layers, records[: len(layers)], records[len(layers) :], strict=True):
            h_sem, h_answer = (entry.squeeze(1) for entry in entries[layer])
            attended, written = attention.output[0], network.output.reshape(state.hidden.shape)
            found[f"{layer}.h_{side}"] = h_answer
            found[f"{layer}.written_{side}"] = written[rows, where.squeeze(1)].float()
            if side == "pos":  # the same question both times, and a memory of true answers
                found[f"{layer}.h_sem"] = h_sem
                found[f"{layer}.raw_sem"] = prefill.at_prompt_last(attended).float()
                found[f"{layer}.raw_pos"] = attended[rows, where.squeeze(1)].float()
        answers = (state.labels != IGNORE) & (state.labels != backbone.tokenizer.eos_token_id)
        tokens[side] = int(answers.sum())
    return found, tokens


def text_questions(cases: Sequence[EditCase], against: Sequence[EditCase]) -> list[str]:
    """What the cases ask without a picture, each question once, without those that ``against`` asks too."""
    protected = {worded(query.prompt) for query in every_query(against)}
    asked = {worded(query.prompt): query.prompt for query in every_query(cases) if query.image is None}
    found = [prompt for question, prompt in asked.items() if question not in protected]
    return [found[i] for i in evenly(len(found), TEXTS)]


def read_means(
    backbone: Backbone,
    texts: Sequence[str],
    states: Mapping[int, States],
    work: Work,
    config: PrepareConfig,
    progress: Progress,
) -> dict[int, Tensor]:
    """The mean attention input at ``p`` of each layer, ``[D]``; triplets and texts, if any, weigh the same."""
    of_triplets = {layer: states[layer]["h_sem"].mean(dim=0) for layer in config.layers}
    if not texts:
        return of_triplets

    def read() -> tuple[dict[str, Tensor], None]:
        found: dict[str, list[Tensor]] = {str(layer): [] for layer in config.layers}
        for start in range(0, len(texts), config.rows):
            batch = backbone.encode([Query(prompt) for prompt in texts[start : start + config.rows]])
            state = backbone.run_to_split(batch, min(map(backbone.layer_index, config.layers)))
            with torch.no_grad(), trace([backbone.attention(layer).module for layer in config.layers]) as records:
                backbone.run_from_split(state, positions=torch.zeros_like(state.labels, dtype=torch.bool))
            for layer, record in zip(config.layers, records, strict=True):
                found[str(layer)].append(state.prefill().at_prompt_last(record.input).float())
            progress("reading texts", start + len(batch), len(texts))
        return {layer: torch.cat(parts).mean(dim=0) for layer, parts in found.items()}, None

    of_texts, _ = work.once("texts", [config.layers, texts], read)
    return {layer: (of_triplets[layer] + of_texts[str(layer)]) / 2 for layer in config.layers}


# ---------------------------------------------------------------------- learning


def learn(
    site: AttentionSite,
    triplets: Sequence[Triplet],
    states: States,
    mean: Tensor,
    config: PrepareConfig,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train a layer's encoders, and find what follows from them in closed form.

    Args:
        site: The layer's attention.
        triplets: T.
        states: Of the layer.
        mean: ``[D]``, of attention inputs.
        config: Settings.
        progress: Called with epochs, done and at most to come.

    Returns:
        The tensors of a `LayerKnowledge`, and losses and accuracies.
    """
    device = site.o_proj.weight.device
    states = {name: tensor.to(device) for name, tensor in states.items()}
    states |= {f"out_{side}": as_attention_output(site, states[f"h_{side}"]) for side in ("pos", "neg")}
    epochs = iter(range(1, 4 * config.max_epochs + 1))

    def tick(_: int) -> None:
        progress(next(epochs), 4 * config.max_epochs)

    f, g, held_out, report = train_both([each.image_hash for each in triplets], states, config, tick)
    f_pos, f_neg, g_pos, g_neg = encode(f, g, states)
    accuracy = retrieval_accuracy(states["raw_sem"][held_out], g_pos[held_out])
    report["retrieval"] = {"g": round(accuracy, 4), "n": int(held_out.sum())}
    try:
        report["probe"] = probe(triplets, states, config, tick)
    except UnikeError:  # a few triplets make a memory, but no test
        report["probe"] = {"h": None, "f": None, "g": None, "n": 0, "answers": 0}

    written = states["written_pos"] - states["written_neg"]
    known = LayerKnowledge(
        **{name: states[name][: config.keep] for name in ("h_sem", "h_pos", "h_neg", "raw_pos")},
        mean=mean,
        truthfulness=f,
        semantic=g,
        w_zeta=fit_w_zeta(f_pos - f_neg, written, config.ridge),
        zeta=zeta(f_pos, f_neg),
        w_semantic=fit_w_zeta(g_pos - g_neg, written, config.ridge),
        semantic_zeta=zeta(g_pos, g_neg),
        ffn_norm=states["written_pos"].norm(dim=1).mean(),
    )
    return known.rounded(DTYPES[config.store_dtype]).tensors(), report


def train_both(
    images: Sequence[str], states: States, config: PrepareConfig, tick: Callable[[int], None]
) -> tuple[Encoder, Encoder, Tensor, dict[str, Any]]:
    """``f`` by Eq. 4 on the states behind answers, ``g`` by Eq. 5 on what attention makes of them.

    Returns:
        ``f``, ``g``, which triplets were held out (``[T]`` bool, whole pictures), and the losses.

    Note:
        The paper gives ``h_pos`` and ``h_neg`` to ``g`` too, but then applies it to ``h_know`` and compares that with
        ``h_input[p]`` (Eq. 7), which are attention outputs. So here ``g`` learns where it is used: it reads ``W_o W_v
        h_pos``, all that attention to one entry can return, and its anchors are attention outputs at ``p``.
    """
    held_out = hold_out(images, seed=config.seed).to(states["h_pos"].device)
    width = states["h_pos"].shape[1]

    def train(
        out: int, loss: Callable[..., Tensor], answers: Sequence[Tensor], anchors: Sequence[Tensor] = ()
    ) -> tuple[Encoder, list[Epoch]]:
        encoder = Encoder(width, config.hidden, out, seed=config.seed).to(held_out.device)
        return train_encoder(
            encoder.standardise(torch.cat([each[~held_out] for each in answers])),
            loss,
            [*anchors, *answers],
            held_out,
            lr=config.lr,
            batch=config.batch,
            max_epochs=config.max_epochs,
            patience=config.patience,
            seed=config.seed,
            progress=tick,
        )

    f, f_history = train(
        config.truth_width,
        lambda f, pos, neg: truthfulness_loss(f(pos), f(neg), config.tau),
        [states["h_pos"], states["h_neg"]],
    )
    g, g_history = train(
        width,
        lambda g, sem, pos, neg: semantic_loss(sem, g(pos), g(neg), config.tau),
        [states["out_pos"], states["out_neg"]],
        [states["raw_sem"]],
    )
    return f, g, held_out, {"truthfulness": summary(f_history), "semantic": summary(g_history)}


def summary(history: Sequence[Epoch]) -> dict[str, Any]:
    """The losses before training and at the epoch that was kept."""
    best = min(range(len(history)), key=lambda epoch: history[epoch].held_out)
    before, kept = history[0], history[best]
    return {
        "epoch": best,
        "train": [round(before.train, 4), round(kept.train, 4)],
        "held_out": [round(before.held_out, 4), round(kept.held_out, 4)],
    }


@torch.no_grad()
def encode(f: Encoder, g: Encoder, states: States) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``f(h_pos), f(h_neg), g(h_pos), g(h_neg)``."""
    return f(states["h_pos"]), f(states["h_neg"]), g(states["out_pos"]), g(states["out_neg"])


def probe(
    triplets: Sequence[Triplet], states: States, config: PrepareConfig, tick: Callable[[int], None]
) -> dict[str, Any]:
    """Whether true answers differ from false ones linearly, on answers that neither probe nor encoder has seen.

    The encoders are trained anew without these answers: those that are kept have seen them all.

    Returns:
        Accuracies on raw states, ``f``'s and ``g``'s output, and the numbers of states and of answers tested.

    Raises:
        UnikeError: There are too few different answers, or pictures.
    """
    split = split_by_answer(
        [normalise(each.positive) for each in triplets],
        [normalise(each.negative) for each in triplets],
        seed=config.seed,
    )
    seen = split.train.nonzero()[:, 0].tolist()
    f, g, _, _ = train_both(
        [triplets[i].image_hash for i in seen], {name: t[seen] for name, t in states.items()}, config, tick
    )
    f_pos, f_neg, g_pos, g_neg = encode(f, g, states)
    found = {"h": (states["h_pos"], states["h_neg"]), "f": (f_pos, f_neg), "g": (g_pos, g_neg)}
    accuracies = {name: probe_accuracy(*pair, split) for name, pair in found.items()}
    return {name: round(accuracy, 4) for name, (accuracy, _) in accuracies.items()} | {
        "n": accuracies["h"][1],
        "answers": split.n_tested,
    }


# ---------------------------------------------------------------------- the gate


def find_gate(
    backbone: Backbone,
    cases: Sequence[EditCase],
    guard: LeakGuard,
    work: Work,
    config: PrepareConfig,
    progress: Progress,
) -> tuple[Gate | None, dict[str, Any]]:
    """Calibrate the gate at each layer where it may be read, and take the one that tells inputs apart best.

    Returns:
        The gate, and, for each layer, how well it does (see `separation`), on the cases it was calibrated on. None
        where there are no cases, or these have no rephrasings or nothing that is to stay as it is.
    """
    clean = [case for case in cases if not any(guard.leak(query) for query in every_query([case]))]
    chosen = [clean[i] for i in evenly(len(clean), config.gate_cases)]
    kinds = {probe.kind for case in chosen for probe in case.probes}
    if not all(kinds & set(needed) for needed in (RELATED, OTHER_FACTS)):
        return None, {}
    layers = gate_layers(backbone, config)
    every = [(i, kind, query) for i, case in enumerate(chosen) for kind, query in kinds_of(case)]
    pictured, bare = ([each for each in every if (each[2].image is None) is without] for without in (False, True))
    batches = [
        some[start : start + config.rows] for some in (pictured, bare) for start in range(0, len(some), config.rows)
    ]
    asked = [each for batch in batches for each in batch]  # some families cannot mix the two in one batch
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for done, batch in enumerate(batches, 1):
        made_from = [
            layers,
            [(query.prompt, query.image and guard.hashes[query.image].content) for _, _, query in batch],
        ]
        read = partial(read_prompts, backbone, [query for _, _, query in batch], layers)
        tensors, _ = work.once(f"gate-{done:05}", made_from, read)
        for layer in layers:
            states[layer].append(tensors[str(layer)])
        progress("reading probes", done, len(batches))

    gates = {}
    for layer in layers:
        keys, probes = by_kind(asked, torch.cat(states[layer]))
        gate = calibrate(layer, keys, probes, config.gate_error)
        gates[layer] = (separation(gate, keys, probes), gate)
    best = max(gates, key=lambda layer: gates[layer][0])
    separated = {str(layer): round(value, 4) for layer, (value, _) in gates.items()}
    return gates[best][1], {"cases": len(chosen), "layer": best, "separation": separated}


def gate_layers(backbone: Backbone, config: PrepareConfig) -> list[int]:
    """Where the gate may be read, counted from 0, none above the lowest edited layer."""
    lowest = min(map(backbone.layer_index, config.layers))
    if config.gate_layers is not None:
        chosen = sorted({backbone.layer_index(layer) for layer in config.gate_layers})
        if any(layer > lowest for layer in chosen):
            raise UnikeError(f"gate_layers: layer {chosen[-1]} is above the lowest edited layer, {lowest}")
        return chosen
    deepest = min(lowest, round(0.6 * backbone.n_layers))
    return sorted({round(deepest + (lowest - deepest) * part / 4) for part in range(5)})


def kinds_of(case: EditCase) -> list[tuple[str, Query]]:
    """The queries of a case with what they are to it."""
    return [("edit", case.edit), *((probe.kind, probe.query) for probe in case.probes)]


@torch.no_grad()
def read_prompts(backbone: Backbone, queries: Sequence[Query], layers: Sequence[int]) -> tuple[dict[str, Tensor], None]:
    """Attention inputs at ``p`` of some layers, ``[B, D]`` fp32 each."""
    batch = backbone.encode([replace(query, target=None) for query in queries])
    with trace([backbone.attention(layer).module for layer in layers], stop="input", prepend=True) as records:
        backbone.forward(batch)
    prefill = batch.prefill()
    return {
        str(layer): prefill.at_prompt_last(record.input).float() for layer, record in zip(layers, records, strict=True)
    }, None


def by_kind(asked: Sequence[tuple[int, str, Query]], states: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """States of edits, ``[C, D]``, and of each kind of probe with the cases they belong to."""
    kinds = [kind for _, kind, _ in asked]
    cases = torch.tensor([case for case, _, _ in asked])
    found = {}
    for kind in sorted(set(kinds)):
        rows = torch.tensor([i for i, each in enumerate(kinds) if each == kind])
        found[kind] = (cases[rows], states[rows])
    return found.pop("edit")[1], found
