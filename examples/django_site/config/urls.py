"""Addresses of the demo site."""

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    # A demo without a web server in front serves the admin's styles itself, also with DEBUG off.
    path("static/<path:path>", serve, {"insecure": True}),
    path("", include("shop.urls")),
]
