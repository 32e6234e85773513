"""For each migration of the store one that runs it, see :mod:`django_bridge.store_migrations`."""
