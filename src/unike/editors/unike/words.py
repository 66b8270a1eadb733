"""What a question asks, and of whom: read from its words, by a sentence encoder and a network that was trained once.

The state of a decoder is a poor judge of wordings: it is led by how a question begins and ends. MiniLM, which ships, is
a better one, and better still behind a small network that was trained, contrastively, on wordings of some 500 kinds
of questions in many styles (``scripts/gate/words.py``). Nothing of it depends on the model that is edited.

- *What is asked*: the network's vector of the question, in which names are put out of sight: "What is the capital of
  Kenya?" and "What is the capital of Uganda?" ask the same.
- *Of whom*: rare words. Words are rare that hardly any question of the corpus has; they are compared by their trigrams,
  so that a long one that is misspelt counts in large part. A question is of whom an edit is of if it has the rare words
  of the edit's prompt, and names nobody else.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from unike.core.memo import Memo
from unike.editors.common.sentence_encoder import sentence_encoder
from unike.editors.unike.asked import LAYERS, LONGEST, AskedNetwork, padded

ROWS = 256
"""Questions that are read at a time."""

NAMED_WIDTH = 2048
"""Buckets that trigrams of words fall into."""

WORD = re.compile(r"\w+")
SHORT = re.compile(r"(?:[A-Z]\w{0,2}|[a-z])(?:\.\w)*\.")
"""A short form, such as "Mt.", "U.S." or "e.g.": its full stop ends no sentence."""

FILE = "words.safetensors"
IN_SIGHT = frozenset(
    {
        "I", "I'm", "I'd", "I've", "I'll", "AI", "CEO", "CFO", "COO", "CPU", "CTO", "DIY", "DVD", "ETA", "FAQ", "GDP",
        "GPS", "HQ", "ID", "IP", "ISO", "OK", "OS", "PDF", "PhD", "PIN", "RAM", "TV", "URL", "USB", "VAT",
    }
)  # fmt: skip
"""Capitalised words that are no names."""


class Wording(NamedTuple):
    """What questions say, one row each."""

    asked: Tensor
    """``[n, ASKED_WIDTH]`` unit vectors: what is asked, whoever it is asked of."""

    said: Tensor
    """``[n, NAMED_WIDTH]``, 1 where a question has a trigram, else 0."""

    rare: Tensor
    """``[n, NAMED_WIDTH]``, how much of what is rare in a question lies in each trigram; they add up to 1."""

    names: Tensor
    """``[n, NAMED_WIDTH]``, the same of its names alone; zero if it has none."""


class Learned(NamedTuple):
    """The network that says what is asked, and in how many questions of its corpus each word is."""

    network: AskedNetwork
    counts: Mapping[str, int]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``[n, ASKED_WIDTH]`` unit vectors of questions, names out of sight."""
        parts = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
        read = (sentence_encoder().tokens(part, LAYERS, LONGEST) for part in parts)
        return torch.cat([self.network(*padded(states)) for states in read])


@cache
def learned() -> Learned:
    """What ships."""
    with resources.as_file(resources.files("unike.editors.unike").joinpath("gate_data", FILE)) as path:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
        with safe_open(path, "pt") as file:
            counts = json.loads(file.metadata()["counts"])
    with torch.random.fork_rng(devices=[]):  # what is drawn is replaced at once
        network = AskedNetwork(weights["enter.weight"].shape[1])
    network.load_state_dict(weights)
    return Learned(network.eval(), counts)


_ASKED: Memo[str, Tensor] = Memo()
"""What questions ask, as `learned` says it; each is read once."""


def what_is_asked(texts: Sequence[str]) -> Tensor:
    """``[n, ASKED_WIDTH]`` unit vectors."""
    bare = [bare_question(text) for text in texts]
    found = _ASKED.get_all(sorted(set(bare)), lambda some: dict(zip(some, learned()(some), strict=True)))
    return torch.stack([found[text] for text in bare])


@cache
def words_fingerprint() -> str:
    """What tells the network that ships from others: an edit keeps what its question asks as that says it."""
    return hashlib.sha256(resources.files("unike.editors.unike").joinpath("gate_data", FILE).read_bytes()).hexdigest()


@torch.no_grad()
def read_words(texts: Sequence[str]) -> Wording:
    """What questions ask and whom they name, on the CPU."""
    words = [set(WORD.findall(text.casefold())) for text in texts]
    names = [set(WORD.findall(without_names(text)[1].casefold())) for text in texts]
    return Wording(what_is_asked(texts), trigrams_of(words), rarity_of(words), rarity_of(names))


def bare_question(text: str) -> str:
    """What of a text asks, names out of sight: its sentences that end with a question mark, or else all of it.

    >>> bare_question("My aunt sent me this from Kenya. What is it?")
    'What is it?'
    """
    every = sentences(text)
    asking = [sentence for sentence in every if sentence.endswith("?")] or every
    return " ".join(without_names(sentence)[0] for sentence in asking)


def sentences(text: str) -> list[str]:
    """The sentences of a text.

    >>> sentences("This is Mt. Everest. How high is it?")
    ['This is Mt. Everest.', 'How high is it?']
    """
    found: list[list[str]] = [[]]
    for word in text.split():
        found[-1].append(word)
        if word[-1] in ".?!" and not SHORT.fullmatch(word):
            found.append([])
    return [" ".join(words) for words in found if words]


def without_names(text: str) -> tuple[str, str]:
    """A question with "it" for its names, and these: capitalised words within a sentence, and whatever has a digit.

    Who writes in capitals alone names nobody.

    >>> without_names("At what time does the Corvane Library open?")
    ('At what time does the it open?', 'Corvane Library')
    """
    text = text.lower() if text.isupper() and " " in text else text
    shown: list[str] = []
    names: list[str] = []
    starts = True
    for word in text.split():
        bare = word.strip('.,?!:;"“”()')
        capital = bare[:1].isupper() and not starts and re.sub("['’]s$", "", bare) not in IN_SIGHT
        starts = word[-1] in ".?!:" and not SHORT.fullmatch(word)
        if not capital and not any(letter.isdigit() for letter in bare):
            shown.append(word)
            continue
        names.append(bare)
        end = "" if SHORT.fullmatch(word) else word[len(word.rstrip('.,?!:;"”)')) :]
        if shown and shown[-1] == "it":
            shown.pop()
        shown.append("it" + ("'s" if bare.endswith(("'s", "’s")) else "") + end)
    return " ".join(shown), " ".join(names)


def rarity_of(texts: Sequence[Collection[str]]) -> Tensor:
    """``[n, NAMED_WIDTH]``: weights of the trigrams of words, the rarer a word the heavier; a row adds up to 1 or 0."""
    weights = torch.zeros(len(texts), NAMED_WIDTH)
    for row, words in zip(weights, texts, strict=True):
        for word in words:
            buckets = _buckets(word)
            row[buckets] += 1 / (1 + learned().counts.get(word, 0)) / len(buckets)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-8)


def trigrams_of(texts: Sequence[Collection[str]]) -> Tensor:
    """``[n, NAMED_WIDTH]``: 1 for each trigram of words."""
    there = torch.zeros(len(texts), NAMED_WIDTH)
    for row, words in zip(there, texts, strict=True):
        for word in words:
            row[_buckets(word)] = 1
    return there


def _buckets(word: str) -> list[int]:
    framed = f"^{word}$"
    grams = {framed[start : start + 3] for start in range(max(1, len(framed) - 2))}
    return sorted({zlib.crc32(gram.encode()) % NAMED_WIDTH for gram in grams})
