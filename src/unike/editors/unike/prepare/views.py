"""Pictures as other hands might show them: the gate should not know the hands of a data set alone.

A hand that no picture of the train split was made by gives all its pictures a look of their own, so that two of its
things are more alike than two things usually are, and a gate that does not know that takes one for the other. No
picture of such a hand is at hand; but hands can be made up. Each treats all that it shows in the same way: it draws it
larger or smaller, in other colours, softly, with a gloss, cut round, turned, on a cloth that waves.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from typing_extensions import Self

SIDE = 224
"""Pixels of a view."""

WHITE = 245
"""Paper is as bright as this at least, in all channels."""


@dataclass(frozen=True)
class Hand:
    """How a hand shows things.

    Args:
        zoom: How much of the view what is drawn takes.
        colour: How much of the colours is left.
        contrast: The same of what is light and dark.
        light: How bright it is.
        soft: So many pixels of a side are all that is seen; 0 for all.
        corner: Radius at which corners are cut, in pixels; 0 for none, ``SIDE`` for an ellipse.
        gloss: How far it shines at the top.
        turn: Degrees.
        lift: How far a wave lifts, in pixels; 0 for none.
        length: How long the wave is.
        start: Where it begins, in radians.
        lead: How far its shade is ahead of it.
        shade: How much lighter and darker it makes.
    """

    zoom: float
    colour: float
    contrast: float
    light: float
    soft: int
    corner: int
    gloss: float
    turn: float
    lift: float
    length: float
    start: float
    lead: float
    shade: float

    @classmethod
    def drawn(cls, seed: int) -> Self:
        """One at random."""
        rng = np.random.default_rng(seed)
        waves, shines, turns = rng.random(3) < (0.6, 0.4, 0.3)
        return cls(
            zoom=rng.uniform(0.75, 1.0),
            colour=rng.uniform(0.6, 1.4),
            contrast=rng.uniform(0.75, 1.25),
            light=rng.uniform(0.85, 1.15),
            soft=int(rng.choice([0, 48, 64, 64, 80, 96])),
            corner=int(rng.choice([0, 0, 12, 20, 30, SIDE])),
            gloss=0.35 * shines,
            turn=rng.uniform(-6, 6) * turns,
            lift=rng.uniform(4, 14) * waves,
            length=rng.uniform(90, 260),
            start=rng.uniform(0, 2 * np.pi),
            lead=rng.uniform(0.3, 2.2),
            shade=rng.uniform(0.08, 0.3),
        )

    def show(self, image: Image.Image) -> Image.Image:
        """A picture as this hand shows it, on white.

        Args:
            image: In any mode that converts to RGB.
        """
        thing = cut_out(image.convert("RGB").resize((SIDE, SIDE)))
        for enhanced, much in (
            (ImageEnhance.Color, self.colour),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Brightness, self.light),
        ):
            thing = enhanced(thing).enhance(much)
        scale = self.zoom * SIDE / max(thing.size)
        width, height = (max(8, round(side * scale)) for side in thing.size)
        view = self._placed(self._glossy(thing.resize((width, height))))
        view = view.rotate(self.turn, Image.Resampling.BICUBIC, fillcolor="white") if self.turn else view
        view = self._waved(view) if self.lift else view
        if self.soft:
            view = view.resize((self.soft, self.soft), Image.Resampling.LANCZOS).resize((SIDE, SIDE))
        return view

    def _glossy(self, thing: Image.Image) -> Image.Image:
        pixels = np.asarray(thing, dtype=np.float32)
        height = np.linspace(1, 0, len(pixels))[:, None, None]
        return picture(pixels + self.gloss * ((255 - pixels) * height**2 - pixels * (1 - height) ** 2 / 3))

    def _placed(self, thing: Image.Image) -> Image.Image:
        view, mask = Image.new("RGB", (SIDE, SIDE), "white"), Image.new("L", thing.size, 0)
        box, pen = (0, 0, thing.width - 1, thing.height - 1), ImageDraw.Draw(mask)
        if self.corner == SIDE:
            pen.ellipse(box, fill=255)
        else:
            pen.rounded_rectangle(box, self.corner, fill=255)
        view.paste(thing, ((SIDE - thing.width) // 2, (SIDE - thing.height) // 2), mask)
        return view

    def _waved(self, view: Image.Image) -> Image.Image:
        pixels, at = np.asarray(view, dtype=np.float32), np.arange(SIDE)
        wave = 2 * np.pi * at / self.length + self.start
        rows = at[:, None] + self.lift * np.sin(wave)
        shown = pixels[rows.clip(0, SIDE - 1).astype(int), at]
        shaded = shown * (1 + self.shade * np.sin(wave + self.lead))[None, :, None]
        return picture(np.where(shown.min(axis=2, keepdims=True) > WHITE, shown, shaded))


def cut_out(image: Image.Image) -> Image.Image:
    """What is on white paper without the margin; a picture that fills its frame stays as it is."""
    ink = np.asarray(image).min(axis=2) < WHITE
    if not ink.any():
        return image
    (top, bottom), (left, right) = (np.flatnonzero(ink.any(axis=axis))[[0, -1]] for axis in (1, 0))
    return image.crop((int(left), int(top), int(right) + 1, int(bottom) + 1))


def picture(pixels: np.ndarray) -> Image.Image:
    """From numbers ``[H, W, 3]``, of 0..255 and beyond."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
