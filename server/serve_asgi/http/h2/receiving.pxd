cimport cython
from serve_asgi.http.h2.flow_control cimport ReceiveWindow
from serve_asgi.http.h2.frames cimport FrameReader
from serve_asgi.http.h2.header_blocks cimport HeaderBlockAssembly
from serve_asgi.http.h2.limits cimport Floods
from serve_asgi.http.h2.open_streams cimport OpenStreams
from serve_asgi.http.h2.request_reader cimport RequestReader
from serve_asgi.http.h2.sending cimport FrameSender
from serve_asgi.http.h2.settings cimport ClientSettings
from serve_asgi.http.h2.streams cimport EndedStreams, Stream
from serve_asgi.http.request_head cimport Head

cdef int _EXTRAS
cdef int DATA
cdef int HEADERS
cdef int SETTINGS
cdef int CONTINUATION
cdef int END_HEADERS
cdef int END_STREAM
cdef int PADDED
cdef object CLOSED
cdef object HALF_CLOSED_LOCAL
cdef object StreamRequest


cdef class FrameReceiver:
    cdef public double at_once
    cdef public HeaderBlockAssembly blocks
    cdef public dict early_priorities
    cdef public Floods floods
    cdef public FrameReader frames
    cdef public object held
    cdef public object leaving
    cdef public object lost
    cdef public bint more
    cdef public bytes preface
    cdef public RequestReader reader
    cdef public long long requests
    cdef public FrameSender sender
    cdef public ClientSettings settings
    cdef public bint settled
    cdef public OpenStreams streams

    @cython.locals(blocks=HeaderBlockAssembly, kind=cython.int, flags=cython.int, stream_id=cython.longlong, payload=bytes)
    cdef _receive_frames(self, given, list events, double most=*)
    @cython.locals(streams=OpenStreams, floods=Floods, before=EndedStreams, last=cython.longlong, known=Stream, stream=Stream,
                   head=Head)
    cdef _receive_block(self, long long stream_id, bytes block, bint ended, list events)
    cdef _receive_trailers(self, Stream stream, bytes block, bint ended, list events)
    cdef _end_request(self, Stream stream, list trailers, list events)
    @cython.locals(size=cython.Py_ssize_t, taken=cython.Py_ssize_t, streams=OpenStreams, window=ReceiveWindow, content=bytes,
                   ended=cython.bint, stream=Stream, own_window=ReceiveWindow)
    cdef _receive_data(self, int flags, long long stream_id, bytes payload, list events)
