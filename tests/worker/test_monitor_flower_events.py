"""A real worker, a real monitor, and a stranger on their broker: Flower's pages show the worker's events, redacted."""

import time

import pytest
import redis
from celery import Celery
from celery.events.event import get_exchange

from tests.support.monitor_app import Client
from tests.support.waiting import wait_until
from tests.worker.test_monitor_command import monitor, printed

SECRET = "opensesame-4711"
TASKS = f"""
app.conf.update(worker_send_task_events=True, task_send_sent_event=True, result_backend="cache+memory://",
                trace_alert_channels=["json://{SECRET}.example.org/hook"])
@app.task
def pay(password):
    return dict(token=password)
@app.task
def decline(password):
    raise ValueError("password=" + password)
@app.task(bind=True, max_retries=1, default_retry_delay=0)
def again(self, password):
    raise self.retry(exc=ValueError("password=" + password))
"""
HEADER = {"Authorization": "Bearer letmein"}


@pytest.fixture
def standing(tmp_path, own_broker_url, start_worker):
    with monitor(tmp_path, own_broker_url, "--port=0", more=TASKS, CELERY_TRACE_MONITOR_PASSWORD="letmein") as program:
        address = printed(program, r"celery-trace monitor: (http://127\.0\.0\.1:\d+)/trace\n")
        node = start_worker("proj", tmp_path, switch=False, pool="solo", concurrency=1).node
        client = Client(address)
        wait_until(lambda: node in client.get("/workers?json=1", headers=HEADER).text, "the worker is shown")
        yield Celery(broker=own_broker_url, set_as_current=False), node, lambda path: client.get(path, headers=HEADER)


def fates(get):
    text = get("/metrics").text
    return {
        fate: float(text.partition(f'celery_trace_events_total{{fate="{fate}"}} ')[2].partition("\n")[0])
        for fate in ("refused", "field_left_out")
    }


def test_each_event_of_a_real_worker_is_taken_whole_and_no_secret_is_seen(standing):
    app, node, get = standing
    ended = {"proj.pay": "SUCCESS", "proj.decline": "FAILURE", "proj.again": "FAILURE"}
    for name in ended:
        app.send_task(name, kwargs={"password": SECRET}, argsrepr="()", expires=3600)
    app.send_task("proj.pay", kwargs={"password": SECRET}, countdown=3600, task_id="later")

    def states():
        return {task["name"]: task["state"] for task in get("/api/tasks").json().values() if task["uuid"] != "later"}

    wait_until(lambda: states() == ended, "the tasks end", explain=states)
    tasks = get("/api/tasks").json()
    assert {task["kwargs"] for task in tasks.values()} == {"{'password': '[redacted]'}"}
    (paid,) = (task for task in tasks.values() if task["state"] == "SUCCESS")
    assert (paid["result"], paid["worker"], paid["retries"]) == ("{'token': '[redacted]'}", node, 0)
    assert paid["runtime"] >= 0
    assert fates(get) == {"refused": 0.0, "field_left_out": 0.0}
    page = wait_until(lambda: (found := get(f"/worker/{node}")).status == 200 and found, "the worker answers")
    assert "later" in page.text  # its tasks with an ETA
    for text in (page.text, get("/api/workers").text, get("/tasks").text, get("/api/tasks").text):
        assert SECRET not in text


def test_a_forged_heartbeat_changes_no_figure_and_breaks_no_page(standing):
    app, node, get = standing
    with app.connection_for_write() as connection:
        producer = connection.Producer(exchange=get_exchange(connection), serializer="json")
        for odd in ({"active": "<img src=x onerror=alert(1)>"}, {"freq": "x"}, {"loadavg": {}}, {"clock": "x"}):
            forged = {"type": "worker-heartbeat", "hostname": node, "timestamp": time.time(), "clock": 1, **odd}
            producer.publish(forged, routing_key="worker.heartbeat")
        wait_until(lambda: fates(get)["field_left_out"] == 4, "they have come", explain=lambda: fates(get))
    for path in ("/", "/workers", "/workers?json=1", "/api/workers?status=1", "/metrics"):
        answer = get(path)
        assert answer.status == 200
        assert "<img" not in answer.text.replace('<img src="/static/favicon', "")
    (worker,) = get("/workers?json=1").json()["data"]
    assert isinstance(worker["active"], int)
    assert worker["status"] is True


RUBBISH = (b"{}", b"[]", b"7", b"no json", b"[" * 100_000, b'{"body": 5, "properties": {}}', b"\xff", b"null")


def test_rubbish_on_the_brokers_channel_is_counted_and_the_broker_is_still_there(standing, own_broker_url, tmp_path):
    _, node, get = standing
    server = redis.Redis.from_url(own_broker_url)
    channel = f"/{server.connection_pool.connection_kwargs['db']}.celeryev/worker.heartbeat"

    def heartbeats():
        return get("/workers?json=1").json()["data"][0].get("worker-heartbeat", 0)

    for raw in RUBBISH:
        wait_until(lambda raw=raw: server.publish(channel, raw) > 0, "somebody listens")
    so_far = heartbeats()
    wait_until(lambda: heartbeats() > so_far, "the worker's next heartbeat is taken")
    assert fates(get)["refused"] > 0
    assert get(f"/workers?worker={node}").status == 200
    assert "The broker does not answer" not in (tmp_path / "monitor.log").read_text()
