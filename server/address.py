"""The address of one end of a connection, as applications and logs are told it (ASGI, "HTTP Connection Scope")."""

Address = tuple[str, int] | tuple[str, None] | None
"""(host, port) of TCP, (path, None) of a unix socket's server side, None of its client side."""
