from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0005_rollups_of_a_process"
