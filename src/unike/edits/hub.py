"""Edits on the Hugging Face hub: a repository has the two files of an edit's folder, and a card for people.

Of a repository exactly those two files are read, `SAVED` holds them against their seal, and nothing in it is run. What
leaves this machine names no place on it: pictures go by their files' names, models by their folders'.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unike.core.errors import UnikeError
from unike.core.files import file_hash, read_file
from unike.core.folders import given_folder
from unike.core.version import __version__
from unike.edits.card import REPO, Check, card
from unike.edits.edit import Edit
from unike.edits.files import CONFIG_FILE, SAVED, TENSOR_FILE, is_hash, write

SCHEME = "hf://"

CARD, PICTURE = "README.md", "picture"
"""What is in a repository for people alone: the card, and pictures called ``picture-0.png``."""

ALWAYS_THERE = {".gitattributes", CARD}
"""What a repository without anything in it may have."""


@dataclass(frozen=True)
class HubName:
    """An edit on the hub.

    Args:
        repo: ``organisation/name``.
        revision: A branch, tag or commit; None for the newest.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return SCHEME + self.repo + (f"@{self.revision}" if self.revision else "")


def api() -> Any:
    """The client of the hub. All that is asked of it is asked through this one."""
    from huggingface_hub import HfApi

    return HfApi(library_name="unike", library_version=__version__)


# ---------------------------------------------------------------------- names


def is_on_the_hub(name: str) -> bool:
    """Whether a name begins as those of the hub do."""
    return name.startswith(SCHEME)


def hub_name(name: str) -> HubName:
    """``hf://organisation/name[@revision]``, or the same without ``hf://``.

    Raises:
        UnikeError: It is something else.
    """
    repo, at, revision = name.removeprefix(SCHEME).partition("@")
    if not REPO.fullmatch(repo) or (at and not revision):
        raise UnikeError(
            f"{name!r} is no edit on the hub; write hf://organisation/name or hf://organisation/name@revision"
        )
    return HubName(repo, revision or None)


def located(name: str | Path, revision: str | None = None) -> Path:
    """The folder of an edit: one on this machine, or what the hub has under a name, fetched.

    Args:
        name: A folder; ``hf://organisation/name[@revision]``; or ``organisation/name``, where a folder of that name
            wins. A `Path` is never looked for on the hub.
        revision: Of an edit on the hub; None for the one that the name says.

    Raises:
        UnikeError: The hub does not have it, cannot be reached, or does not give it.
    """
    if not _means_the_hub(name):
        if revision is not None:
            raise UnikeError(
                f"{name} is a folder, which has no revisions; leave the revision out, or name it on the hub"
            )
        return given_folder(name)
    found = hub_name(str(name))
    if revision is not None and found.revision not in (None, revision):
        raise UnikeError(f"{found} names one revision, and {revision!r} is another; give one of them")
    otherwise = "" if is_on_the_hub(str(name)) else "; and there is no such folder"
    return fetched(replace(found, revision=revision or found.revision), otherwise)


def _means_the_hub(name: Any) -> bool:
    if not isinstance(name, str) or is_on_the_hub(name):
        return isinstance(name, str)
    return REPO.fullmatch(name.partition("@")[0]) is not None and not Path(name).exists()


def fetched(name: HubName, otherwise: str = "") -> Path:
    """The folder in the hub's cache that has the two files of an edit.

    Args:
        name: Of the edit.
        otherwise: What else to say if it fails.

    Raises:
        UnikeError: As `located`.
    """
    with asking(f"cannot get {name}", otherwise):
        folder = Path(
            api().snapshot_download(
                repo_id=name.repo, revision=name.revision, allow_patterns=[CONFIG_FILE, TENSOR_FILE]
            )
        )
    if not SAVED.lies_in(folder):
        raise UnikeError(f"{name} is no edit: it has no {CONFIG_FILE}{otherwise}")
    return folder


# ---------------------------------------------------------------------- pushing


def push(
    edit: Edit,
    repo: str,
    *,
    private: bool = False,
    with_pictures: bool = False,
    checks: Sequence[Check] = (),
    message: str | None = None,
) -> str:
    """Write an edit to a repository in one commit, which is made if it is not there; one that is there is replaced.

    Args:
        edit: The edit.
        repo: ``organisation/name``.
        private: Whether a new repository is.
        with_pictures: Whether the files of the pictures go along, as they are, for people to look at.
        checks: What was answered, for the card.
        message: Of the commit.

    Returns:
        Where the hub shows it.

    Raises:
        UnikeError: The repository holds something else, a picture is not the one that was edited, or the hub refuses.
    """
    name = hub_name(repo)
    if name.revision:
        raise UnikeError(f"an edit is pushed to the repository itself; leave @{name.revision} out")
    pictures = pictures_of(edit) if with_pictures else {}
    shared = portable(edit)
    with tempfile.TemporaryDirectory(prefix="unike-push-") as folder, asking(f"cannot push to {name.repo}"):
        place = Path(folder) / "edit"
        write(shared, place)
        (place / CARD).write_text(card(shared, SAVED.describe(place), name.repo, checks, list(pictures)), "utf-8")
        for file, content in pictures.items():
            (place / file).write_bytes(content)
        client = api()
        client.create_repo(name.repo, private=private, exist_ok=True)
        check_replaceable(client.list_repo_files(name.repo), name.repo)
        done = client.upload_folder(
            repo_id=name.repo,
            folder_path=place,
            commit_message=message or f"Edit: {edit.facts[0].prompt[:60]}",
            delete_patterns=[f"{PICTURE}-*"],
        )
    return str(getattr(done, "commit_url", None) or done)


def check_replaceable(files: Sequence[str], repo: str) -> None:
    """Refuse a repository of something else, as `replace_folder` does a folder.

    Raises:
        UnikeError: With a file that it has.
    """
    others = sorted(set(files) - ALWAYS_THERE)
    if others and CONFIG_FILE not in others:
        raise UnikeError(f"{repo} is there and holds something else ({others[0]}); choose another name")


def portable(edit: Edit) -> Edit:
    """The same edit without names of places on this machine."""
    facts = [fact if fact.image is None else replace(fact, image=Path(fact.image.name)) for fact in edit.facts]
    config = edit.config.model_copy(update=dict.fromkeys(edit.config.PLACES))
    published = REPO.fullmatch(edit.source) and not Path(edit.source).exists()
    source = edit.source if published else Path(edit.source).name
    same = type(edit)(config, edit.tensors, facts, fingerprint=edit.fingerprint, source=source)
    same.questions = edit.questions
    return same


def pictures_of(edit: Edit) -> dict[str, bytes]:
    """The files of an edit's pictures, by what a repository calls them.

    Raises:
        UnikeError: One is not there, or no longer what was edited.
    """
    found = {}
    for number, (fact, (_, known)) in enumerate(zip(edit.facts, edit.questions, strict=True)):
        if fact.image is None:
            continue
        try:
            if is_hash(known) and file_hash(fact.image) != known:
                raise UnikeError(f"{fact.image} is not the picture that was edited; leave pictures out, or put it back")
            found[f"{PICTURE}-{number}{fact.image.suffix.lower()}"] = read_file(fact.image)
        except OSError as error:
            raise UnikeError(
                f"cannot read {fact.image}: {error.strerror}; leave pictures out, or put it back"
            ) from None
    return found


# ---------------------------------------------------------------------- errors


@contextmanager
def asking(what: str, otherwise: str = "") -> Iterator[None]:
    """Turn the many ways in which the hub fails into one line for the user.

    Args:
        what: Cannot be done: ``"cannot get hf://a/b"``.
        otherwise: Put behind the reason.

    Raises:
        UnikeError: It failed.
    """
    try:
        yield
    except UnikeError:
        raise
    except Exception as error:  # the hub's own, and those of its HTTP client, which is another in each version
        raise UnikeError(f"{what}: {why(error)}{otherwise}") from error


def why(error: Exception) -> str:
    """What an error of the hub means, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # nothing is in the cache either; this is why the hub gave nothing
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it"
    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated; ask for access on its page, and log in: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such repository, or does not show it to you; check the name, or log in: hf auth login"
    if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        return "the hub does not let you; log in with a token that may: hf auth login"
    if status is not None:
        return f"the hub answers with status {status}"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, ValueError):
        return first
    return f"the hub cannot be reached ({first}); check the connection"
