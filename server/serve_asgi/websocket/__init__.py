"""WebSockets: handshake, framing, compression, closing."""
