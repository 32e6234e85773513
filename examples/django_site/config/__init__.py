"""The demo's project: settings, addresses, and the Celery app that `shared_task` binds to."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
