"""What the listener decides, as pure state machines: no socket, process or clock."""
