"""The text around a question: with a picture, and without one.

Written down, in options, headers and files, a template is one text::

    {image}Question: {prompt} Short answer:
    {image}Question: {prompt} Short answer: || {prompt}
    mmedit-vqa

The first serves every question; where there is no picture, ``{image}`` is left out, with a tag around it. The second
says what stands around a question without a picture. The third is a preset: the same as the second.
"""

import re
from dataclasses import dataclass
from functools import cache

from unike.core.errors import UnikeError
from unike.core.registry import did_you_mean

BETWEEN = " || "
"""Between the text for questions with a picture and the one for those without."""

PRESETS = {
    "mmedit-vqa": "{image}Question: {prompt} Short answer: || {prompt}",
    "mmedit-caption": "{image}{prompt}",
}
"""Name to template: what the published code of the benchmark puts around visual questions, and around captions."""

TAGS = re.compile(r"<(\w+)>\{image\}</\1> ?")
"""Around an image in a template; without the image they are left out."""


@dataclass(frozen=True)
class Template:
    """What stands around a question.

    Args:
        pictured: With ``{image}`` and ``{prompt}`` once each.
        bare: Around a question without a picture, with ``{prompt}`` once; None for ``pictured`` without its image.
    """

    pictured: str
    bare: str | None = None

    def fill(self, prompt: str, image_text: str | None) -> str:
        """The text of a question.

        Args:
            prompt: The question.
            image_text: What stands for its picture; empty to leave that out; None if it has none.
        """
        if image_text is None and self.bare is not None:
            return self.bare.format(prompt=prompt)
        text = self.pictured if image_text else TAGS.sub("{image}", self.pictured)
        return text.format(image=image_text or "", prompt=prompt)

    def question_in(self, text: str) -> str:
        """The question in a text that `fill` made, or the last one of a conversation; else the whole text."""
        for around in filter(None, (self.pictured, TAGS.sub("{image}", self.pictured), self.bare)):
            before, after = around.split("{prompt}")
            first, _, between = before.rpartition("{image}")
            before, after = between.strip() or first.strip(), after.replace("{image}", "").strip()
            if before in text and after in text:
                text = text.rpartition(before)[2] if before else text
                return (text.rpartition(after)[0] if after else text).strip()
        return text.strip()

    def cue(self, has_image: bool) -> str:
        """What stands between a question and its answer, up to where the answer's own space begins."""
        behind = TAGS.sub("{image}", self.around(has_image)).partition("{prompt}")[2]
        return behind.replace("{image}", "").rstrip(" ")

    def around(self, has_image: bool) -> str:
        """What `fill` fills."""
        return self.pictured if has_image or self.bare is None else self.bare


def written(given: str) -> str:
    """A template as it is written out: a preset's, or the text itself.

    Raises:
        UnikeError: There is no such preset, or a text does not hold both parts once.
    """
    if not isinstance(given, str):
        raise UnikeError(f"a template is a text or the name of a preset, not {given!r}")
    if given not in PRESETS and "{" not in given:
        raise UnikeError(
            f"{did_you_mean('template', given, list(PRESETS))}; or write one, with {{image}} and {{prompt}}"
        )
    text = PRESETS.get(given, given)
    parse(text)
    return text


def named(text: str) -> str:
    """The preset that a written template is, or else the text."""
    return next((name for name, preset in PRESETS.items() if preset == text), text)


@cache
def parse(text: str) -> Template:
    """Read a written template.

    Raises:
        UnikeError: With what it has to hold.
    """
    pictured, between, bare = text.partition(BETWEEN)
    _check(pictured, ("image", "prompt"))
    if between:
        _check(bare, ("prompt",))
    return Template(pictured, bare if between else None)


def _check(text: str, parts: tuple[str, ...]) -> None:
    """Refuse a text that does not hold each part once, and nothing else in braces."""
    signs = {part: chr(number) for number, part in enumerate(parts)}
    names = " and ".join(f"{{{part}}}" for part in parts)
    try:
        text.encode()
        filled = text.format(**signs)
    except UnicodeEncodeError:
        raise UnikeError(f"template {text!r} is not valid Unicode") from None
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise UnikeError(f"template {text!r} may hold only {names} in braces") from error
    if any(filled.count(sign) != 1 for sign in signs.values()):
        once = "once each" if len(parts) > 1 else "once, for questions without a picture"
        raise UnikeError(f"template {text!r} must hold {names} {once}")
