"""The Celery app. Everything of celery-trace that a project needs is the last line."""

import os

from celery import Celery

from celery_trace import CeleryTrace

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

CeleryTrace(app)
