"""What is spoken on a client connection: HTTP/1.1, WebSocket, the health endpoint."""
