"""What a real worker writes to disk holds no secret, in whatever way a task was given one, in full or in brief."""

import pytest
from celery import Celery

MODULE = """
import os

from celery import Celery

app = Celery("secretive")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

db_pass = "hunter2-in-source"


def connect(host, user, password):
    raise LookupError(f"no {host} for {user} with {password}")


@app.task
def tell(value, text):
    held = {"value": value}
    raise LookupError(text)


@app.task
def logs_in():
    connect("db.example.org", "bob", "hunter2-positional")
"""
X = "hunter2-and-more"
PAT = "github_pat_11AAAAAAA0vXyZ1234567890_QwErTyUiOpAsDfZxCvBnM1234567890qwertyuiopasdfgh"
VALUES = [
    PAT,
    {PAT: 1},
    {"DB_PASS": X, "PGPASS": X, "smtp_pw": X, "newPass": X, "FERNET_KEY": X, "STRIPE_KEY": X},
    {f"redis://bob:{X}@host": [X]},
    ["pg_dump", "--password", X],
    ["curl", "-u", f"admin:{X}"],
    {"tokens": [X]},
]
TEXTS = [
    f"clone with {PAT}",
    f'{{"password": "a\\"{X}"}}',
    f"Authorization: ApiKey {X}",
    f"Cookie: theme=dark; remember={X}",
    f"redis://:a/b@{X}@host:6379/0",
    f"<password>{X}</password>",
    f"INSERT INTO users (email, password) VALUES ('a@b.c', '{X}')",
    f"Key (api_token)=({X}) already exists.",
    f"run --password {X}",
    f"https://x.blob.core.windows.net/c?sv=2020&sig={X}",
]


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "secretive.py").write_text(MODULE)
    return folder


def test_no_secret_that_a_task_was_given_is_on_disk(start_worker, project, own_broker_url, records, trace_dir):
    worker = start_worker("secretive", project, settings={"memory": "off", "capture_budget": "0"})
    with Celery("client", broker=own_broker_url, set_as_current=False) as client:
        client.conf.task_ignore_result = True
        sent = [client.send_task("secretive.tell", (value, "harmless")).id for value in VALUES]
        sent += [client.send_task("secretive.tell", (number, text)).id for number, text in enumerate(TEXTS)]
        sent.append(client.send_task("secretive.logs_in").id)
    for task_id in sent:
        records.wait(
            lambda queries, task_id=task_id: queries.failures(task_id=task_id).rows,
            f"the failure of {task_id}",
            explain=worker.tail,
        )
    worker.stop()
    written = b"".join(path.read_bytes() for path in trace_dir.rglob("*") if path.is_file())
    for secret in (X, PAT, "hunter2-in-source", "hunter2-positional"):
        assert secret.encode() not in written, secret
    assert b"db.example.org" in written
    assert b"harmless" in written
