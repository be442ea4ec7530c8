"""`python -m server.agent_process`: what the listener executes. Nothing but the start."""

from server.agent_process.main import main

if __name__ == "__main__":
    main()
