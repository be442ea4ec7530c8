"""The store: a process that keeps the shared state over restarts (SQLite) or beyond one machine (Redis).

The listener starts it (`serve_asgi.listener.store_process`) and never waits for it; what passes between is in
`serve_asgi.ipc.store_frames`. It never imports the application.
"""
