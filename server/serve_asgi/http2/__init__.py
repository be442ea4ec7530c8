"""HTTP/2 on the loop: connections, and the requests, responses and WebSockets on their streams."""
