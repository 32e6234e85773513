from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0011_running"
