cimport cython

from serve_asgi.http.request_body cimport RequestBody
from serve_asgi.http.response cimport Response
from serve_asgi.http.response_framing cimport ResponseFraming
from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http.write_buffer cimport WriteBuffer

cdef Py_ssize_t LARGE
cdef Py_ssize_t _CLOSE
cdef Py_ssize_t _OWN_LINES
cdef object _SERVING
cdef object _CLOSING
cdef object _HANDING_OVER
cdef dict STATUS_LINES
cdef object CHUNKED
cdef object NONE


cdef class Http1Response(Response):
    @cython.locals(worker=WorkerContext, output=WriteBuffer, request_body=RequestBody, framing=ResponseFraming, length=Py_ssize_t, size=Py_ssize_t)
    cpdef _first(self, bytes body, bint more)
    @cython.locals(worker=WorkerContext, request_body=RequestBody)
    cpdef bytes _head_bytes(self, ResponseFraming framing, bint more)
    @cython.locals(framing=ResponseFraming, output=WriteBuffer, size=Py_ssize_t)
    cpdef write_next(self, bytes body, bint more)
