"""What a machine may lack: skipped with a reason on a laptop, required where ``CI`` is set."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

_FURTHER_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")


def lacking(what: str, remedy: str) -> NoReturn:
    """
    End the test: the machine lacks something.

    Under ``CI`` it fails, because there a skip would hide that nothing was tested.
    """
    text = f"{what} is not on this machine; {remedy}"
    if os.environ.get("CI"):
        pytest.fail(f"{text} (required because CI is set)", pytrace=False)
    pytest.skip(text)


def program(name: str, *, package: str, also: tuple[str, ...] = ()) -> str:
    """
    The path of a program.

    Args:
        package: Debian's package that holds it, for the message.
        also: Patterns of further places, such as ``/usr/lib/postgresql/*/bin/initdb``.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), *_FURTHER_FOLDERS])
    found = shutil.which(name, path=path)
    if found:
        return found
    for pattern in also:
        places = sorted(Path("/").glob(pattern.lstrip("/")))
        if places:
            return str(places[-1])
    lacking(name, f"as root `make system` installs it (Debian package {package})")


def told_children() -> None:
    """End the test where the kernel does not tell a process's children."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("this kernel does not tell children (CONFIG_PROC_CHILDREN)")
