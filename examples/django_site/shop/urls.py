"""Addresses of the shop."""

from django.urls import path

from shop import views

app_name = "shop"
urlpatterns = [
    path("", views.index, name="index"),
    path("send/<slug:name>/", views.send, name="send"),
    path("error/", views.create_error, name="create-error"),
    path("shop/<int:pk>/", views.ProductView.as_view(), name="product"),
    path("checkout/", views.CheckoutView.as_view(), name="checkout"),
    path("leak/", views.leak, name="leak"),
    path("template/", views.broken_template, name="broken-template"),
    path("async-error/", views.slow_error, name="slow-error"),
    path("slow/", views.slow, name="slow"),
    path("stream/", views.stream, name="stream"),
]
