"""`python -m serve_asgi.store`, started by the listener."""

from serve_asgi.store.main import main

if __name__ == "__main__":
    main()
