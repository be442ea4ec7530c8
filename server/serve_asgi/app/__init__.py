"""The worker's side of what an application may use: knowing when its worker retires, and (later) messages and state."""
