"""From cases to knowledge: every stage in order, and the folder that comes of it (section 3.3, Appendix C).

All of it happens in stages whose results are kept in ``.work`` of the folder to be, see
`unike.editors.unike.prepare.work`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.folders import WORK, check_folder, replace_folder
from unike.core.progress import Progress, silent
from unike.core.version import __version__
from unike.data.leaks import LeakGuard
from unike.data.provenance import describe_data, every_query
from unike.data.queries import EditCase
from unike.editors.unike.knowledge import CONFIG_FILE, SAVED, Knowledge, LayerKnowledge, Triplet
from unike.editors.unike.prepare.candidates import find_candidates, text_questions
from unike.editors.unike.prepare.collect import collect, kept_first
from unike.editors.unike.prepare.config import PrepareConfig
from unike.editors.unike.prepare.gate import find_gate
from unike.editors.unike.prepare.learn import learn
from unike.editors.unike.prepare.states import States, read_means, read_states
from unike.editors.unike.prepare.work import Work


def prepare(
    backbone: Backbone,
    cases: Sequence[EditCase],
    out: Path,
    config: PrepareConfig | None = None,
    *,
    against: Sequence[EditCase] = (),
    scope: Sequence[EditCase] | None = None,
    tags: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Knowledge:
    """Collect what a backbone answers wrongly, and learn from it.

    Args:
        backbone: Without edits.
        cases: Of a train split: their edits are the candidates.
        out: The folder to write; what an earlier run left there is used, and read if it is the very same.
        config: Settings.
        against: What will be evaluated on: nothing that shares a picture or a telling question with it is learned from.
        scope: Cases whose pictures the gate is made from, of a train split, too; None for ``cases``.
        tags: For ids of cases, why a wrong answer to them is wrong (Appendix C, Figure 6).
        progress: Told about every stage.

    Returns:
        The knowledge, as it was written.

    Raises:
        UnikeError: The folder holds something else, a setting does not fit, or too little is left to learn from.
    """
    config = config or PrepareConfig()
    check_layers(backbone, config)
    check_place(out)
    if is_prepared(out, backbone.source, cases, config, against=against, scope=scope):
        return read_prepared(out, backbone)

    work = Work(out, backbone, config, progress)
    every = every_query([*cases, *(scope or ())])
    guard = LeakGuard(every_query(against), every, partial(progress, "reading pictures"))
    candidates, dropped = find_candidates(cases, guard, tags or {})
    mistakes, answers = collect(work, candidates)
    mistakes = kept_first(mistakes, config.keep)
    triplets, texts = tuple(mistake.triplet for mistake in mistakes), text_questions(cases, against)
    states, tokens = read_states(work, mistakes)
    layers, learned = learn_layers(work, triplets, texts, states, read_means(work, texts, states))
    gate, opened = find_gate(work, cases if scope is None else scope, guard)

    described = describe(backbone, describe_cases(cases, against, scope), config) | {
        "report": {
            "candidates": {"cases": len(cases), "dropped": dropped, "left": len(candidates)},
            "answers": answers,
            "tags": dict(Counter(triplet.tag or "untagged" for triplet in triplets)),
            "answer_tokens": tokens,
            "text_questions": len(texts),
            "layers": learned,
            "gate": opened,
        }
    }
    knowledge = Knowledge(layers, triplets, described, gate)
    replace_folder(out, knowledge.files(), known_by=WORK)
    return knowledge


def learn_layers(
    work: Work,
    triplets: Sequence[Triplet],
    texts: Sequence[str],
    states: Mapping[int, States],
    means: Mapping[int, Tensor],
) -> tuple[dict[int, LayerKnowledge], dict[str, Any]]:
    """What every layer's states teach, and for each layer, by its name in JSON, losses and accuracies."""
    layers, learned = {}, {}
    for layer in work.config.layers:
        site, told = work.backbone.attention(layer), partial(work.progress, f"layer {layer}")
        tensors, learned[str(layer)] = work.once(
            f"layer{layer}",
            [texts, [triplet.values() for triplet in triplets], work.config.model_dump(mode="json")],
            partial(learn, site, triplets, states[layer], means[layer], work.config, told),
        )
        layers[layer] = LayerKnowledge.from_tensors(tensors)
    return layers, learned


# ---------------------------------------------------------------------- the folder


def describe_cases(
    cases: Sequence[EditCase], against: Sequence[EditCase], scope: Sequence[EditCase] | None
) -> dict[str, Any]:
    """What is learned from, and what is kept out of it, in a few bytes."""
    found = describe_data(cases, against)
    return found if scope is None else found | {"scope": describe_data(scope, ())["sha256"]}


def describe(backbone: Backbone, data: dict[str, Any], config: PrepareConfig) -> dict[str, Any]:
    """What knowledge is made from."""
    return {
        "unike": __version__,
        "backbone": {
            "source": backbone.source,
            "fingerprint": backbone.fingerprint(),
            "template": backbone.template,
            "chosen_template": backbone.chosen_template,
            "n_layers": backbone.n_layers,
        },
        "dtype": config.store_dtype,
        "config": config.model_dump(mode="json"),
        "data": data,
    }


def is_prepared(
    out: Path,
    source: str,
    cases: Sequence[EditCase],
    config: PrepareConfig,
    *,
    against: Sequence[EditCase] = (),
    scope: Sequence[EditCase] | None = None,
) -> bool:
    """Whether a folder holds the knowledge of a backbone called ``source`` with these settings; reads no tensors."""
    wanted = (source, config.model_dump(mode="json"), describe_cases(cases, against, scope))
    try:
        there = SAVED.describe(out)
    except UnikeError:
        return False
    return (there["backbone"]["source"], there.get("config"), there.get("data")) == wanted


def read_prepared(out: Path, backbone: Backbone) -> Knowledge:
    """The knowledge in a folder, if it is that of the backbone."""
    knowledge = Knowledge.from_pretrained(out)
    knowledge.check(backbone)
    return knowledge


def check_layers(backbone: Backbone, config: PrepareConfig) -> None:
    """Refuse a layer that the backbone lacks, or that has two names among the settings."""
    if len({backbone.layer_index(layer) for layer in config.layers}) < len(config.layers):
        raise UnikeError(f"layers={list(config.layers)} names a layer of {backbone.source} twice")


def check_place(out: Path) -> None:
    """Refuse a folder that is neither new nor knowledge, finished or begun."""
    check_folder(out, known_by=WORK if (out / WORK).is_dir() else CONFIG_FILE)
