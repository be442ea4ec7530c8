"""Django and channels: WebSockets and streams that go on in new code."""

import asyncio
import os

from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="nobody is to trust this one",
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    LOGGING_CONFIG=None,
)

from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.sessions import CookieMiddleware  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from serve_asgi import survive  # noqa: E402


class Echo(AsyncWebsocketConsumer):
    groups = ("all",)

    async def connect(self):
        self.kept = survive(self.scope)
        await self.accept()

    async def receive(self, text_data=None, bytes_data=None):
        number = self.kept.state.get("number", 0) + 1
        await self.send(f"{number} {os.getpid()} {text_data}")
        self.kept.state["number"] = number


class Threaded(WebsocketConsumer):
    def connect(self):
        self.kept = survive(self.scope)
        self.accept()

    def receive(self, text_data=None, bytes_data=None):
        number = self.kept.state.get("number", 0) + 1
        self.send(f"{number} {os.getpid()} {text_data}")
        self.kept.state["number"] = number


async def lines(request):
    kept = survive(request.scope)

    async def numbers():
        while True:
            number = kept.state.get("number", 0) + 1
            yield f"data: {number} {os.getpid()}\n\n"
            kept.state["number"] = number
            await asyncio.sleep(0.01)

    return StreamingHttpResponse(numbers(), content_type="text/event-stream")


urlpatterns = [path("lines", lines)]
websocket = CookieMiddleware(URLRouter([path("echo", Echo.as_asgi()), path("threaded", Threaded.as_asgi())]))
app = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": websocket})
