"""The agent process: one per server, of the current generation, outside the request path."""
