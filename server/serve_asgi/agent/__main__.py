"""`python -m serve_asgi.agent`: what the listener executes. Nothing but the start."""

from serve_asgi.agent.main import main

if __name__ == "__main__":
    main()
