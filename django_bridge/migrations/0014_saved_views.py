from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0013_triage"
