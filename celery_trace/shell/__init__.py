"""
Shells into a failure: live in the process that failed, or recreated from its capture in a sandbox.

``live`` holds the objects in the traced process, runs commands there, and has the client that opens a session from
elsewhere. ``sandbox`` recreates a stored failure in a separate process. Both provide a session
(:mod:`~celery_trace.shell.session`) and run input with the same :mod:`~celery_trace.shell.interpreter`.
"""
