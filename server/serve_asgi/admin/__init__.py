"""The admin process: metrics of the whole server and a page that shows them, besides the listener and the workers."""
