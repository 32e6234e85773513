"""The Celery app. The last line is all that a project needs for celery-trace."""

import os

from celery import Celery

from celery_trace import CeleryTrace

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

CeleryTrace(app)
