"""The store: a process that keeps the shared state over restarts (SQLite) or beyond one machine (Redis, PostgreSQL).

The listener starts it (`serve_asgi.listener.store_process`) and never waits for it; `serve_asgi.ipc.store_frames` has
the frames between the two. It never imports the application.
"""
