"""What an application imports, and what runs it: messages, shared state, schedules, the agent, loading and WSGI."""
