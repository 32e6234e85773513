"""A page with a button for each task, and views that fail or leak in different ways."""

import asyncio
import random
import time

from django.contrib import messages
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views import View
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_POST

from shop import tasks
from shop.models import Order, Product

_visitors = []

BUTTONS = {
    "create_error": ("A task that fails", lambda: tasks.create_error.delay()),
    "remember_order": ("A task that leaks", lambda: tasks.remember_order.delay(random.randrange(10**6))),
    "quote": ("A task that only fills a bounded cache", lambda: tasks.quote.delay(random.randrange(1000))),
    "rotate_report": ("A task that replaces what it keeps", lambda: tasks.rotate_report.delay()),
    "overrun": ("A task that overruns its hard time limit", lambda: tasks.overrun.delay()),
    "reserve_stock": ("A task that is stuck for a minute", lambda: tasks.reserve_stock.delay()),
    "add": ("An ordinary task", lambda: tasks.add.delay(2, 3)),
}


def index(request):
    """The page with the buttons."""
    return render(
        request,
        "shop/index.html",
        {
            "buttons": [(name, title) for name, (title, _) in BUTTONS.items()],
            "products": Product.objects.all()[:20],
        },
    )


@require_POST
def send(request, name):
    """Send one of the tasks."""
    _, send_task = BUTTONS[name]
    result = send_task()
    messages.info(request, f"Sent {name}: {result.id}")
    return redirect("shop:index")


def create_error(request):
    """Fail with some locals to inspect."""
    context_data = "Hello"
    a = 5
    c = 6
    d = 10
    return HttpResponse(f"{context_data}: {(a + c) / (d - 10)}")


class ProductView(View):
    """One product; an unknown one is an ordinary 404, which celery-trace ignores."""

    def get(self, request, pk):
        product = get_object_or_404(Product, pk=pk)
        return JsonResponse({"name": product.name, "price": str(product.price)})


class CheckoutView(View):
    """Place an order; fails for quantity 0 after two queries, with a card number that must be redacted."""

    def get(self, request):
        return render(request, "shop/checkout.html", {"products": Product.objects.all()[:20]})

    def post(self, request):
        return _check_out(request)


@sensitive_post_parameters("card")
@sensitive_variables("card")
def _check_out(request):
    card = request.POST.get("card", "")
    product = get_object_or_404(Product, pk=request.POST.get("product", 0))
    quantity = int(request.POST.get("quantity", "1"))
    price_each = product.price * quantity / quantity
    order = Order.objects.create(product=product, quantity=quantity)
    return JsonResponse({"order": order.pk, "price": str(price_each), "card": bool(card)})


def leak(request):
    """Leak about 4 KB a request: each visitor stays in a list."""
    visitor = {"agent": request.headers.get("User-Agent", ""), "trail": [f"step {number}" for number in range(60)]}
    _visitors.append(visitor)  # LEAK: a view that leaks
    return HttpResponse(f"{len(_visitors)} visitors")


def broken_template(request):
    """Fail at a line of a template."""
    return render(request, "shop/broken.html", {"values": [1, 2, 3]})


async def slow_error(request):
    """Fail in an async view."""
    waited_s = 0.01
    await asyncio.sleep(waited_s)
    raise LookupError(f"nothing found within {waited_s} s")


def slow(request):
    """Take a while; a server's time limit below ?seconds=N aborts it."""
    seconds = min(float(request.GET.get("seconds", "1")), 60)
    time.sleep(seconds)
    return HttpResponse(f"took {seconds:g} s")


def stream(request):
    """Stream some lines; with ?break=1 the stream fails in the middle."""
    breaks = request.GET.get("break") == "1"

    def lines():
        for number in range(10):
            if breaks and number == 5:
                raise RuntimeError(f"line {number} is missing")
            yield f"line {number}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")
