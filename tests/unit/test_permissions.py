import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import unike
from unike.core.permissions import as_new_files


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_permissions_of_new_ones(tmp_path: Path, umask: int, mode: int) -> None:
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "a", tmp_path / "below" / "b"):
        path.touch()
        path.chmod(0o600)
    old = os.umask(umask)
    try:
        as_new_files(tmp_path)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "below" / "b")} == {mode}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "below"]


@pytest.mark.slow
def test_a_report_writes_nothing_to_the_home_folder(tmp_path: Path) -> None:
    """What matplotlib keeps is in the cache folder, as all else."""
    person, cache = tmp_path / "person", tmp_path / "cache"
    person.mkdir()
    without = {"MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    env = {key: value for key, value in os.environ.items() if key not in without}
    env |= {"HOME": str(person), "UNIKE_HOME": str(cache), "PYTHONPATH": str(Path(unike.__file__).parents[1])}
    code = "import sys; from unike.cli import main; sys.argv = ['unike', 'ls', 'editors']\n"
    code += "try: main()\nexcept SystemExit: pass\nimport matplotlib.font_manager"
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, timeout=120)
    assert list(person.rglob("*")) == []
    assert list((cache / "matplotlib").iterdir())
