"""Messages, shared state and schedules for the processes of one server, as pure cores.

The listener runs a hub for its children, and a process that no listener started runs one for itself (local mode).
"""
