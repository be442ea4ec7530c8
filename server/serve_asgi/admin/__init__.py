"""The admin process: metrics of the whole server, and a page that shows them, beside the listener and the workers."""
