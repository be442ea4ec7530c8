"""Three applications with the usual instrumentations, each below a path of its own, and the server's own metrics."""

import os

import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import include, path
from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette_exporter import PrometheusMiddleware, handle_metrics

from serve_asgi import metrics

settings.configure(
    SECRET_KEY="x",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_prometheus"],
    MIDDLEWARE=[
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ],
)
django.setup()
urlpatterns = [
    path("page", lambda request: HttpResponse("django"), name="page"),
    path("", include("django_prometheus.urls")),
]
from django.core.asgi import get_asgi_application  # noqa: E402 (after the settings)

PAGES = metrics.Counter("pages", "Pages of all three.", ["of"])
BUSY = metrics.Gauge("pages_in_progress", "Pages in progress.")


async def page(request: Request) -> Response:
    return PlainTextResponse("starlette")


async def own(request: Request) -> Response:
    text, kind = metrics.exposition(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": kind})


async def pid(request: Request) -> Response:
    return PlainTextResponse(str(os.getpid()))


with_starlette = Starlette(routes=[Route("/starlette/page", page), Route("/starlette/metrics", handle_metrics)])
with_starlette.add_middleware(PrometheusMiddleware, app_name="shop")  # which does not know the paths of a Mount

with_fastapi = FastAPI()


@with_fastapi.get("/page")
async def fastapi_page() -> str:
    return "fastapi"


Instrumentator(excluded_handlers=["/fastapi/metrics"]).instrument(with_fastapi).expose(with_fastapi)

routes = Starlette(
    routes=[
        Route("/pid", pid),
        Route("/own", own),
        Mount("/fastapi", with_fastapi),
        Mount("/django", get_asgi_application()),
    ]
)


async def app(scope, receive, send):
    within = with_starlette if scope["type"] == "http" and scope["path"].startswith("/starlette") else routes
    if scope["type"] == "http" and scope["path"].endswith("/page"):
        PAGES.labels(scope["path"].split("/")[1]).inc()
        with BUSY.track_inprogress():
            await within(scope, receive, send)
    else:
        await within(scope, receive, send)
