"""Pictures come in as RGB, whatever they were; bad ones are refused (the command line's side: test_bad_input.py)."""

import math
import subprocess
import sys
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


GREYS = [
    ("F", [0.0, 0.5, 1.0]),
    ("F", [0.0, 127.5, 255.0]),
    ("F", [0.0, 32767.5, 65535.0]),
    ("I", [0, 128, 255]),
    ("I", [0, 32768, 65535]),
    ("I;16", [0, 32768, 65535]),
    ("I;16", [0, 128, 255]),
]


@pytest.mark.parametrize(("mode", "values"), GREYS)
def test_grey_of_many_bits_goes_from_black_to_white(tmp_path: Path, mode: str, values: list[float]) -> None:
    image = Image.new(mode, (3, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    image.save(tmp_path / "x.tiff")
    loaded = load_image(tmp_path / "x.tiff")
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("value", [-1.0, 1e6, math.nan, math.inf])
def test_grey_without_a_scale_is_refused(tmp_path: Path, value: float) -> None:
    image = Image.new("F", (2, 1))
    image.putpixel((0, 0), value)
    image.save(tmp_path / "x.tiff")
    with pytest.raises(
        UnikeError, match=r"image of unknown scale: .*x\.tiff has values from .*; export it with 8 bits"
    ):
        load_image(tmp_path / "x.tiff")


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


@pytest.mark.parametrize("size", [(1, 101), (101, 1), (1, 65_535), (655, 65_535)])
def test_a_picture_may_be_long_but_not_endless(tmp_path: Path, size: tuple[int, int]) -> None:
    """Of one pixel by 65,535 a processor that makes the shorter side 224 would make fourteen million rows."""
    Image.new("1", (3, 300)).save(tmp_path / "long.png")
    assert load_image(tmp_path / "long.png").size == (3, 300)
    Image.new("1", size).save(tmp_path / "x.png")
    with pytest.raises(UnikeError, match=r"one side may be at most 100 times the other; cut it up$"):
        load_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (9, 200, 9), (9, 200, 9)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_more_than_a_model_reads_is_scaled_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, colour: int, expected: tuple[int, ...]
) -> None:
    Image.new(mode, (40, 10), colour).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "READ_PIXELS", 100)
    image = load_image(tmp_path / "x.png")
    assert (image.mode, image.size, image.getpixel((10, 2))) == ("RGB", (20, 5), expected)
    Image.new("L", (100, 1)).save(tmp_path / "thin.png")
    monkeypatch.setattr(images, "READ_PIXELS", 50)
    assert load_image(tmp_path / "thin.png").height == 1


PEAK = """
import resource, sys
from unike.core.images import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_image(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of ru_maxrss")
def test_a_small_file_of_many_pixels_takes_little_memory(tmp_path: Path) -> None:
    Image.new("RGBA", (8000, 8000)).save(tmp_path / "x.png")
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "x.png")], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 800, "megabytes"


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
