"""Addresses of the demo site."""

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    # The demo has no web server in front, so it serves the admin's styles itself, even without DEBUG.
    path("static/<path:path>", serve, {"insecure": True}),
    path("", include("shop.urls")),
]
