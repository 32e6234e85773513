from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0007_heap_profiles"
