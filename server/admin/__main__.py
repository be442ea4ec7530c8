"""`python -m server.admin`, started by the listener."""

from server.admin.main import main

if __name__ == "__main__":
    main()
