"""
What a test of ``celery trace make-test`` imports.

A test of a failure is red while the bug is there, and says that it is reproduced. It is green only if there is
evidence that the bug is gone, not only that it did not show: it was reproduced here before, or the lines that led to it
have changed. Anything else is a skip or an error. See decision "A test that is red first".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from celery_trace.reproduction.captured import Code, ExpectedError, Place
from celery_trace.reproduction.project import LoadedProject
from celery_trace.reproduction.running import RequestFacts, RunEnd, run_task, run_view

__all__ = ["Code", "ExpectedError", "OtherError", "Place", "Project", "RequestFacts", "Trial", "hole"]


class OtherError(Exception):
    """The run raised another error than the captured one, which is its cause."""


def hole(where: str, why: str) -> Any:
    """A value that the capture does not have: the test is skipped until a value is written in its place."""
    _skip(f"hole: {where} ({why}). Write a value in place of this hole.")


def _skip(why: str) -> NoReturn:
    import pytest  # it runs this; elsewhere it may not be installed

    pytest.skip(why)


class Project(LoadedProject):
    """A project in a test: what is missing skips the test."""

    def missing(self, what: str) -> NoReturn:
        """Skip the test."""
        _skip(f"hole: {what}")

    def run_task(
        self, failure: ExpectedError, name: str, args: Sequence[object], kwargs: Mapping[str, object], retries: int
    ) -> Trial:
        """Run one try of a task."""
        return Trial(failure, run_task(self.task(name), args, kwargs, retries))

    def run_view(self, failure: ExpectedError, facts: RequestFacts) -> Trial:
        """Call the view of a request."""
        return Trial(failure, run_view(self, facts))


class Trial:
    """
    One run of what has failed.

    Raises:
        OtherError: It raised another error. In a fixture, pytest reports that as an error and not as a failure.
    """

    def __init__(self, failure: ExpectedError, ended: RunEnd) -> None:
        self._failure = failure
        self._ended = ended
        difference = failure.difference(ended.error) if ended.error is not None else ""
        if difference:
            raise OtherError(f"not reproduced, another error: {difference}") from ended.error

    def check(self, request: Any, *, reproduced: bool) -> None:
        """
        Fail if the error is reproduced, pass if there is evidence that it is fixed, else skip.

        Args:
            request: pytest's ``request``. Its cache remembers that the error was reproduced in this checkout.
            reproduced: Whether the file says that it was.
        """
        __tracebackhide__ = True
        cache = getattr(request.config, "cache", None)
        key = f"celery_trace/reproduced/{request.node.nodeid.replace('/', '.')}"
        error = self._ended.error
        if error is not None:
            if cache is not None:
                cache.set(key, True)
            at = self._failure.at
            error.add_note(
                f"reproduced: {self._failure.error} at {at.code!r} in {at.module}.{at.function}. This test passes once "
                "the error is fixed. Set REPRODUCED = True in it, so that it also passes in other checkouts."
            )
            raise error
        if reproduced or (cache is not None and cache.get(key, False)) or self._failure.code_changed():
            return
        _skip(
            f"not reproduced: no error, although the code that led to {self._failure.error} is the same. It depends on "
            "something besides the arguments, such as time, data or a service. If you have seen this test fail with "
            "'reproduced', set REPRODUCED = True in it."
        )
