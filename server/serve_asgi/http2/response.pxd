cimport cython

from serve_asgi.http.request_body cimport RequestBody
from serve_asgi.http.response cimport Response
from serve_asgi.http.response_framing cimport ResponseFraming

cdef Py_ssize_t _OWN_LINES
cdef object STARTED
cdef object LOST
cdef object FILE
cdef object NONE


cdef class Http2Response(Response):
    @cython.locals(block=bytes, default=bytes)
    cdef list _fields(self, Py_ssize_t flags)
    @cython.locals(size=cython.Py_ssize_t, length=cython.Py_ssize_t, flags=cython.Py_ssize_t, request_body=RequestBody,
                   fields=list)
    cpdef _first(self, bytes body, bint more)
    @cython.locals(size=cython.Py_ssize_t, framing=ResponseFraming)
    cdef _first_of_any(self, bytes body, bint more)
    @cython.locals(framing=ResponseFraming, fields=list)
    cdef ResponseFraming _write_head(self, Py_ssize_t size, bint more)
    @cython.locals(size=cython.Py_ssize_t, framing=ResponseFraming)
    cpdef write_next(self, bytes body, bint more)
