from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0012_chords_and_idle_consumers"
