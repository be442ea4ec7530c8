"""`python -m serve_asgi.admin`, started by the listener."""

from serve_asgi.admin.main import main

if __name__ == "__main__":
    main()
