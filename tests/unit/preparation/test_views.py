"""Pictures as made-up hands show them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unike.editors.unike.prepare.views import SIDE, Hand, cut_out

PLAIN = Hand(1, 1, 1, 1, soft=0, corner=0, gloss=0, turn=0, lift=0, length=100, start=0, lead=0, shade=0)
"""Shows things as they are, from edge to edge."""


def halves() -> Image.Image:
    """Red above blue, on white paper with a wide margin."""
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pixels[50:112, 60:160], pixels[112:174, 60:160] = (200, 0, 0), (0, 0, 200)
    return Image.fromarray(pixels)


def shown(hand: Hand) -> np.ndarray:
    return np.asarray(hand.show(halves())).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_a_view_is_of_one_size_and_the_same_for_the_same_hand(mode: str) -> None:
    image = Image.effect_noise((90, 40), 60).convert("RGB").convert(mode)
    once, again, other = (np.asarray(Hand.drawn(seed).show(image)) for seed in (3, 3, 4))
    assert once.shape == (SIDE, SIDE, 3) and once.dtype == np.uint8
    assert (once == again).all() and (once != other).any()


@pytest.mark.parametrize("seed", range(12))
def test_whoever_shows_it_a_thing_keeps_its_colours_and_their_places(seed: int) -> None:
    view = shown(Hand.drawn(seed))
    top, bottom = view[70:90, 90:134].mean(axis=(0, 1)), view[134:154, 90:134].mean(axis=(0, 1))
    assert top[0] > top[2] + 40 and bottom[2] > bottom[0] + 40


def test_each_of_its_ways_does_what_it_says() -> None:
    plain = shown(PLAIN)
    inked = (plain.min(axis=2) < 245).any(axis=1)
    assert inked[0] and inked[-1], "the margin is cut off"
    small = shown(replace(PLAIN, zoom=0.5))
    assert (small[:50] == 255).all() and (small.min(axis=2) < 245).sum() < 0.3 * (plain.min(axis=2) < 245).sum()
    grey = shown(replace(PLAIN, colour=0))
    assert (np.ptp(grey, axis=2) <= 1).all()
    assert shown(replace(PLAIN, light=0.5)).mean() < plain.mean()
    assert shown(replace(PLAIN, gloss=0.5))[5, 112].sum() > plain[5, 112].sum()
    left = np.flatnonzero((plain[0] < 245).any(axis=1))[0]
    for corner in (30, SIDE):
        assert (shown(replace(PLAIN, corner=corner))[0, left] > 245).all()
    edge = np.abs(np.diff(shown(replace(PLAIN, soft=32)).sum(axis=2), axis=0)).max()
    assert edge < np.abs(np.diff(plain.sum(axis=2), axis=0)).max(), "softly"
    waved = shown(replace(PLAIN, lift=10, shade=0.3, lead=1))
    assert len({int(column.argmax()) for column in (waved[:, 60:160, 2] > 100).T}) > 3, "its middle is no line"
    assert np.ptp(waved[40, 60:160, 0]) > 30, "lighter and darker along the wave"
    assert (shown(replace(PLAIN, turn=5)) != plain).any()


def test_paper_without_anything_on_it_and_a_full_frame_are_not_cut() -> None:
    blank, full = Image.new("RGB", (40, 30), "white"), Image.new("RGB", (40, 30), "navy")
    assert cut_out(blank).size == cut_out(full).size == (40, 30)
    assert cut_out(halves()).size == (100, 124)
    assert np.asarray(Hand.drawn(1).show(blank)).min() > 180
