cimport cython

from serve_asgi.http.h2.header_encoder cimport HeaderEncoder
from serve_asgi.http.h2.limits cimport Floods
from serve_asgi.http.h2.priorities cimport DataScheduler
from serve_asgi.http.h2.settings cimport ClientSettings
from serve_asgi.http.h2.streams cimport Stream

cdef Py_ssize_t DATA
cdef Py_ssize_t END_HEADERS
cdef Py_ssize_t END_STREAM
cdef object HEAD
cdef Py_ssize_t HEAD_SIZE
cdef Py_ssize_t HEADERS
cdef Py_ssize_t CRUMB
cdef object CLOSED
cdef object _SEND_HEADERS
cdef object _SEND_DATA
cdef object _SEND_END
cdef Py_ssize_t _AT_ONCE
cdef Py_ssize_t _MAX_FRAME


cdef class FrameSender:
    cdef Floods _floods
    cdef list _output
    cdef dict _scheduled
    cdef DataScheduler _scheduler
    cdef ClientSettings _settings
    cdef Py_ssize_t _size
    cdef dict _streams
    cdef public list closed
    cdef public list drained
    cdef public HeaderEncoder encoder
    cdef public long long granted
    cdef public long long window

    cpdef write(self, bytes frame)
    cpdef write_headers(self, Stream stream, list fields, bint ended)
    cpdef write_data(self, Stream stream, bytes data, bint ended)
    @cython.locals(size=Py_ssize_t, block=bytes, block_size=Py_ssize_t)
    cpdef write_response(self, Stream stream, list fields, bytes body)
    cpdef write_trailers(self, Stream stream, list fields)
    cdef _close(self, Stream stream)
    cdef _put(self, Stream stream, data, bint ended)
    cdef _schedule(self, Stream stream)
    cpdef reschedule(self, Stream stream)
    cpdef bytes take(self, Py_ssize_t room)
    cdef _take_data(self, Py_ssize_t room)
    cdef _cut(self, Stream stream, Py_ssize_t size)
    cpdef forget(self, Stream stream)
    cpdef widen(self, long long increment)
    cpdef widen_stream(self, Stream stream, long long increment)
