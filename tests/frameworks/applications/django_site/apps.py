"""What Django projects do while they are imported: queries, in AppConfig.ready()."""

from django.apps import AppConfig
from django.db import connection, connections

from serve_asgi import after_fork


class Site(AppConfig):
    name = "django_site"

    def ready(self):
        with connection.cursor() as cursor:
            cursor.execute("select 1")
        connection.close()  # so that it may be forked


@after_fork
def fresh():
    """As in a post_fork of gunicorn."""
    for each in connections.all():
        each.close()
