"""Pictures as another hand might show them: what is usual should not be read from the hands of the data set alone.

A hand that no picture of the train split was made by gives all its pictures a look of their own, so that two of its
things are more alike than two things usually are, and a gate that does not know that takes one for the other. No
picture of such a hand is at hand; but pictures that are warped and shaded, as a flag that flies, say as much.
"""

import numpy as np
from PIL import Image

SIDE = 224
"""Pixels of a view."""

WAVE, LENGTH, SHADE = (4.0, 12.0), (100.0, 260.0), 0.22
"""How far a wave lifts, in pixels; how long it is; how much lighter and darker it makes."""


def waved(image: Image.Image, seed: int) -> Image.Image:
    """A picture on a cloth that waves, on white.

    Args:
        image: In any mode that converts to RGB.
        seed: Of the wave.
    """
    drawn = np.random.default_rng(seed)
    lift, length, phase, lead = (drawn.uniform(*ends) for ends in (WAVE, LENGTH, (0, 2 * np.pi), (0.5, 2.0)))
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32)
    at = np.arange(SIDE)
    wave = 2 * np.pi * at / length + phase
    margin = lift / SIDE
    rows = at[:, None] * (1 + 2 * margin) - lift + lift * np.sin(wave)
    shown = pixels[rows.clip(0, SIDE - 1).astype(int), at] * (1 + SHADE * np.sin(wave + lead))[None, :, None]
    shown[(rows < 0) | (rows > SIDE - 1)] = 255
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))
