"""The demo as a person starts it, without make: its words are read from its output."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.processes import REPOSITORY, Program, clean_environment


class Demo(Program):
    """``python -m demo`` with the tests' interpreter; ``options`` follow."""

    def __init__(self, *options: str, work: Path) -> None:
        #: Where it makes its own folder; other demos may run at the same time.
        self.folders = work / "tmp"
        self.folders.mkdir()
        super().__init__(
            [sys.executable, "-m", "demo", *options],
            cwd=REPOSITORY,
            log=work / "demo.log",
            environment=clean_environment({"PYTHONPATH": str(REPOSITORY / "examples"), "TMPDIR": str(self.folders)}),
        )
