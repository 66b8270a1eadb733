"""Speed and memory of edits of models with billions of weights.

    python benchmarks/large_models.py --size 7b --out benchmarks/results/large_models_7b.json
    python benchmarks/large_models.py --size tiny --repeat 1

The models have the published configs and random weights, made on the device in the dtype they are used in, because what
an edit costs does not depend on what the weights are. The knowledge that `unike` reads is random too, with as many
triplets as that of `mini`. ``7b`` is MiniGPT-4 (EVA ViT-g, Q-Former, LLaMA-7B), ``2.7b`` is BLIP-2-OPT-2.7B, and
``tiny`` is for trying the script out.

Edits are made as they are, and with full forwards (see `edit_speed.py`). Probes are questions that are asked under an
edit, teacher-forced: replayed from stored states, and with full forwards. Peak memory, weights included, is that of an
edit, and that of answering the same questions; it is measured on CUDA devices only and null elsewhere.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from edit_speed import full_forwards
from PIL import Image
from rich.progress import track
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    BlipImageProcessorPil,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

import unike
from unike.backbones.convert import minigpt4
from unike.backbones.families.blip2 import Blip2
from unike.backbones.forward.context import SEEN
from unike.backbones.forward.functional import target_positions
from unike.backbones.loading import DTYPES, resolve_device
from unike.data.leaks import ImageHashes
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.editors.unike.gate import Gate, RisingRamp
from unike.editors.unike.knowledge import Knowledge, LayerKnowledge, Triplet
from unike.editors.unike.metric import Metric
from unike.editors.unike.prepare.config import PrepareConfig
from unike.editors.unike.spaces import Encoder

WORDS = [f"w{number}" for number in range(200)]
LAYERS = (-4, -3, -2, -1)
TRIPLETS = 1810
PROBES = 32


# ---------------------------------------------------------------------- a model of random weights


def tokenizer() -> Any:
    """A token a word, so that prompts are about as long as with the published vocabularies."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<image>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=["<image>"], **names)


def config(size: str) -> Blip2Config:
    """The published config of a size; what is not named here is the default of its class."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if size == "7b":
        return Blip2Config(
            text_config=LlamaConfig(**ids).to_dict(), image_token_index=3, prompt_template=minigpt4.TEMPLATE
        )
    if size == "2.7b":
        wide = {"hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240}
        text = OPTConfig(vocab_size=50304, **wide, num_hidden_layers=32, num_attention_heads=32, **ids)
        return Blip2Config(text_config=text.to_dict(), image_token_index=3)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    return Blip2Config(
        vision_config=small,
        qformer_config=small,
        text_config=LlamaConfig(**small, vocab_size=len(WORDS) + 5, **ids).to_dict(),
        image_token_index=3,
        prompt_template=minigpt4.TEMPLATE,
    )


def build(size: str, device: torch.device, dtype: torch.dtype) -> Blip2:
    """A backbone whose weights were never anywhere but on the device, and never in another dtype."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config(size), dtype=dtype)
    processor = BlipImageProcessorPil(size={"height": 224, "width": 224})
    return Blip2(model.to(device), tokenizer(), processor, source=f"random-{size}")


def queries(folder: Path, count: int, seed: int) -> list[Query]:
    """Facts about pictures of noise, in questions of eight words and answers of two."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        pixels = torch.randint(0, 256, (224, 224, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(picture := folder / f"{seed}-{number}.png")
        words = [WORDS[i] for i in torch.randint(0, len(WORDS), (10,), generator=generator).tolist()]
        made.append(Query(" ".join(words[:8]), picture, " ".join(words[8:])))
    return made


def knowledge(model: Blip2) -> Knowledge:
    """Random, of the sizes that `unike prepare` makes by default."""
    generator, width, sizes = torch.Generator().manual_seed(0), model.width, PrepareConfig()

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    layers = {
        layer: LayerKnowledge(
            h_sem=draw(TRIPLETS, width),
            h_pos=draw(TRIPLETS, width),
            h_neg=draw(TRIPLETS, width),
            raw_pos=draw(TRIPLETS, width),
            mean=draw(width),
            truthfulness=Encoder(width, sizes.hidden, sizes.truth_width),
            semantic=Encoder(width, sizes.hidden, width),
            w_zeta=draw(width, sizes.truth_width),
            zeta=draw(sizes.truth_width),
            w_semantic=draw(width, width),
            semantic_zeta=draw(width),
            ffn_norm=torch.tensor(1.0),
        )
        for layer in LAYERS
    }
    metric = Metric(draw(SEEN * width), torch.eye(2 * width)[:, :256], draw(SEEN * width, 256))
    cohort = torch.nn.functional.normalize(draw(64, metric.width), dim=1)
    gate = Gate(metric, cohort, RisingRamp(low=(0.1,), high=(0.15,)))
    triplets = [Triplet(f"{i}", ImageHashes(f"{i:016x}", "0f" * 96), "this", "that") for i in range(TRIPLETS)]
    made_for = {"source": model.source, "fingerprint": model.fingerprint()}
    made_for |= {"template": model.template, "n_layers": model.n_layers}
    return Knowledge(layers, triplets, {"unike": "0", "backbone": made_for, "dtype": "float16", "seed": 0}, gate)


# ---------------------------------------------------------------------- measuring


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak(device: torch.device, work: Callable[[], Any]) -> int | None:
    """The most bytes that were in use meanwhile."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)


def measure_edits(model: Blip2, editor: Any, facts: list[Query], repeat: int) -> dict[str, Any]:
    device = model.device
    answering = peak(device, lambda: model.generate(facts))
    editing = peak(device, lambda: editor.edit(model, facts))  # which also warms up
    split, full = [], []
    for _ in track(range(repeat), description=f"batches of {len(facts)}"):
        split.append(seconds(device, lambda: editor.edit(model, facts)))
        with full_forwards(model):
            full.append(seconds(device, lambda: editor.edit(model, facts)))
    took, whole = statistics.median(split), statistics.median(full)
    return {
        "batch": len(facts),
        "seconds": round(took, 4),
        "edits_per_second": round(len(facts) / took, 2),
        "seconds_with_full_forwards": round(whole, 4),
        "ratio": round(whole / took, 2),
        "peak_gb": editing and round(editing / 1e9, 3),
        "peak_gb_of_answering": answering and round(answering / 1e9, 3),
        "peak_ratio": editing and answering and round(editing / answering, 3),
    }


@torch.no_grad()
def measure_probes(model: Blip2, editor: Any, fact: Query, probes: list[Query], repeat: int) -> dict[str, Any]:
    batch = model.encode(probes)
    state = model.run_to_split(batch, editor.lowest_layer(model))
    if editor.keeps_prefix:
        state = model.shorten(state)
    positions = target_positions(state.labels)
    with editor.edit(model, fact).attached(model):
        model.run_from_split(state, positions)  # warm up
        replayed = [seconds(model.device, lambda: model.run_from_split(state, positions)) for _ in range(repeat)]
        full = [seconds(model.device, lambda: model.forward(batch)) for _ in range(repeat)]
    took, whole = statistics.median(replayed), statistics.median(full)
    return {
        "batch": len(probes),
        "tokens": batch.labels.shape[1],
        "probes_per_second": round(len(probes) / took, 1),
        "with_full_forwards": round(len(probes) / whole, 1),
        "ratio": round(whole / took, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "2.7b", "7b"], default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bfloat16, on the CPU float32")
    parser.add_argument("--steps", type=int, default=10, help="of an edit")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = resolve_device(args.device)
    dtype = DTYPES[args.dtype or ("float32" if device.type == "cpu" else "bfloat16")]

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = build(args.size, device, dtype)
        knowledge(model).save_pretrained(folder / "knowledge")
        facts, probes = (queries(folder, count, seed) for seed, count in enumerate([max(args.batches), PROBES]))
        settings = {"steps": args.steps, "layers": LAYERS, "knowledge": str(folder / "knowledge")}
        editor = unike.make_editor("unike", anchors=Anchors(queries(folder, 16, seed=2)), **settings)
        editor.prepare(model)
        rows = [measure_edits(model, editor, facts[:batch], args.repeat) for batch in args.batches]
        probing = measure_probes(model, editor, facts[0], probes, args.repeat)

    report = {
        "model": f"{args.size}, random weights",
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(model.dtype),
        "torch": torch.__version__,
        "editor": {"name": "unike", "config": editor.config.model_dump(mode="json", exclude={"knowledge"})},
        "repeat": args.repeat,
        "edits": rows,
        "probes": probing,
    }
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
