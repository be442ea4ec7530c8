"""The server within a process of somebody else's: a test, a notebook, a debugger, a program that has an API beside.

It is one worker's data plane in the calling process and its event loop, without a listener and without children. It
stands above `worker` and below the commands, and uses nothing that only one platform has.
"""
