"""
celery-trace for Django: measures requests by route, captures their failures, and shows records in the admin.

``INSTALLED_APPS += ["django_bridge"]`` and
``MIDDLEWARE += ["django_bridge.middleware.TraceMiddleware"]`` (last) enable it.
"""
