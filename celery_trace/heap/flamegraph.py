"""
The profiles of a host: what memray recorded of single runs, and the flamegraphs made of them.

They are in ``trace_dir/profiles`` on the worker's host: ``<id>.bin`` is memray's file, ``<id>.json`` describes it.
``<id>.peak.html`` and ``<id>.kept.html`` are made on request, by a separate process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from celery_trace import private_files
from celery_trace.errors import TraceError

#: Profiles that a host keeps; the oldest are removed.
MOST_KEPT: Final = 20
#: How long making a flamegraph may take, seconds.
RENDER_S: Final = 180.0
#: The message if memray is missing.
MISSING: Final = 'memray is not installed here. Run: pip install "celery-trace[memray]"'
#: What a flamegraph can show: the run's memory at its peak, or what was left at its end.
VIEWS: Final = ("peak", "kept")


class Profile(Struct, frozen=True, kw_only=True):
    """
    One profiled run.

    ``state`` is ``running``, ``done`` or ``failed``; ``why`` is the reason of a failure. ``peak_bytes`` and
    ``allocations`` are memray's own counts, of all threads of the process while the run lasted.
    """

    id: str
    name: str
    at: float
    state: str
    task_id: str = ""
    worker: str = ""
    host: str = ""
    pid: int = 0
    duration_s: float = 0.0
    peak_bytes: int = 0
    allocations: int = 0
    file_bytes: int = 0
    why: str = ""


_profiles = msgspec.json.Decoder(Profile)


class NoFlamegraph(TraceError):
    """A flamegraph can't be made; the message is the reason."""


def available() -> bool:
    """Whether memray can be imported here; does not import it."""
    return importlib.util.find_spec("memray") is not None


class Profiles:
    """
    The profiles in a ``trace_dir``, for the worker that writes them and the command and monitor that show them.

    Args:
        folder: ``trace_dir``; its ``profiles`` is made, 0700, when one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "profiles"

    def recording(self, id: str) -> Path:
        """memray's file."""
        return self.folder / f"{id}.bin"

    def all(self) -> list[Profile]:
        """Newest first. A description that can't be read is left out."""
        found = (self._read(path) for path in self.folder.glob("*.json"))
        return sorted((profile for profile in found if profile is not None), key=lambda one: -one.at)

    def find(self, id: str) -> Profile | None:
        """One by its id, or None. Ids are letters and digits, so none of them can name another file."""
        if not id.isascii() or not id.isalnum() or len(id) > 40:
            return None
        return self._read(self.folder / f"{id}.json")

    def write(self, profile: Profile) -> None:
        """Write a profile's description (0600), and remove the oldest profiles."""
        self.make_folder()
        private_files.replace(self.folder / f"{profile.id}.json", msgspec.json.encode(profile))
        for old in self.all()[MOST_KEPT:]:
            for path in self.folder.glob(f"{old.id}.*"):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def make_folder(self) -> None:
        """
        The folder, for its owner alone.

        Raises:
            OSError: It can't be made, or others can write into it: memray opens its files by name.
        """
        private_files.make_part(self.folder)
        private_files.check_guarded(self.folder)

    def flamegraph(self, profile: Profile, view: str = "peak") -> Path:
        """
        The flamegraph of a profile as one self-contained HTML file; made on first request.

        Blocks for some seconds.

        Raises:
            NoFlamegraph: The run is not over, its file is gone, or memray is missing or failed.
        """
        if view not in VIEWS:
            raise NoFlamegraph(f"Unknown view {view!r}; the views are {', '.join(VIEWS)}.")
        made = self.folder / f"{profile.id}.{view}.html"
        if _is_ours(made):
            return made
        if profile.state != "done":
            raise NoFlamegraph(profile.why or "The profiled run has not ended yet.")
        recording = self.recording(profile.id)
        if not _is_ours(recording):
            raise NoFlamegraph(f"Its file {recording} is gone, or is not a file of celery-trace.")
        if not available():
            raise NoFlamegraph(MISSING)
        # memray opens its output by name and follows links: so the name is in a new folder of ours.
        room = Path(tempfile.mkdtemp(prefix=f"{profile.id}.", suffix=".draft", dir=self.folder))
        draft = room / "page.html"
        try:
            command = [sys.executable, "-m", "memray", "flamegraph", "--no-web", "--force", "--output", str(draft)]
            if view == "kept":
                command.append("--leaks")
            done = subprocess.run(
                [*command, str(recording)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=RENDER_S,
                umask=0o077,
                check=False,
            )
            if done.returncode:
                output = (done.stderr.strip() or done.stdout.strip()).splitlines()
                raise NoFlamegraph(f"memray could not read it: {output[-1] if output else done.returncode}")
            os.replace(draft, made)
        except subprocess.TimeoutExpired:
            raise NoFlamegraph(f"memray took more than {RENDER_S:g} s. Its file is {recording}.") from None
        finally:
            shutil.rmtree(room, ignore_errors=True)
        return made

    @staticmethod
    def _read(path: Path) -> Profile | None:
        try:
            return _lost(_profiles.decode(private_files.read(path)))
        except (OSError, msgspec.DecodeError):
            return None


def _is_ours(path: Path) -> bool:
    try:
        os.close(private_files.open_file(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _lost(profile: Profile) -> Profile:
    """A run has failed if its process died."""
    if profile.state == "running" and profile.host == socket.gethostname():
        try:
            os.kill(profile.pid, 0)
        except ProcessLookupError:
            return msgspec.structs.replace(profile, state="failed", why="Its process ended during the run.")
        except PermissionError:
            pass
    return profile
