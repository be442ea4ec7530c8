cimport cython
from serve_asgi.websocket.compression cimport Deflate
from serve_asgi.websocket.frames cimport client_head, close_frame, control_frame, data_frame, valid_code

cdef int _BINARY, _CLOSE, _CONTINUATION, _PING, _TEXT
cdef int _FIN, _FIN_BINARY, _FIN_TEXT, _MASKED, _RSV, _RSV1
cdef int _SINGLE
cdef Py_ssize_t _COST
cdef object apply_mask
cdef tuple SHORT_BINARY, SHORT_TEXT


@cython.locals(text=str)
cpdef Py_ssize_t weigh(message) except -1


cdef class MessageFraming:
    cdef bint _asked
    cdef bint _close_sent
    cdef bint _compressed
    cdef bint _ended
    cdef bint _fin
    cdef int _kind
    cdef Py_ssize_t _left
    cdef bytes _mask
    cdef Py_ssize_t _max_size
    cdef bytearray _message
    cdef list _pongs
    cdef bytes _rest
    cdef bint _resting
    cdef bint _stuck
    cdef bytes _tail
    cdef Py_ssize_t _wire
    cdef public bint behind
    cdef public Deflate deflate
    cdef public Py_ssize_t room

    @cython.locals(size=Py_ssize_t, first=int)
    cpdef single(self, bytes data)
