"""Traffic for the demo: orders, leaks, failures and timeouts."""

import itertools
import threading
import urllib.error
import urllib.request

from celery import Celery
from kombu.exceptions import OperationalError

from celery_trace import CeleryTrace


class Traffic:
    """
    Sends tasks to the worker and requests to the site until it is stopped.

    Args:
        broker_url: Where the worker listens.
        site_url: The Django site.
    """

    #: Seconds between rounds of traffic.
    EVERY_S = 0.15

    def __init__(self, broker_url, site_url):
        self._app = Celery("demo-traffic", broker=broker_url, set_as_current=False)
        self._app.conf.task_ignore_result = True
        self._trace = CeleryTrace(
            self._app
        )  # the messages of a publisher with celery-trace say when they were published
        self._site_url = site_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo traffic", daemon=True)
        self.trouble = ""

    def start(self):
        """Start."""
        self._thread.start()

    def stop(self):
        """Stop, and wait for the last response."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(20)
        self._trace.close()
        self._app.close()

    def _run(self):
        for number in itertools.count():
            if self._stop.wait(self.EVERY_S):
                return
            try:
                self._round(number)
                self.trouble = ""
            except (OSError, OperationalError) as error:  # the site or the broker did not answer: the next round may do
                self.trouble = f"the traffic failed: {error}"

    def _round(self, number):
        send = self._app.send_task
        send("shop.tasks.remember_order", [number])
        send("shop.tasks.quote", [number % 300])
        if number % 2 == 0:
            send("shop.tasks.rotate_report")
            self._visit("/leak/" if number % 4 else "/")
        if number % 10 == 0:
            send("shop.tasks.add", [number, 1])
        if number % 40 == 5:
            send("shop.tasks.create_error")
            self._visit("/error/")
        if number % 200 == 15:
            send("shop.tasks.overrun")

    def _visit(self, path):
        try:
            with urllib.request.urlopen(self._site_url + path, timeout=10) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            error.close()  # /error/ fails on purpose
