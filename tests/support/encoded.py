"""One value as a failure's capture keeps it."""

import time

import msgspec

from celery_trace.failures.capture import render
from celery_trace.failures.capture.heap import HeapEncoder
from celery_trace.failures.capture.leaves import LEAVES
from celery_trace.failures.capture.shapes import shape_of
from celery_trace.redaction import Redactor, Scrubber
from celery_trace.settings import Limits


class Encoded:
    """One value in a heap of its own."""

    def __init__(self, value, name="value", **limits):
        self.limits = Limits(**limits)
        encoder = HeapEncoder(self.limits, Redactor(), Scrubber(), shape_of, LEAVES)
        self.ref = encoder.variables([(name, value)])[0].ref
        encoder.open_pending(nodes=self.limits.nodes, bytes=self.limits.bytes)
        self.nodes = encoder.finish()
        self.data = msgspec.json.encode(self.nodes)
        self.cut_values = encoder.cut_values

    @property
    def node(self):
        return self.nodes[self.ref]

    @property
    def text(self):
        return render.text(self.nodes, self.ref, 300)

    def field(self, name):
        return self.nodes[self.node.items[self.node.names.index(name)]]


def cpu_of(call):
    """The CPU time of a call in s, of this thread alone: other processes on the machine count less."""
    start_s = time.thread_time()
    call()
    return time.thread_time() - start_s
