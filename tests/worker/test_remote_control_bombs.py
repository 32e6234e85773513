"""A bomb for all workers at once, on Celery's own remote control: it costs a traced worker no memory."""

import bz2
import sys
from pathlib import Path

import pytest
from celery import Celery
from kombu import Exchange, Producer

from celery_trace.control import orders as control
from celery_trace.settings import Settings

BOMB_BYTES = 200 * 1024 * 1024
APP = """
from celery import Celery
app = Celery("errands")
"""


def peak_kib(pid):
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the peak of another process's memory is Linux's to tell"
)
@pytest.mark.parametrize("pool", ["prefork", "solo", "gevent"])
def test_a_bomb_on_remote_control_is_dropped_and_orders_are_taken_as_before(
    pool, own_broker_url, start_worker, tmp_path, trace_dir
):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "errands.py").write_text(APP)
    worker = start_worker("errands", folder, pool=pool, concurrency=1)
    compressor = bz2.BZ2Compressor(9)
    bomb = b"".join(compressor.compress(bytes(2**22)) for _ in range(BOMB_BYTES // 2**22)) + compressor.flush()
    with Celery("asker", broker=own_broker_url, set_as_current=False) as asker:
        inspect = asker.control.inspect([worker.node], timeout=20, limit=1)
        assert inspect.ping() == {worker.node: {"ok": "pong"}}
        before_kib = peak_kib(worker.pid)
        with asker.connection_for_write() as connection:
            producer = Producer(connection.default_channel, exchange=Exchange("celery.pidbox", type="fanout"))
            for headers in ({"compression": "application/x-bz2"}, {"compression": 5}):
                producer.publish(bomb, content_type="application/json", content_encoding="utf-8", headers=headers)
            producer.publish(
                b"x" * (control.MOST_COMMAND_BYTES + 3), content_type="application/json", content_encoding="utf-8"
            )
        assert inspect.ping() == {worker.node: {"ok": "pong"}}
        assert peak_kib(worker.pid) - before_kib < 96 * 1024, worker.tail()
        answers = control.arm(asker, Settings(dir=str(trace_dir)), "errands.any", 60.0, user="ann")
        assert answers == [{"worker": worker.node, "ok": True, "why": ""}]
    log = worker.tail()
    assert log.count("was dropped unread") == 1, "once a minute"
    worker.stop()
    assert "Control command error" not in worker.tail()
