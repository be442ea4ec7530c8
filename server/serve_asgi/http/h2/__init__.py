"""HTTP/2 (RFC 9113): bytes in, events out, and the reverse. Pure: no sockets, no clock, no application."""
