"""A run's commit is that of the whole package, not of the folder that asks for it."""

import subprocess
from pathlib import Path

import pytest

import unike
from unike.bench.runner import git_state


def test_the_commit_is_the_last_that_changed_any_file_of_the_package():
    state = git_state()
    if state is None:
        pytest.skip("not in a git checkout")
    package = Path(unike.__file__).parent
    log = ["git", "-C", str(package), "log", "-1", "--format=%H", "--", "."]
    assert state["commit"] == subprocess.run(log, capture_output=True, text=True, check=True).stdout.strip()
