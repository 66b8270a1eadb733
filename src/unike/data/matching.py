"""When two answers are the same: stated in docs/metrics.md, and numbered, for scores depend on it."""

import re
import unicodedata

NORMALISATION = 2
"""Version of `normalise`. Results name theirs; 1 dropped every sign, combining mark and article."""

ARTICLES = frozenset({"a", "an", "the"})

SIGNS = frozenset("%‰‱٪％#＃&＆@＠*＊§′″")
"""Punctuation to Unicode, but it carries meaning; what Unicode calls symbols does too."""
QUOTES = frozenset("`´")
"""Symbols to Unicode that are written for quotation marks."""
IN_NUMBERS = frozenset(".,:/٫٬")

DASHES = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\ufe63\uff0d", "-"))
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff]")
"""Soft hyphens, marks of direction, and how an emoji is drawn; what joins letters is none of them."""
EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])(.+?)(?<=[^\s*])\1(?![\w*])")
ARTICLE = re.compile(r"""(?<![^\s"'“‘«(\[])(?:an?|the)\s+(?=[^\w\s]*\w)""")
"""Before another word: the last word of ``hepatitis A`` is none, nor is what stands before a comma or a sign."""


def normalise(answer: str) -> str:
    """The form in which answers are compared.

    >>> normalise("The Grand-Piano.")
    'grand piano'
    >>> normalise("Hepatitis A"), normalise("-5 %"), normalise("C#")
    ('hepatitis a', '-5%', 'c#')
    """
    text = INVISIBLE.sub("", caseless(answer).translate(DASHES))
    text = ARTICLE.sub("", EMPHASIS.sub(r"\2", re.sub(r"–(?=\d)", "-", text)))
    plain = "".join(" " if _separates(text, index) else character for index, character in enumerate(text))
    return _without_spaces_beside_signs(plain.split()) or " ".join(caseless(answer).split())


def caseless(text: str) -> str:
    """Without differences of case and of Unicode's ways to write one character (NFC), and nothing else."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def exact_match(answer: str, *targets: str) -> bool:
    """Whether an answer is the same as any of some others once normalised; to say nothing is no answer."""
    return normalise(answer) in {*map(normalise, targets)} - {""}


def holds(answer: str, *targets: str) -> bool:
    """Whether one of some texts is in an answer, whole and not within longer words, once all are normalised.

    >>> holds("It is the grand piano, I think.", "Grand-piano"), holds("a grand pian", "grand piano")
    (True, False)
    >>> holds("4711", "47")
    False
    """
    said, wanted = normalise(answer), {*map(normalise, targets)} - {""}
    return any(re.search(rf"(?<!\w){re.escape(target)}(?!\w)", said) for target in wanted)


def _separates(text: str, index: int) -> bool:
    """Whether a character only separates words, or ends them."""
    character = text[index]
    if character.isspace() or unicodedata.category(character) == "Cc":
        return True
    if not _is_punctuation(character):
        return False
    before, after = text[index - 1 : index], text[index + 1 : index + 2]
    if character in IN_NUMBERS and after.isdigit():  # 3.5, 1/2, 10:30 and .5
        return not before.isdigit() and (character != "." or _is_of_word(before) or before == ".")
    if character == "-":  # between two words it joins them; at one of them it is a sign: -5, O-
        left, right = text[:index].rstrip("-")[-1:], text[index + 1 :].lstrip("-")[:1]
        if _is_of_word(left) != _is_of_word(right):
            return False
    return not _parts_article(text, index)


def _parts_article(text: str, index: int) -> bool:
    """Whether it keeps a letter from being read as the article of what follows: ``A, B`` and ``A-frame``."""
    last = re.search(r"(?<!\w)\w+$", text[max(0, index - 4) : index])
    return last is not None and last[0] in ARTICLES and any(map(_is_of_word, text[index + 1 :]))


def _is_punctuation(character: str) -> bool:
    return character in QUOTES or (unicodedata.category(character)[0] == "P" and character not in SIGNS)


def _is_of_word(character: str) -> bool:
    return bool(character) and not character.isspace() and not _is_punctuation(character)


def _without_spaces_beside_signs(words: list[str]) -> str:
    """``50 %`` is ``50%``."""
    joined = ""
    for word in words:
        apart = joined and not _is_sign(joined[-1]) and not _is_sign(word[0])
        joined += f" {word}" if apart else word
    return joined


def _is_sign(character: str) -> bool:
    return character in SIGNS or (unicodedata.category(character)[0] == "S" and character not in QUOTES)
