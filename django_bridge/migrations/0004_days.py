from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0003_queues_releases_and_sorts"
