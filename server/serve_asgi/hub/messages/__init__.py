"""Messages between the processes of one server, as the hub routes them."""
