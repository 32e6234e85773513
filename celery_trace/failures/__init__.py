"""Failures: what Celery says of them, the values that they held, and how repeats and witnesses become one record."""
