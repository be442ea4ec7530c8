"""`python -m server.store`, started by the listener."""

from server.store.main import main

if __name__ == "__main__":
    main()
