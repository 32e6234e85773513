"""
Text for terminals, a subject a module.

Every function is pure: structs and a :class:`~celery_trace.cli.renderers.style.Style` go in, text comes out. What came
from a traced process is data: its hidden characters are shown as escapes.
"""
