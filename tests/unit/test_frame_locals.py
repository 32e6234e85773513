"""Reading the local variables of a function that runs in another thread has no effect on it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator

import pytest

from celery_trace.failures.capture import capture_frames
from celery_trace.process.frame_locals import _copy, locals_of
from celery_trace.process.frames import stacks_by_run
from celery_trace.process.waits import chain, examine
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits
from tests.support.requirements import lacking
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _copied() -> None:
    if _copy is None and sys.version_info < (3, 13):
        lacking("no extension module", "a C compiler and Python's headers build it (make system)")


def captured(thread: int) -> None:
    frames = stacks_by_run([thread], None)[thread]
    capture_frames(None, inner=frames, limits=Limits(), redactor=Redactor(()), in_app=())


def examined(thread: int) -> None:
    frames = sys._current_frames()
    examine(chain(frames[thread]), frames)


class Task:
    """Runs a function in a thread, which waits in the middle until its stack was read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.error: BaseException | None = None

    def run(self, work: Callable[[threading.Lock], None], read: Callable[[int], None]) -> None:
        def guarded() -> None:
            try:
                work(self.lock)
            except BaseException as error:
                self.error = error

        self.lock.acquire()
        thread = threading.Thread(target=guarded)
        thread.start()
        assert thread.ident is not None
        try:
            wait_until(lambda: sys._current_frames()[thread.ident or 0].f_code is work.__code__, "the function")
            read(thread.ident)
        finally:
            self.lock.release()
            thread.join()
        if self.error is not None:
            raise self.error


def loops(lock: threading.Lock) -> None:
    for name, value in locals().items():  # noqa: B007 - they are new local variables
        with lock:
            pass


def keeps(lock: threading.Lock) -> None:
    size = 1
    own = locals()
    own["size"] = size + 1
    with lock:
        pass
    assert own["size"] == 2


@pytest.mark.parametrize("read", [captured, examined])
@pytest.mark.parametrize("work", [loops, keeps])
def test_a_function_that_uses_its_locals_is_not_disturbed(
    work: Callable[[threading.Lock], None], read: Callable[[int], None]
) -> None:
    Task().run(work, read)


def test_a_suspended_generator_is_not_disturbed() -> None:
    def generator(first: int) -> Generator[str]:
        for name, value in locals().items():  # noqa: B007
            yield name

    def holder(held: Generator[str]) -> None:
        capture_frames(None, inner=[sys._getframe()], limits=Limits(), redactor=Redactor(()), in_app=())

    made = generator(1)
    assert next(made) == "first"
    holder(made)
    assert list(made) == []


def test_cells_arguments_and_unbound_names() -> None:
    outer = 5

    def function(first: int, *rest: int) -> dict[str, object]:
        def inner() -> int:
            return first + outer

        if rest:
            missing = inner()
            del missing
        return dict(locals_of(sys._getframe()))

    found = function(1, 2)
    assert found.pop("inner") is not None
    assert found == {"first": 1, "rest": (2,), "outer": 5}


def test_the_body_of_a_class_has_its_own_namespace() -> None:
    class Body:
        size = 3
        names = sorted(locals_of(sys._getframe()))

    assert "size" in Body.names
