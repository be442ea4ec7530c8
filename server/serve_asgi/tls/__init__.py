"""TLS: handshakes, records, certificates, tickets."""
