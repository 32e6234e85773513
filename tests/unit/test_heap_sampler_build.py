"""What the commands do so that the heap sampler can be compiled, and where it can't."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of programs: no compiler, and a Python without headers."""
    for name in ("bash", "env", "sh"):
        (tmp_path / name).symlink_to(Path("/bin") / name)
    program(tmp_path, "python", 'case "$2" in *version_info*) echo 3.99 ;; *) echo /nonexistent/include ;; esac')
    return tmp_path


def compiler(machine: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REPOSITORY / "scripts/compiler", machine / "python"],
        env={"PATH": str(machine)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_without_root_it_says_what_is_missing_and_goes_on(machine: Path) -> None:
    program(machine, "id", "echo 1000")
    program(machine, "apt-get", f'echo "$@" >> {machine}/asked')
    done = compiler(machine)
    assert done.returncode == 0
    assert "gcc" in done.stdout
    assert "python3.99-dev" in done.stdout
    assert "Going on without it" in done.stderr
    assert not (machine / "asked").exists()


@pytest.mark.parametrize("installs", [True, False])
def test_as_root_it_asks_debian_and_goes_on_either_way(machine: Path, installs: bool) -> None:
    program(machine, "id", "echo 0")
    program(machine, "apt-get", f'echo "$@" >> {machine}/asked; {"true" if installs else "false"}')
    done = compiler(machine)
    assert done.returncode == 0
    asked = (machine / "asked").read_text()
    assert "update" in asked
    assert ("python3.99-dev" in asked) == installs
    assert ("Going on without it" in done.stderr) == (not installs)


def test_where_all_is_there_it_asks_nothing(machine: Path) -> None:
    include = machine / "include"
    include.mkdir()
    (include / "Python.h").touch()
    program(machine, "python", f'case "$2" in *version_info*) echo 3.99 ;; *) echo {include} ;; esac')
    program(machine, "cc", "true")
    done = compiler(machine)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_virtual_environments_are_made_anew_when_the_source_changes() -> None:
    made = subprocess.run(
        ["make", "--dry-run", "--what-if=celery_trace/heap/_sampler.c", "setup", "VENV=.venv"],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "scripts/make-venv" in made.stdout, made.stderr
