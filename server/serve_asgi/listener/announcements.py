"""What the supervisor announces: to the service manager, in the pid file and, once, in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from serve_asgi.errors import UsageError
from serve_asgi.listener import sd_notify
from serve_asgi.listener.pid_file import PidFile
from serve_asgi.logs import server_log as logs

log = logging.getLogger("serve")


class Announcements:
    """Makes the supervisor's announcements."""

    def __init__(
        self, pid_file: PidFile | None, addresses: Sequence[str], admin: Sequence[str], health: str, *, told: bool
    ) -> None:
        """`addresses`, `admin` and the path `health` ("" for none) are logged once; with `told`, an earlier program has
        logged them already."""
        self._health = health
        self._pid_file = pid_file
        self._addresses = addresses
        self._admin = admin
        self._told = told

    def announce(self, what: str, text: str) -> None:
        """See `events.Announce`."""
        match what:
            case "ready":
                self._write_pid_file()
                if not self._told:
                    self._told = True
                    self._tell_addresses()
                sd_notify.ready(text)
            case "reloading":
                sd_notify.reloading(text)
            case "stopping":
                sd_notify.stopping(text)
            case _:
                sd_notify.status(text)

    def _tell_addresses(self) -> None:
        where = ", ".join(self._addresses)
        log.info("serving on %s", where, extra=logs.about("sockets_opened", addresses=where))
        if self._health:
            text = (
                "%s is answered by the server itself, for health checks (--health-path changes it, --no-health ends it)"
            )
            log.info(text, self._health, extra=logs.about("health_path_served", path=self._health))
        if self._admin:
            log.info("metrics and dashboard: %s", ", ".join(self._admin))

    def _write_pid_file(self) -> None:
        try:
            if self._pid_file is not None:
                self._pid_file.write()
        except UsageError as error:  # such as a full disk: the next reload tries again
            log.error("the pid file cannot be written: %s", error, extra=logs.about("pid_file_failed"))
