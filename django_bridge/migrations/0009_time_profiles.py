from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0008_no_overhead_of_rollups"
