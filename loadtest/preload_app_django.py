"""The Django application of `loadtest.preload`: with the admin, users, sessions and the ORM, as a new project has."""

# mypy: ignore-errors

from __future__ import annotations

import os

from django.conf import settings

settings.configure(
    SECRET_KEY="of a load test",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    STATIC_URL="static/",
)

from django.core.asgi import get_asgi_application  # noqa: E402 (once it is configured)

app = get_asgi_application()

from django.contrib import admin  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import get_resolver, path  # noqa: E402


async def who(request: HttpRequest) -> JsonResponse:
    """Which process has answered; builds a query."""
    str(User.objects.filter(username="nobody").query)
    return JsonResponse({"pid": os.getpid()})


urlpatterns = [path("", who), path("admin/", admin.site.urls)]
get_resolver().url_patterns  # noqa: B018 (Django reads them at the first request otherwise)
