"""What a layer's states teach: two encoders (Eq. 4, 5), and what follows from them in closed form (zeta of Eq. 6)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unike.backbones.loading import DTYPES
from unike.backbones.sites import AttentionSite
from unike.core.errors import UnikeError
from unike.data.matching import normalise
from unike.data.sampling import hold_out
from unike.editors.unike.knowledge import LayerKnowledge, Triplet, as_attention_output
from unike.editors.unike.prepare.config import PrepareConfig
from unike.editors.unike.prepare.probe import probe_accuracy, retrieval_accuracy, split_by_answer
from unike.editors.unike.prepare.states import States
from unike.editors.unike.prepare.train import Epoch, best_epoch, train_encoder
from unike.editors.unike.spaces import Encoder, fit_w_zeta, semantic_loss, truthfulness_loss, zeta


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

    f, g, held_out, report = train_both([triplet.image.content for triplet in triplets], states, config, tick)
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
            encoder.standardise(torch.cat([states_behind[~held_out] for states_behind in answers])),
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
    best = best_epoch(history)
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
        [normalise(triplet.positive) for triplet in triplets],
        [normalise(triplet.negative) for triplet in triplets],
        seed=config.seed,
    )
    seen = split.train.nonzero()[:, 0].tolist()
    f, g, _, _ = train_both(
        [triplets[i].image.content for i in seen], {name: t[seen] for name, t in states.items()}, config, tick
    )
    f_pos, f_neg, g_pos, g_neg = encode(f, g, states)
    spaces = {"h": (states["h_pos"], states["h_neg"]), "f": (f_pos, f_neg), "g": (g_pos, g_neg)}
    accuracies = {name: probe_accuracy(*pair, split) for name, pair in spaces.items()}
    return {name: round(accuracy, 4) for name, (accuracy, _) in accuracies.items()} | {
        "n": accuracies["h"][1],
        "answers": split.n_tested,
    }
