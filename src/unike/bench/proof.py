"""What a replay proves: that an answer is the text along which it was read, or that it is the answer before the edit.

A greedy answer equals a text exactly if each of its tokens is predicted, and then an end. A near-tie between two tokens
proves nothing, because rounding may fall the other way in generation.
"""

from dataclasses import replace

import torch

from unike.backbones.adapter import Backbone
from unike.bench.lines import TEXTS, Guesses, Line, ReadCase
from unike.data.queries import Query

SURE = {torch.float32: 1e-3}
"""By how much the best logit must lead, by dtype: more than rounding moves it between two ways to compute it."""

SURE_OTHERWISE = 0.5


class Proof:
    """Tells answers from what is predicted along lines.

    Args:
        backbone: The model.
        max_new_tokens: Where an answer is cut off.
        hooked: Whether the edits act within the model, and so in a pass of the very same shape as before them.
    """

    def __init__(self, backbone: Backbone, max_new_tokens: int, *, hooked: bool) -> None:
        self.backbone = backbone
        self.max_new_tokens = max_new_tokens
        self.hooked = hooked
        self.lead = SURE.get(backbone.dtype, SURE_OTHERWISE)
        self.stops = frozenset(backbone.stop_ids)

    def answers(self, read: ReadCase, under: list[list[Guesses]]) -> list[str | None]:
        """The answers to a case's questions as far as they are proved, None for the others.

        Args:
            read: The case.
            under: What is predicted under its edits, for each line of each of its batches.
        """
        proved: list[str | None] = []
        for question in read.questions:
            if question.own is not None and self._is_as_before(read, under, question.own):
                proved.append(question.before)
                continue
            places = [place for place in (getattr(question, text) for text in TEXTS) if place is not None]
            said = (self._said(read.batches[b].lines[row], under[b][row]) for b, row in places)
            proved.append(next((answer for answer in said if answer is not None), None))
        return proved

    def _is_as_before(self, read: ReadCase, under: list[list[Guesses]], place: tuple[int, int]) -> bool:
        """Whether the same is predicted all along a line, computed in the same way: then the answer is the same, too.

        Unlike generation, which may stand in a batch of another shape, it leaves rounding nothing to decide.
        """
        batch, row = place
        line, before, after = read.batches[batch].lines[row], read.batches[batch].before[row], under[batch][row]
        needed = self._needed(line)
        if not self.hooked or not line.provable or needed > len(after.ids):
            return False
        # Of a text that is no answer, for its tokens are others when it is read than when it was said, nothing follows.
        along = zip(line.tokens[:needed], before.ids, before.leads, strict=False)
        was_said = all(token == guess or lead < self.lead for token, guess, lead in along)
        return was_said and after.ids[:needed] == before.ids[:needed]

    def _said(self, line: Line, guesses: Guesses) -> str | None:
        """The greedy answer, if it is the line's text: its tokens are predicted, surely, and then the answer ends."""
        length, needed = min(len(line.tokens), self.max_new_tokens), self._needed(line)
        if not line.provable or needed > len(guesses.ids) or min(guesses.leads[:needed]) < self.lead:
            return None
        if guesses.ids[:length] != line.tokens[:length]:
            return None
        if needed > length and not self._is_end(guesses.ids[length]):
            return None
        return self.backbone.answer_text(line.tokens[:length])

    def _needed(self, line: Line) -> int:
        """How many predictions settle an answer: one for each token, and one for the end unless it is cut off."""
        length, limit = len(line.tokens), self.max_new_tokens
        return limit if length >= limit else length + 1

    def _is_end(self, token: int) -> bool:
        """A stop, or a new line: of an answer only the first one counts."""
        return token in self.stops or self.backbone.tokenizer.decode([token]).lstrip(" ").startswith("\n")


def begins_as_asked(backbone: Backbone, query: Query) -> bool:
    """Whether a question with a text behind it begins with the tokens that generating would begin at."""
    bare = replace(query, image=None)
    read, asked = backbone.encode([bare]), backbone.encode([replace(bare, target=None)])
    length = asked.labels.shape[1]
    ids = read.inputs["input_ids"][:, :length]
    return int(read.prompt_last) == length - 1 and torch.equal(ids, asked.inputs["input_ids"])
