"""The server's log, sinks that never block, the access log, request ids."""
