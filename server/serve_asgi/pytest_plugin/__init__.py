"""The pytest plugin: fixtures for a server within the test's process, for a whole one, and for the time of schedules.

pytest finds it by its entry point. Importing it imports nothing of the server: that is left to the fixtures.
"""

from serve_asgi.pytest_plugin.fixtures import (
    clean_hub as clean_hub,
)
from serve_asgi.pytest_plugin.fixtures import (
    serve_app as serve_app,
)
from serve_asgi.pytest_plugin.fixtures import (
    serve_command as serve_command,
)
from serve_asgi.pytest_plugin.fixtures import (
    serve_time as serve_time,
)
