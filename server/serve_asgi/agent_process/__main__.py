"""`python -m serve_asgi.agent_process`: what the listener executes. Nothing but the start."""

from serve_asgi.agent_process.main import main

if __name__ == "__main__":
    main()
