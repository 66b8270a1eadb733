"""What a question asks, and of whom: read from its words, by a sentence encoder and a network that was trained once.

The state of a decoder is a poor judge of wordings: it is led by how a question begins and ends. MiniLM, which ships, is
a better one, and better still behind a small network that was trained, contrastively, on wordings of some 600 kinds
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
from itertools import zip_longest
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
NAMES_NOBODY = frozenset(
    {
        "ltd", "limited", "inc", "corp", "co", "company", "llc", "llp", "plc", "gmbh", "ag", "sa", "bv", "the", "mr",
        "mrs", "ms", "dr",
    }
)  # fmt: skip
"""What stands in many names, and is left out as often as not."""

NAMED_BY = 0.65
"""What a word weighs at least, however common it is, beside which a rare one stands in a name: it may say who else is
meant, as in "Brannock Dairy"."""

IN_SIGHT = frozenset(
    {
        "I", "I'm", "I'd", "I've", "I'll", "AI", "CEO", "CFO", "COO", "CPU", "CTO", "DIY", "DVD", "ETA", "FAQ", "GDP",
        "GPS", "HQ", "ID", "IP", "ISO", "OK", "OS", "PDF", "PhD", "PIN", "RAM", "TV", "URL", "USB", "VAT",
    }
)  # fmt: skip
"""Capitalised words that are no names, unless a number stands behind them."""


class Wording(NamedTuple):
    """What questions say, one row each."""

    asked: Tensor
    """``[n, ASKED_WIDTH]`` unit vectors: what is asked, whoever it is asked of."""

    said: Tensor
    """``[n, NAMED_WIDTH]``, 1 where a question has a trigram, else 0."""

    rare: Tensor
    """``[n, NAMED_WIDTH]``, how much of what is rare in a question lies in each trigram; they add up to 1. Of its names
    alone if it has any that are not mere numbers: whom an edit with that question is about."""

    names: Tensor
    """``[n, NAMED_WIDTH]``, the same of all its names, in which every word counts (`NAMED_BY`); zero if it has none."""


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
    words = [rarities(WORD.findall(text.casefold())) for text in texts]
    names = [names_in(text) for text in texts]
    whom = [
        {word: every[word] for word in name} if any(not has_digit(word) for word in name) else every
        for every, name in zip(words, names, strict=True)
    ]
    return Wording(what_is_asked(texts), trigrams_of(words), spread(whom), spread(names))


def rarities(words: Collection[str], least: float = 0.0) -> dict[str, float]:
    """How rare words are in the corpus, at least so much; 1 for those that it does not have."""
    counts = learned().counts
    return {word: 0.01 if word in NAMES_NOBODY else max(1 / (1 + counts.get(word, 0)), least) for word in words}


def names_in(text: str) -> dict[str, float]:
    """The words of all names in a text, and what they weigh.

    >>> sorted(names_in("My aunt lives in Kenya. Who runs the Corvane Library?"))
    ['corvane', 'kenya', 'library']
    """
    found: dict[str, float] = {}
    for sentence in sentences(text):
        for name in without_names(sentence)[1].casefold().split(", "):
            alone = rarities(WORD.findall(name))
            found |= rarities(alone, NAMED_BY if 1 in alone.values() else 0)
    return found


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


def without_names(sentence: str) -> tuple[str, str]:
    """A question with "it" for its names, and these: capitalised words within a sentence, and whatever has a digit.

    Those that stand apart are told apart by commas. In a sentence that is all in capitals, words that no question of
    the corpus has are taken for names.

    >>> without_names("At what time does the Corvane Library open?")
    ('At what time does the it open?', 'Corvane Library')
    """
    words, shouted = sentence.split(), is_shouted(sentence)
    shown: list[str] = []
    names: list[str] = []
    starts, goes_on = True, False
    for word, behind in zip_longest(words, words[1:], fillvalue=""):
        bare = word.strip('.,?!:;"“”()')
        if shouted:
            named = bare.casefold() not in learned().counts
        else:
            named = bare[:1].isupper() and not starts and (has_digit(behind) or not is_in_sight(bare))
        starts = word[-1] in ".?!:" and not SHORT.fullmatch(word)
        if not named and not has_digit(bare):
            shown.append(word.lower() if shouted else word)
            goes_on = False
            continue
        names.append(f"{names.pop()} {bare}" if goes_on else bare)
        end = "" if SHORT.fullmatch(word) else word[len(word.rstrip('.,?!:;"”)')) :]
        if shown and shown[-1] == "it":
            shown.pop()
        shown.append("it" + ("'s" if bare.endswith(("'s", "’s")) else "") + end)
        goes_on = shown[-1] == "it"
    return " ".join(shown), ", ".join(names)


def is_shouted(text: str) -> bool:
    """Whether several words are in capitals, and nothing is not.

    >>> is_shouted("WHO RUNS BRANNOCK?"), is_shouted("CEO?"), is_shouted("这是 IBM 吗 OK?")
    (True, False, False)
    """
    letters = [letter for letter in text if letter.isalpha()]
    return all(letter.isupper() for letter in letters) and sum(len(word) > 2 for word in WORD.findall(text)) > 1


def is_in_sight(word: str) -> bool:
    """Whether a capitalised word is none of a name, as "I've" and "CEOs"."""
    word = word.replace("’", "'")
    return word in IN_SIGHT or word.removesuffix("s").removesuffix("'") in IN_SIGHT


def has_digit(text: str) -> bool:
    """As what stands for a name has."""
    return any(letter.isdigit() for letter in text)


def spread(texts: Sequence[Mapping[str, float]]) -> Tensor:
    """``[n, NAMED_WIDTH]``: what words weigh, shared out to their trigrams; a row adds up to 1, or 0 without words."""
    weights = torch.zeros(len(texts), NAMED_WIDTH)
    for row, words in zip(weights, texts, strict=True):
        for word, weight in words.items():
            buckets = _buckets(word)
            row[buckets] += weight / len(buckets)
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
