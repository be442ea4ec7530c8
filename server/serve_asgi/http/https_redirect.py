"""--https-redirect: what comes over a plain TCP address is sent to the https:// URL (308, RFC 9110, section 15.4.9).

An ASGI application in front of the real one, so that those who do not use it pay nothing. The real one is called for
whatever came over TLS (also as a trusted proxy says it did), over a unix socket (a proxy's), and for the paths under
which authorities look for a token when they issue a certificate (ACME, RFC 8555, section 8.3, begins in plain HTTP).
The health path is answered before any application is called. 308 keeps the method and the body, other than 301.
"""

from __future__ import annotations

from typing import Final

from serve_asgi.http.worker_context import ASGIApplication, Receive, Scope, Send

ACME: Final = "/.well-known/acme-challenge/"
HTTPS_PORT: Final = 443
TEXT: Final = b"This address is only for redirects: use https.\n"


class HttpsRedirect:
    """The application in front of `app`."""

    def __init__(self, app: ASGIApplication, port: int) -> None:
        """`port` is where clients find this server speaking TLS."""
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called as ASGI has it."""
        if scope.get("scheme") in ("http", "ws") and not self._is_excepted(scope):
            await self._redirect(scope, send)
        else:
            await self._app(scope, receive, send)

    @staticmethod
    def _is_excepted(scope: Scope) -> bool:
        server = scope["server"]
        return server is None or server[1] is None or scope["path"].startswith(ACME)

    async def _redirect(self, scope: Scope, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(TEXT))]
        host = self._host(scope)
        status = 308 if host else 400
        if host:
            query = scope["query_string"]
            target = scope["raw_path"] + (b"?" + query if query else b"")
            headers.append((b"location", b"https://" + host + target))
        kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
        await send({"type": f"{kind}.start", "status": status, "headers": headers})
        await send({"type": f"{kind}.body", "body": TEXT})

    def _host(self, scope: Scope) -> bytes:
        """The host that the client asked for, with the port of TLS if it is not the usual one; b"" if it named none."""
        named = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if named.startswith(b"["):
            host = named.partition(b"]")[0] + b"]"
        else:
            host = named.partition(b":")[0]
        if not host:
            return b""
        return host if self._port == HTTPS_PORT else host + b":%d" % self._port
