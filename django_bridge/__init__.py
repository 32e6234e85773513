"""
The Django side of celery-trace: requests measured by route, their failures captured, records in the admin.

``INSTALLED_APPS += ["django_bridge"]`` and
``MIDDLEWARE += ["django_bridge.middleware.TraceMiddleware"]`` (last) switch it on.
"""
