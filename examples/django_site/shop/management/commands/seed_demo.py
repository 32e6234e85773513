"""Products for the shop, and a user for its admin."""

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand

from shop.models import Product


class Command(BaseCommand):
    help = "Create the demo's products; with --password also the admin user 'demo'. A second run changes nothing."

    def add_arguments(self, parser):
        parser.add_argument("--password", default="", help="password of the admin user 'demo'")

    def handle(self, *args, password, **options):
        for number, name in enumerate(("Teapot", "Umbrella", "Notebook", "Lantern"), start=1):
            Product.objects.get_or_create(name=name, defaults={"price": f"{number * 7}.50"})
        if password:
            user, _ = get_user_model().objects.get_or_create(
                username="demo", defaults={"is_staff": True, "is_superuser": True}
            )
            user.set_password(password)
            user.save()
        self.stdout.write(f"{Product.objects.count()} products are in the shop.")
