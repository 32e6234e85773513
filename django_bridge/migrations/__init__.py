"""One migration for each of the store's, which it runs; see :mod:`django_bridge.store_migrations`."""
