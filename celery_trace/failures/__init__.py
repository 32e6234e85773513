"""Failures: Celery's signals, the captured values, and how repeats and several records of a run are merged."""
