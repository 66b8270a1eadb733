"""Pictures as another hand might show them."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from unike.editors.unike.prepare.views import SIDE, soft, waved


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
@pytest.mark.parametrize("view", [waved, soft])
def test_a_view_is_of_one_size_and_the_same_for_the_same_seed(
    view: Callable[[Image.Image, int], Image.Image], mode: str
) -> None:
    image = Image.effect_noise((90, 40), 60).convert("RGB").convert(mode)
    once, again, other = (np.asarray(view(image, seed)) for seed in (3, 3, 4))
    assert once.shape == (SIDE, SIDE, 3) and once.dtype == np.uint8
    assert (once == again).all() and (once != other).any()


def test_a_view_shades_and_moves_but_keeps_what_is_shown() -> None:
    halves = np.zeros((SIDE, SIDE, 3), np.uint8)
    halves[: SIDE // 2], halves[SIDE // 2 :] = (200, 0, 0), (0, 0, 200)
    view = np.asarray(waved(Image.fromarray(halves), 1)).astype(int)
    top, bottom = view[SIDE // 4], view[3 * SIDE // 4]
    assert (top[:, 0] > top[:, 2] + 100).all() and (bottom[:, 2] > bottom[:, 0] + 100).all()
    assert top[:, 0].max() - top[:, 0].min() > 30, "lighter and darker along the wave"
    border = np.concatenate([view[0], view[-1]])
    assert (border == 255).all(axis=1).any(), "white where the cloth is not"


def test_a_soft_view_has_lost_what_is_fine_and_keeps_what_is_shown() -> None:
    stripes = np.zeros((SIDE, SIDE, 3), np.uint8)
    stripes[::2], stripes[:, : SIDE // 2, 0] = 255, 200
    view = np.asarray(soft(Image.fromarray(stripes), 2)).astype(int)
    inner = view[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4]
    assert np.abs(np.diff(inner[..., 1], axis=0)).max() < 60, "no line is left of lines one pixel wide"
    assert inner[:, 0, 0].mean() > inner[:, -1, 0].mean() + 40
