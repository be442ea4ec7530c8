import os

SECRET_KEY = "nobody is to trust this one"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "django_site.urls"
ASGI_APPLICATION = "django_site.asgi.application"
INSTALLED_APPS = ["channels", "django.contrib.sessions", "django_site"]
MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django_site.urls.stamp",
]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "data"}}
USE_TZ = True
FILE_UPLOAD_MAX_MEMORY_SIZE = 100_000
STATIC_ROOT = os.getcwd()
LOGGING_CONFIG = None
