"""The demonstration: `serve serve_asgi.demo:asgi --workers 4`."""

from serve_asgi.demo.application import asgi as asgi
