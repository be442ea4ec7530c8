"""`python -m serve_asgi.worker`: what the listener executes. Nothing but the start."""

from serve_asgi.worker.main import main

if __name__ == "__main__":
    main()
