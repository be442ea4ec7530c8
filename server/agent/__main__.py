"""`python -m server.agent`: what the listener executes. Nothing but the start."""

from server.agent.main import main

if __name__ == "__main__":
    main()
