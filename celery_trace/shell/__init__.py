"""
Look inside a failure: live in the process that failed, or recreated from its capture in a sandbox.

``live`` holds the objects in the traced process, carries commands out there, and has the client that opens a session
from elsewhere. ``sandbox`` recreates a stored failure in a program of its own. Both offer a session
(:mod:`~celery_trace.shell.session`) and read what is typed with the same :mod:`~celery_trace.shell.interpreter`.
"""
