"""The shared state: the hub orders its writes and replicates it to the processes."""
