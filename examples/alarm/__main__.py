"""Run the alarm: `python examples/alarm [--clickhouse-url URL] [--webhook URL] … [options of serve]`.

It only puts its own options into the environment and becomes `serve`, with all that it does not know itself:

    python examples/alarm --webhook https://chat.example/hooks/x --workers 4 --state alarm.db
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

OPTIONS = {
    "--clickhouse-url": (
        "ALARM_CLICKHOUSE_URL",
        "URL",
        "ClickHouse's HTTP interface; without it DuckDB reads the file",
    ),
    "--table": ("ALARM_TABLE", "NAME", "ClickHouse's table of the access log (access_log)"),
    "--access-log": ("ALARM_ACCESS_LOG", "PATH", "file of the access log, written and read (access.log)"),
    "--webhook": ("ALARM_WEBHOOK_URL", "URL", "where to post to"),
    "--threshold": ("ALARM_THRESHOLD", "NUMBER", "more answers than these are told (100)"),
    "--every": ("ALARM_EVERY", "TIME", "how often to look (10m)"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="alarm", epilog="All other options are those of `serve`.", allow_abbrev=False)
    for option, (variable, kind, help) in OPTIONS.items():
        parser.add_argument(option, dest=variable, metavar=kind, help=help)
    given, rest = parser.parse_known_args()
    os.environ.update({variable: value for variable, value in vars(given).items() if value is not None})
    log = os.environ.setdefault("ALARM_ACCESS_LOG", "access.log")
    here = str(Path(__file__).resolve().parent)
    command = [sys.executable, "-m", "serve_asgi", "alarm:app", "--app-dir", here]
    os.execv(sys.executable, [*command, "--access-log-file", log, "--access-log-format", "json", *rest])


if __name__ == "__main__":
    main()
