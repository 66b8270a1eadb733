"""Pictures come in as RGB, whatever they were; bad ones are refused (the command line's side: test_bad_input.py)."""

from pathlib import Path

import pytest
from PIL import Image

from unike.core import images
from unike.core.errors import UnikeError
from unike.core.images import load_image


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (255, 0, 0), (255, 0, 0)),
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
    ],
)
def test_modes_become_rgb_on_white(tmp_path: Path, mode: str, colour: int, expected: tuple[int, ...]) -> None:
    Image.new(mode, (3, 2), colour).save(tmp_path / "x.png")
    image = load_image(tmp_path / "x.png")
    assert (image.mode, image.size, image.getpixel((2, 1))) == ("RGB", (3, 2), expected)


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").getpixel((0, 0)) == (127, 127, 127)


def test_transparent_entry_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.gif", transparency=0)
    loaded = load_image(str(tmp_path / "x.gif"))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8), (0, 128, 255)).save(tmp_path / f"x.{suffix}")
    found = load_image(tmp_path / f"x.{suffix}").getpixel((4, 4))
    assert all(abs(a - b) < 6 for a, b in zip(found, (0, 128, 255), strict=True))


def test_the_limit_itself_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert load_image(tmp_path / "x.png").size == (10, 10)
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(UnikeError, match="10 x 10 pixels, the limit is 99"):
        load_image(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_no_place_to_cut_a_file_gives_a_traceback(pictures: list[Path], tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, a picture is read or refused; nothing else happens."""
    Image.open(pictures[0]).save(tmp_path / f"x.{suffix}")
    content = (tmp_path / f"x.{suffix}").read_bytes()
    refused = 0
    for end in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / f"cut.{suffix}").write_bytes(content[:end])
        try:
            load_image(tmp_path / f"cut.{suffix}")
        except UnikeError:
            refused += 1
    assert refused > 30
