"""Runs a server from its settings to its exit status: binds sockets before, and releases them after."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from typing import TYPE_CHECKING, Final

import anyio

from serve_asgi.config import release
from serve_asgi.config.options import Config
from serve_asgi.config.sources import Settings, SourcePriority
from serve_asgi.config.tls_files import TlsFiles
from serve_asgi.config.unknown_options import told_of
from serve_asgi.errors import ServeError, StartError, UsageError
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.listener import reload_on_change
from serve_asgi.listener.binding import bind, bind_admin
from serve_asgi.listener.generation_config import resolve_config
from serve_asgi.listener.hooks import trouble_at_start
from serve_asgi.listener.listener import Listener
from serve_asgi.listener.listening_sockets import ListeningSocket
from serve_asgi.listener.pid_file import PidFile
from serve_asgi.logs import server_log as logs
from serve_asgi.logs import stdio_guard
from serve_asgi.supervisor import actions

if TYPE_CHECKING:
    from serve_asgi.listener.certificate_loading import LoadedTls

NO_PROC: Final = (
    "/proc is not mounted: workers can write into each other's counts, clients are spread less evenly, a stop does not "
    "wait for clients in the middle of a handshake, and `serve stacks` shows less"
)
PASSWORD_EXPOSED: Final = (
    "the password of the private key stands on the command line, where every user of this machine can read it: use "
    "--tls-key-password-file"
)

log = logging.getLogger("serve")


def run(settings: Settings) -> int:
    """Run a server until it ends; return its exit status.

    Raises UsageError for invalid settings (exit status 2), StartError if the application did not start (1); the log
    file has that as well.
    """
    try:
        return _run(settings)
    except ServeError as error:
        _log_failure(settings.config, error)
        raise


def _run(settings: Settings) -> int:
    config = settings.config
    descriptors.raise_limit()
    first = resolve_config(settings, release.logical_directory())
    if trouble := trouble_at_start(config, first.release):
        raise UsageError(trouble)
    if config.reload:
        reload_on_change.require(settings)
    if config.admin and importlib.util.find_spec("prometheus_client") is None:
        raise UsageError("--admin needs the package prometheus-client: pip install prometheus-client, or leave it out")
    tls = load_tls(settings)
    with stdio_guard.guarded():
        logs.configure(config, "listener")
        if not os.path.exists("/proc/self/fd"):
            log.warning(NO_PROC, extra=logs.about("proc_not_found"))
        for text in told_of(os.environ):
            log.warning("%s", text)
        if settings.sources["tls_key_password"].tier is SourcePriority.COMMAND_LINE:
            log.warning(PASSWORD_EXPOSED, extra=logs.about("tls_password_exposed"))
        pid_file = PidFile(config.pid_file) if config.pid_file else None
        listening: list[ListeningSocket] = []
        admin: list[ListeningSocket] = []
        try:
            listening = bind(config)
            admin = bind_admin(config, listening)
            listener = Listener(first, listening, pid_file, admin, tls=tls)
            listener.admin.listen()
        except BaseException:
            give_back(listening + admin, pid_file)
            raise
        end = serve(listener)
    return conclude(end, settings)


def _log_failure(config: Config, error: ServeError) -> None:
    """Have the log file say why the server did not start, as stderr does: only one of them may be kept."""
    if not config.log_file:
        return
    with contextlib.suppress(ServeError):  # it may be what cannot be opened
        if not logs.is_configured():
            logs.configure(config, "listener")
        about = logs.about("server_start_failed", reason=str(error), detail=getattr(error, "detail", ""))
        log.error("the server has not started: %s", error, extra=about)


def load_tls(settings: Settings) -> tuple[TlsFiles, LoadedTls] | None:
    """What the TLS options name, read and checked; None without a certificate. Raises UsageError."""
    files = TlsFiles.of(settings.config, settings.directory)
    if files is None:
        return None
    from serve_asgi.listener.certificate_loading import load
    from serve_asgi.tls.material import stay_out_of_core_files

    stay_out_of_core_files()
    return files, load(files)


def serve(listener: Listener) -> actions.Exit:
    """Run it until it ends, and release what it owned."""
    try:
        end = anyio.run(listener.run)
    finally:
        give_back(listener.listening + listener.admin_listening, listener.pid_file)
    if not end.status:
        log.info("stopped", extra=logs.about("server_stopped"))
    return end


def give_back(listening: list[ListeningSocket], pid_file: PidFile | None) -> None:
    """Close the sockets and remove the pid file."""
    for each in listening:
        each.close()
    if pid_file is not None:
        pid_file.remove()


def conclude(end: actions.Exit, settings: Settings) -> int:
    """Return the exit status. Raises UsageError or StartError if the server did not end normally."""
    if not end.status:
        return 0
    if settings.config.reload:
        return reload_on_change.start_again_after_a_change(settings, StartError(end.message, end.detail), end.again)
    if end.status == 2:
        raise UsageError(end.message)
    raise StartError(end.message, end.detail)
