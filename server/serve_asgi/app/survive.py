"""Lets an application keep a connection over a deploy: a WebSocket, or a response that is being streamed.

`survive(scope)` asks for it. When the worker retires, the call of the application ends (`receive` says so), and the
application is called again, with the same scope, in another worker; the client notices nothing. What the second call
needs to know of the first goes with the connection as `state`. Under another server, or where it is not possible,
`survive(scope)` is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serve_asgi.http.survival import EXTENSION, SurvivableConnection, Survival


class SurviveFunction:
    """The connections of this process that may survive.

    Example:
        ```python
        kept = survive(socket.scope)
        await socket.accept()
        last = kept.state.get("last", 0) if kept and kept.resumed else 0
        ```
    """

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: Mapping[int, SurvivableConnection] = {}

    def __call__(self, scope: Mapping[str, Any], *, version: int | None = None) -> Survival | None:
        """Ask that the connection of this request survive.

        Call it before the WebSocket is accepted or the response begins, again in each life. It may be called more than
        once; the last `version` counts.

        Args:
            scope: The ASGI scope of a WebSocket or of an HTTP request.
            version: Of the state as this code writes it: the next life finds it in `version`.

        Returns:
            The connection's state and what was before; None under another server, for a connection that cannot be
            handed over (TLS 1.2), or if the request is over.

        Example:
            ```python
            kept = survive(request.scope)
            ```
        """
        extensions = scope.get("extensions") or {}
        if EXTENSION not in extensions:
            return None
        connection = self._connections.get(extensions.get("serve", {}).get("connection", 0))
        return None if connection is None else connection.opt_in(extensions, version)

    def shared_connections(self) -> dict[int, SurvivableConnection]:
        """For servers in process, of which there may be several: the connections of all."""
        if not isinstance(self._connections, dict):
            self._connections = {}
        return self._connections

    def begin(self, connections: Mapping[int, SurvivableConnection]) -> None:
        """For the worker: these are its connections, by `scope["extensions"]["serve"]["connection"]`."""
        self._connections = connections


survive: Final = SurviveFunction()
