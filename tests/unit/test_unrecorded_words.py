"""What is said when records can't be written: once for each reason, with what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_trace.spool import unrecorded

FOLDER = Path("/srv/trace/spool")


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    before = set(unrecorded._logged)
    unrecorded._logged.clear()
    yield
    unrecorded._logged.clear()
    unrecorded._logged.update(before)


def an_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), str(FOLDER))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "CELERY_TRACE_DIR"),
        (errno.EROFS, "CELERY_TRACE_TRANSPORT=broker"),
        (errno.ENOENT, "CELERY_TRACE_DIR"),
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EMFILE, "limit of open files"),
    ],
)
def test_the_log_says_what_why_and_what_to_do(number: int, says: str, caplog: pytest.LogCaptureFixture) -> None:
    unrecorded.log_once(FOLDER, an_error(number))
    (record,) = caplog.records
    text = record.getMessage()
    assert record.levelname == "ERROR"
    assert str(FOLDER) in text
    assert "Tasks go on" in text
    assert says in text


def test_a_reason_is_logged_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        unrecorded.log_once(FOLDER, an_error(errno.EACCES))
    unrecorded.log_once(FOLDER, an_error(errno.EROFS))
    assert caplog.text.count("records can't be written") == 2
    for _ in range(2):
        unrecorded.log_recovery(FOLDER, an_error(errno.EACCES))
    assert caplog.text.count("are written to") == 1
    unrecorded.log_once(FOLDER, an_error(errno.EACCES))
    assert caplog.text.count("records can't be written") == 3


def test_what_a_worker_has_promised_to_say_its_children_do_not_say_as_well(caplog: pytest.LogCaptureFixture) -> None:
    unrecorded.mark_logged(FOLDER, an_error(errno.EACCES))
    unrecorded.log_once(FOLDER, an_error(errno.EACCES))
    assert caplog.records == []
    unrecorded.log(FOLDER, an_error(errno.EACCES))
    assert len(caplog.records) == 1
