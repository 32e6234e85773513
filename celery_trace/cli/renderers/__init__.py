"""
Text for terminals, one module per subject.

Every function is pure: it converts structs and a :class:`~celery_trace.cli.renderers.style.Style` to text. Hidden
characters in data of traced processes are shown as escapes.
"""
