"""The request/response cycle: an application is called with a request and its response, which is always ended.

It owns the call, and what is logged of an application that does not do its part. Rule: whatever the application
raises, the client gets its end. What it is called with is `serve_asgi.http.request_receive` and
`serve_asgi.http.response`; it must not know the connection.
"""

from __future__ import annotations

import asyncio
import logging
from types import MethodType
from typing import Final

from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.http.request_receive import Request
from serve_asgi.http.response import Response
from serve_asgi.http.response_states import LOST, PARTING, STARTED, WAITING
from serve_asgi.http.survival import tells_of_end
from serve_asgi.http.worker_context import ASGIApplication, Message, Scope
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.exceptions import all_tell, exc_info, is_a, is_from_outside, was_told
from serve_asgi.logs.request_ids import named, of_request
from serve_asgi.logs.server_log import about

_log: Final = logging.getLogger("serve.error")

_EXCUSED_5XX: Final = int(Cell.EXCUSED_5XX)
_FAILED_WITHOUT_5XX: Final = int(Cell.FAILED_WITHOUT_5XX)


async def run_cycle(app: ASGIApplication, request: Request, response: Response, scope: Scope) -> None:
    """Call the application and make sure that the response is ended. The caller has counted the request as in flight.

    What is said of an application's failure comes before the response's end, and cannot prevent it.
    """
    try:
        await app(scope, MethodType(_receive, request), MethodType(_send, response))
        if not response.is_settled():
            _abandoned(request, response)
    except BaseException as error:
        forks.leave(error)
        if is_from_outside(error, request.task):  # the loop is closed, and this coroutine with it
            raise
        _failed(request, response, error)
    finally:
        response.call_ended()


async def _receive(request: Request) -> Message:
    """ASGI `receive`: http.request while there is body to take, then http.disconnect once all is over."""
    while (message := request.next_message()) is None:
        await request.until_woken()
    return message


async def _send(response: Response, message: Message) -> None:
    """ASGI `send`. Raises RuntimeError, TypeError or ValueError for a wrong message, ClientDisconnected."""
    waits = response.send(message)
    if waits is not None:
        await waits


def _abandoned(request: Request, response: Response) -> None:
    """The application has returned before the response was complete."""
    if request.taken and request.client_has_ended():  # `receive` has told it that the client is gone
        _log.debug("The application ended because the client had gone.", extra=about("client_disconnected"))
        if response.state is WAITING or response.state is STARTED:
            response.worker.cells[_EXCUSED_5XX] += 1  # it is answered with 500, in case that somebody still reads
    elif response.state is WAITING:
        _report(request, response, "returned without answering", "request_unanswered")
    else:
        _report(request, response, "returned without completing its response to", "request_unanswered")
    _end(response)


def _failed(request: Request, response: Response, error: BaseException) -> None:
    try:
        if response.state is PARTING and tells_of_end(error) and response.life_ended():
            return
        _tell_of(request, response, error)
    except BaseException:  # the application has the scope, and may have put anything into it
        _log.error("The application failed; it is not known in which request.", extra=about("application_failed"))
    finally:
        _end(response)


def _tell_of(request: Request, response: Response, error: BaseException) -> None:
    cancelled = is_a(error, asyncio.CancelledError)
    in_vain = request.body_is_coming() or cancelled or all_tell(error, ClientDisconnected)
    if response.state is LOST and in_vain:  # coming: half a request, of which frameworks make errors of their own
        text = "The application ended because the client had gone."
        _log.debug(text, exc_info=exc_info(error), extra=about("client_disconnected"))
    else:
        what = "was cancelled" if cancelled else "raised an exception"
        _report(request, response, f"{what} while answering", "application_failed", error)


def _end(response: Response) -> None:
    """End the response, if it has not ended: properly, or else by ending the connection."""
    try:
        response.end_badly()
    except BaseException as error:
        response.lose()
        response.output.abort()
        text = "a response could not be completed, and its connection was closed; please report this"
        logging.getLogger("serve").error(text, exc_info=exc_info(error), extra=about("internal_error"))


def _report(request: Request, response: Response, what: str, event: str, error: BaseException | None = None) -> None:
    """Count and log what the application did wrong, and at which request."""
    if response.state is not WAITING and response.state is not STARTED and response.status < 500:
        response.worker.cells[_FAILED_WITHOUT_5XX] += 1  # the others are answered with 500, or have been with 5xx
    method, path = request.head.method, request.path()
    request_id, trace = request.identity(), request.trace()
    _log.error(
        "The application %s %s %s%s.",
        what,
        method,
        path,
        named(request_id, trace),
        exc_info=None if error is None or was_told(error) else exc_info(error),
        extra=about(event, **of_request(method, path, request_id, trace)),
    )
