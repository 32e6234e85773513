"""
Importing this module switches the plugin on in the worker that is starting.

As in ``celery -A proj worker -E -I celery_trace.auto``.
"""

from celery_trace.runtime.plugin import install_when_a_worker_starts

install_when_a_worker_starts()
