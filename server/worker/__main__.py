"""`python -m server.worker`: what the listener executes. Nothing but the start."""

from server.worker.main import main

if __name__ == "__main__":
    main()
