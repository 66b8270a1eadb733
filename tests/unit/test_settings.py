"""Settings that would not do what they seem to say are refused in one line."""

from typing import Any

import pytest

from unike import make_editor
from unike.core.errors import UnikeError


@pytest.mark.parametrize(
    ("editor", "settings", "message"),
    [
        ("t_patcher", {"layers": [-1, -1]}, r"setting layers=\[-1, -1\]: a layer is named twice; name each once"),
        ("unike", {"layers": [-1, -2, -1]}, "a layer is named twice"),
        ("unike", {"layers": []}, r"setting layers=\[\]"),
        ("ft", {"clip": 0}, "setting clip=0: Input should be greater than 0"),
        ("t_patcher", {"clip": -1.0}, "setting clip=-1.0"),
    ],
)
def test_settings_that_make_no_sense(editor: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnikeError, match=message):
        make_editor(editor, **settings)
