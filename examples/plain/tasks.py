"""
A small project with only Celery: typical tasks for trying a monitor.

    celery -A tasks worker -E -l INFO
    python send.py
"""

import time

from celery import Celery

app = Celery("tasks", broker="redis://localhost:6379/0")
app.conf.broker_connection_retry_on_startup = True

_greetings = {}


@app.task
def add(x, y):
    return x + y


@app.task
def echo(message, timestamp=False):
    return f"{time.time():.3f} {message}" if timestamp else message


@app.task
def sleep(seconds):
    time.sleep(seconds)


@app.task
def error(message):
    shout = message.upper()
    raise RuntimeError(f"failed on request: {shout}")


@app.task(bind=True, max_retries=2)
def unsteady(self, attempts_needed):
    attempt = self.request.retries + 1
    if attempt < attempts_needed:
        raise self.retry(countdown=0.1, exc=ConnectionError(f"attempt {attempt} found no server"))
    return attempt


@app.task
def greet(name):
    greeting = [f"Hello, {name}, for the {count}th time" for count in range(50)]
    _greetings[time.perf_counter_ns()] = greeting  # kept forever, by mistake
    return greeting[0]
