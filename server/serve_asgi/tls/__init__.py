"""TLS beside the protocols that speak over it: handshake, records, certificates, tickets. Bytes in, bytes out.

`session.py` is where to begin: it says what is whose duty, and why a connection can move to another process.
"""
