from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0002_values_and_workflows"
