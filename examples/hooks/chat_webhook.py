"""Tell a chat what happens to a server: a hook that posts to an incoming webhook (Slack, Mattermost, Rocket.Chat …).

    serve app:asgi --workers 4 \\
        --hook 'post_reload=python3 /srv/hooks/chat_webhook.py' \\
        --hook 'reload_refused=python3 /srv/hooks/chat_webhook.py' \\
        --hook 'worker_died=python3 /srv/hooks/chat_webhook.py'

CHAT_WEBHOOK_URL names where to post to; put it into the server's environment or its --env-file. It needs nothing but
Python. A post that fails is exit status 1 and a line of the server's log; nothing else comes of it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

TIMEOUT = 5.0
"""Seconds; the server ends a hook after --hook-timeout anyway."""
SIGNS = {"error": "\N{LARGE RED CIRCLE}", "warning": "\N{LARGE YELLOW CIRCLE}"}
LONGEST_DETAIL = 1500
"""Characters of a traceback that are posted: its end says most."""


def message(event: dict[str, Any]) -> str:
    """What the chat shows of an event."""
    server = event["server"]
    sign = SIGNS.get(event["level"], "\N{LARGE GREEN CIRCLE}")
    text = f"{sign} *{server['app']}* on {server['host']}: {event['text']}"
    if event.get("detail"):
        text += f"\n```\n{event['detail'][-LONGEST_DETAIL:].strip()}\n```"
    return text


def post(url: str, text: str) -> None:
    """Post it. Raises OSError (urllib.error.URLError) if that cannot be."""
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT):
        pass


def main() -> int:
    url = os.environ.get("CHAT_WEBHOOK_URL", "")
    if not url:
        print("chat_webhook: set CHAT_WEBHOOK_URL to the address that your chat gave you", file=sys.stderr)
        return 1
    try:
        post(url, message(json.load(sys.stdin)))
    except OSError as error:
        print(f"chat_webhook: the chat did not take it: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
