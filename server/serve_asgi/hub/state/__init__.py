"""The shared state, as the hub orders its writes and keeps its replicas."""
