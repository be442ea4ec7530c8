cimport cython
from serve_asgi.http.h2.open_streams cimport OpenStreams
from serve_asgi.http.h2.receiving cimport FrameReceiver
from serve_asgi.http.h2.sending cimport FrameSender
from serve_asgi.http.h2.streams cimport Stream


cdef class ConnectionCore:
    cdef OpenStreams _open
    cdef FrameSender _sender
    cdef dict _streams
    cdef public object receive
    cdef public FrameReceiver receiver

    @cython.locals(stream=Stream)
    cpdef send_head(self, stream_id, list fields, bint ended)
    @cython.locals(stream=Stream)
    cpdef Py_ssize_t send_data(self, stream_id, bytes data, bint ended) except? -1
    @cython.locals(stream=Stream)
    cpdef Py_ssize_t send_response(self, stream_id, list fields, bytes body) except? -1
    cpdef long long take_resets(self) except? -1
    cpdef done(self, stream_id)
    @cython.locals(stream=Stream)
    cpdef consumed(self, stream_id, Py_ssize_t size)
    cpdef discard(self, stream_id)
    cpdef bytes take_output(self, Py_ssize_t room=*)
    cpdef list take_drained(self)
    cpdef bint is_open(self, stream_id) except -1
    @cython.locals(stream=Stream)
    cpdef bint waits(self, stream_id) except -1
