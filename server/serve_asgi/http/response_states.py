"""The life of a response as a table: its states, and what may follow what. Pure."""

from __future__ import annotations

import enum
from typing import Final


class ResponseState(enum.Enum):
    """Of the response."""

    WAITING = "waiting"  # for http.response.start
    STARTED = "started"  # status and headers are known, nothing is written
    STREAMING = "streaming"  # the head is written, more of the body is to come
    FILE = "file"  # the same, and a part of it is being sent from a file
    PARTING = "parting"  # to go on in another life: this one has been told, and still says its last
    PARTED = "parted"  # this life is over
    RESUMING = "resuming"  # a next life, whose http.response.start is awaited: the client has had it
    TRAILERS = "trailers"  # the body is whole, trailer fields are to come
    OVER = "over"  # the response is complete without a body, and the application still sends some
    DONE = "done"  # the response is complete
    LOST = "lost"  # the client has gone, or the response was cut


TRANSITIONS: Final = {
    ResponseState.WAITING: {ResponseState.STARTED, ResponseState.RESUMING, ResponseState.LOST},
    ResponseState.STARTED: {
        ResponseState.STARTED,
        ResponseState.STREAMING,
        ResponseState.FILE,
        ResponseState.TRAILERS,
        ResponseState.OVER,
        ResponseState.DONE,
        ResponseState.LOST,
    },
    ResponseState.STREAMING: {
        ResponseState.FILE,
        ResponseState.PARTING,
        ResponseState.PARTED,
        ResponseState.TRAILERS,
        ResponseState.DONE,
        ResponseState.LOST,
    },
    ResponseState.FILE: {ResponseState.STREAMING, ResponseState.TRAILERS, ResponseState.DONE, ResponseState.LOST},
    ResponseState.PARTING: {ResponseState.PARTED, ResponseState.TRAILERS, ResponseState.DONE, ResponseState.LOST},
    ResponseState.PARTED: {ResponseState.LOST},
    ResponseState.RESUMING: {ResponseState.STREAMING, ResponseState.LOST},
    ResponseState.TRAILERS: {ResponseState.DONE, ResponseState.LOST},
    ResponseState.OVER: {ResponseState.DONE, ResponseState.LOST},
    ResponseState.DONE: set[ResponseState](),
    ResponseState.LOST: set[ResponseState](),
}
"""The only ways from state to state. STARTED repeats itself where a 500 takes the place of a head not yet written; a
handler that returns by itself when its worker retires goes from STREAMING to PARTED."""

# Names bound to the module are faster than attributes of the enum.
WAITING: Final = ResponseState.WAITING
STARTED: Final = ResponseState.STARTED
STREAMING: Final = ResponseState.STREAMING
FILE: Final = ResponseState.FILE
PARTING: Final = ResponseState.PARTING
PARTED: Final = ResponseState.PARTED
RESUMING: Final = ResponseState.RESUMING
TRAILERS: Final = ResponseState.TRAILERS
OVER: Final = ResponseState.OVER
DONE: Final = ResponseState.DONE
LOST: Final = ResponseState.LOST
