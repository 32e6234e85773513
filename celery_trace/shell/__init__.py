"""
Look inside a failure: live in the process that failed, or recreated from its capture in a sandbox.

In the traced process: :mod:`~celery_trace.shell.keeper` holds failures, :mod:`~celery_trace.shell.live` carries
commands out. Near the person: :mod:`~celery_trace.shell.client` and :mod:`~celery_trace.shell.recreated` open
sessions, which :mod:`~celery_trace.shell.session` describes. Between them: :mod:`~celery_trace.shell.channel`
and :mod:`~celery_trace.shell.signing`. What is typed is read by :mod:`~celery_trace.shell.interpreter` on both sides.
"""
