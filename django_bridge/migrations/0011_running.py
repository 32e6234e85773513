from django_bridge.store_migrations import StoreMigration


class Migration(StoreMigration):
    after = "0010_messages_in_queues"
