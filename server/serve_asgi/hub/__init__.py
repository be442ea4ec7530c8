"""What the processes of one server tell each other: messages, shared state and schedules, as pure cores.

The listener runs a hub for its children, and a process that no listener started runs one for itself (local mode).
"""
