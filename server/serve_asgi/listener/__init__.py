"""The parent process: it owns the listening sockets and the generations of workers."""
