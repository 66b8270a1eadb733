"""Pictures as another hand might show them."""

import numpy as np
import pytest
from PIL import Image

from unike.editors.unike.prepare.views import SIDE, waved


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_a_view_is_of_one_size_and_the_same_for_the_same_seed(mode: str) -> None:
    image = Image.effect_noise((90, 40), 60).convert("RGB").convert(mode)
    once, again, other = (np.asarray(waved(image, seed)) for seed in (3, 3, 4))
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
