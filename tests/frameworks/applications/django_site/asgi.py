"""The application as Django's and channels' documentation have it."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_site.settings")
http = get_asgi_application()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

from django_site.urls import note  # noqa: E402


class Echo(AsyncWebsocketConsumer):
    async def connect(self):
        await self.channel_layer.group_add("all", self.channel_name)
        await self.accept("chat" if "chat" in self.scope["subprotocols"] else None)

    async def disconnect(self, code):
        await self.channel_layer.group_discard("all", self.channel_name)
        note(f"left with {code}")

    async def receive(self, text_data=None, bytes_data=None):
        if text_data == "to all":
            await self.channel_layer.group_send("all", {"type": "told", "text": "for all"})
        else:
            await self.send(text_data=text_data, bytes_data=bytes_data)

    async def told(self, event):
        await self.send(text_data=event["text"])


class Refusing(AsyncWebsocketConsumer):
    async def connect(self):
        await self.close()


websocket = URLRouter([path("echo", Echo.as_asgi()), path("refused", Refusing.as_asgi())])
application = ProtocolTypeRouter({"http": http, "websocket": websocket})
