"""Fixtures every test may use: pictures on disk, a tiny model of every family there is, and what each "knows"."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from matrix import FEW, STACKS, TRAINED, held_later
from PIL import Image
from tinies import TINIES
from torch.nn.functional import normalize

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.folders import replace_folder
from unike.data.leaks import ImageHashes
from unike.data.queries import Query
from unike.editors.ke.conditioned_update import ConditionedUpdates
from unike.editors.trained.artifact import Trained
from unike.editors.trained.base import TrainedEditor
from unike.editors.unike.gate import Gate, RisingRamp
from unike.editors.unike.knowledge import Knowledge, LayerKnowledge, Triplet
from unike.editors.unike.metric import Metric
from unike.editors.unike.spaces import Encoder

TRIPLETS = 12

GATE_WIDTH = 12
"""Numbers of a picture behind a gate's metric."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three RGB pictures of different sizes and shapes, full of detail."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for number, (height, width) in enumerate([(40, 40), (30, 50), (48, 32)]):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels.numpy()).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def facts(pictures: list[Path]) -> list[Query]:
    """Prompts and targets of different lengths."""
    return [
        Query("What is this?", pictures[0], "a cat"),
        Query("Which colour has the thing in the middle of it?", pictures[1], "red"),
        Query("Who?", pictures[2], "bob"),
    ]


@pytest.fixture(scope="session", params=held_later(sorted(TINIES), str))
def make_backbone(request: pytest.FixtureRequest) -> Callable[..., Backbone]:
    """A function ``(seed=0) -> Backbone`` for each tiny model of each family."""
    return TINIES[request.param]


@pytest.fixture(scope="session")
def backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    """Each tiny model in turn. Shared: a test that changes one must put it back."""
    return make_backbone()


# ---------------------------------------------------------------------- knowledge


def some_knowledge(
    backbone: Backbone,
    *,
    layers: Sequence[int] = (-4, -3, -2, -1),
    about: tuple[float, float] = (-1.5, 0.2),
    seed: int = 0,
) -> Knowledge:
    """Random knowledge that fits a tiny model, stored in fp32.

    The ramp of pictures, unless another is given, is so wide that it is 1 for an edit's own picture and something
    between 0 and 1 for every other. What is asked is read as ever; `ramps.wide_words` makes that as wide.
    """
    generator, apart = (torch.Generator().manual_seed(seed + number) for number in (1, 1000))
    width, truth_width = backbone.width, 5

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def layer() -> LayerKnowledge:
        return LayerKnowledge(
            h_sem=draw(TRIPLETS, width),
            h_pos=2 * draw(TRIPLETS, width),
            h_neg=draw(TRIPLETS, width),
            raw_pos=draw(TRIPLETS, width),
            mean=0.3 * draw(width),
            truthfulness=Encoder(width, 7, truth_width, seed=seed),
            semantic=Encoder(width, 7, width, seed=seed + 1),
            w_zeta=draw(width, truth_width),
            zeta=draw(truth_width),
            w_semantic=draw(width, width),
            semantic_zeta=draw(width),
            ffn_norm=torch.tensor(2.5),
        )

    mean, spread = seen_by(backbone)
    maps = (torch.randn(n, GATE_WIDTH // 2, generator=apart) / spread[:n].unsqueeze(1) for n in (2 * width, len(mean)))
    cohort = normalize(torch.randn(20, GATE_WIDTH, generator=apart), dim=1)
    gate = Gate(Metric(mean, *maps), cohort, RisingRamp(*((end,) for end in about)))
    triplets = tuple(
        Triplet(f"What is {i}?", ImageHashes(f"{i:016x}", "0f" * 96), "this", f"that {i}") for i in range(TRIPLETS)
    )
    made_for = {"source": backbone.source, "fingerprint": backbone.fingerprint()}
    made_for |= {"template": backbone.template, "n_layers": backbone.n_layers}
    description = {"unike": "0", "backbone": made_for, "dtype": "float32", "seed": seed}
    return Knowledge({i: layer() for i in layers}, triplets, description, gate)


def seen_by(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread, ``[S]`` each, of what a tiny model sees in some pictures."""
    with TemporaryDirectory() as folder:
        painted = [paint(Path(folder) / f"{seed}.png", (32, 32), seed) for seed in range(100, 106)]
        seen = backbone.run_to_split(backbone.encode([Query("?", path) for path in painted]), 0).pictures
    assert seen is not None
    return seen.mean(dim=0), seen.std(dim=0) + 1e-3


def paint(path: Path, size: tuple[int, int], seed: int) -> Path:
    """A picture of noise."""
    pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


@pytest.fixture(scope="session")
def make_knowledge() -> Callable[..., Knowledge]:
    """`some_knowledge`."""
    return some_knowledge


NETWORK_SETTINGS: dict[str, dict[str, Any]] = {
    "mend": {"layers": (-2, -1), "rank": 8, "step_size": 0.7},
    "serac": {"n_layers": 2, "finetune_encoder": False},
    "ke": {"layers": (-2, -1), "max_scale": 2.0},
}
"""Of networks for tiny models: small, and with an effect although nobody has trained them. A text encoder of SERAC's
own would be 90 MB for each; `unit/test_serac_encoder.py` has a small one."""


def some_network(editor: str, backbone: Backbone, seed: int = 0) -> Trained:
    """A new network of an editor for a tiny model, as training would leave it."""
    method: TrainedEditor[Any] = registry.editors.get(editor)()
    settings = method.network_settings(**NETWORK_SETTINGS.get(editor, {}))
    network = method.build(backbone, settings, seed)
    if isinstance(network, ConditionedUpdates):
        for conditioned in network.conditioned.values():
            descend(conditioned)
    description = {
        "editor": editor,
        "backbone": {"source": backbone.source, "fingerprint": backbone.fingerprint()},
        "network": settings.model_dump(mode="json"),
        "sources": [],
    }
    return Trained(description, network.state_dict())


@torch.no_grad()
def descend(conditioned: Any, step_size: float = 0.7) -> None:
    """Let KE's update of a matrix be a step along the gradient, as MEND's is when it is new."""
    reads, writes = conditioned.sizes[:2]
    conditioned.outer.bias[:reads] = -step_size * writes  # times an even softmax of a half


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for ``UNIKE_HOME``: knowledge of every tiny model, and networks for those that need them."""
    folder = tmp_path_factory.mktemp("home")
    for name, make in TINIES.items():
        backbone = make()
        some_knowledge(backbone).save_pretrained(folder / "knowledge" / backbone.fingerprint())
        for editor in TRAINED if name in {*FEW, *STACKS} else ():
            network = folder / "trained" / editor / backbone.fingerprint()
            replace_folder(network, some_network(editor, backbone).files(), known_by="trained.json")
    return folder


@pytest.fixture(scope="module")
def at_home(home: Path) -> Iterator[None]:
    """Let the tiny models find their knowledge, also in processes that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIKE_HOME", str(home))
        yield
