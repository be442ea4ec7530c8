"""Runs a module as on another platform: `python elsewhere.py darwin|win32 MODULE [ARGUMENTS]`.

There is no such machine here. So `sys.platform` says another one, and what only Linux has (or only Unix) is taken from
os, socket, select, signal and time, and from the modules that can be imported, before anything of the server is. The
standard library has been imported by then, and keeps what it needs for itself; the event loop is asyncio's plain one
over select(2). A child of this process is started through `sitecustomize`, which does the same.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import concurrent.futures.thread
import ctypes
import email.utils
import functools
import getpass
import http.client
import importlib.util
import json
import logging
import mmap
import os
import platform
import runpy
import select
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
import zoneinfo
from typing import Any

import anyio
import anyio._backends._asyncio
import click
import click.shell_completion
import cronsim
import cryptography.x509
import h11
import httptools
import msgspec

KEPT = (
    *(asyncio, asyncio.subprocess, concurrent.futures.thread, ctypes, email.utils, getpass, http.client),
    *(importlib.util, json, logging, mmap, platform, runpy, selectors, ssl, tempfile, threading, urllib.request, uuid),
    *(anyio._backends._asyncio, click, click.shell_completion, cronsim, cryptography.x509, h11, httptools, msgspec),
    *(subprocess, zoneinfo),
)
"""Imported while the platform is still Linux."""

LINUX = {
    os: (
        *("EFD_CLOEXEC", "EFD_NONBLOCK", "MFD_ALLOW_SEALING", "MFD_CLOEXEC", "O_PATH", "O_TMPFILE", "SCHED_BATCH"),
        *("SPLICE_F_NONBLOCK", "eventfd", "eventfd_read", "eventfd_write", "memfd_create", "pidfd_open", "pipe2"),
        *("posix_fadvise", "POSIX_FADV_WILLNEED", "splice", "timerfd_create", "sendfile"),
    ),
    select: ("epoll", "EPOLLIN", "EPOLLEXCLUSIVE", "EPOLL_CLOEXEC"),
    socket: (
        *("AF_NETLINK", "MSG_CMSG_CLOEXEC", "SO_BINDTODEVICE", "SO_MARK", "SO_PASSCRED", "SO_PEERCRED", "SO_PROTOCOL"),
        *("SO_DOMAIN", "SO_INCOMING_CPU", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "SOCK_SEQPACKET", "SCM_CREDENTIALS"),
        *("TCP_INFO", "TCP_CORK", "TCP_DEFER_ACCEPT", "TCP_USER_TIMEOUT"),
    ),
    signal: ("SIGRTMIN", "SIGRTMAX", "SIGPWR", "SIGSTKFLT", "SIGPOLL", "pidfd_send_signal", "sigtimedwait"),
    time: ("CLOCK_BOOTTIME",),
}
"""What macOS has not."""
UNIX = {
    os: (
        *("O_CLOEXEC", "O_NOCTTY", "O_NOFOLLOW", "fchmod", "fork", "forkpty", "geteuid", "getegid", "getuid"),
        *("initgroups", "major", "pread", "pwrite", "register_at_fork", "setgid", "setgroups", "setuid", "sysconf"),
        *("preadv", "pwritev", "getppid", "mkfifo"),
    ),
    select: ("poll", "POLLIN", "POLLOUT", "POLLHUP"),
    socket: ("AF_UNIX", "MSG_DONTWAIT", "MSG_NOSIGNAL", "recv_fds", "send_fds"),
    signal: (
        *("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGCHLD", "SIGALRM", "SIGTTIN", "SIGTTOU", "SIG_BLOCK"),
        *("SIG_UNBLOCK", "pthread_sigmask", "sigwait", "alarm", "setitimer"),
    ),
    time: ("clock_gettime", "CLOCK_MONOTONIC"),
}
"""What Windows has not either."""
UNIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")


class Loop(asyncio.SelectorEventLoop):
    """asyncio's own, over select(2)."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())


class LoopOfWindows(Loop):
    """Neither tells who waits nor of signals."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    def add_signal_handler(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


def become(system: str) -> None:
    """Take away what `system` (darwin or win32) has not."""
    os.O_BINARY = 0  # type: ignore[attr-defined]
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)
    taken = [LINUX, *([UNIX] if system == "win32" else [])]
    for names in taken:
        for module, some in names.items():
            for name in some:
                if hasattr(module, name):
                    delattr(module, name)
    missing: dict[str, Any] = dict.fromkeys([*(UNIX_MODULES if system == "win32" else ()), "uvloop"])
    sys.modules.update(missing)
    asyncio.new_event_loop = LoopOfWindows if system == "win32" else Loop
    platform.system = lambda: {"darwin": "Darwin", "win32": "Windows"}[system]
    sys.platform = system


def main() -> None:
    system, module, *arguments = sys.argv[1:]
    become(system)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
