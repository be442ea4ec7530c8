"""The process that runs the application and serves connections."""
