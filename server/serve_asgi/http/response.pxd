cimport cython

from serve_asgi.http.client_end cimport ClientEnd
from serve_asgi.http.head_cache cimport BoundedCache
from serve_asgi.http.request_head cimport Head
from serve_asgi.http.request_receive cimport Request
from serve_asgi.http.response_framing cimport ResponseFraming
from serve_asgi.http.worker_context cimport WorkerContext

cdef object perf_counter
cdef object WAITING
cdef object STARTED
cdef object DONE
cdef object LOST
cdef object STREAMING
cdef dict STATUS_LINES
cdef Py_ssize_t _IN_FLIGHT
cdef Py_ssize_t _REQUESTS
cdef Py_ssize_t _STATUS
cdef Py_ssize_t _TRAILERS
cdef Py_ssize_t _BODILESS
cdef object _SERVING
cdef object _RESET_CONTENT
cdef tuple _DURATION_BOUNDS
cdef frozenset NO_CONTENT


cdef class Response:
    cdef public bytes _block
    cdef public ClientEnd _connection
    cdef public object _dropped_body
    cdef public double _dropped_since
    cdef public double _first_at
    cdef public Py_ssize_t _flags
    cdef public ResponseFraming _framing
    cdef public Py_ssize_t _length
    cdef public bint close
    cdef public Head head
    cdef public object output
    cdef public Request request
    cdef public Py_ssize_t sent
    cdef public object state
    cdef public Py_ssize_t status
    cdef public WorkerContext worker

    cpdef send(self, message)
    @cython.locals(worker=WorkerContext, known=BoundedCache, block=bytes, length=Py_ssize_t, flags=Py_ssize_t)
    cpdef _start(self, message)
    cpdef _first(self, bytes body, bint more)
    cpdef write_next(self, bytes body, bint more)
    cpdef _go_on_streaming(self)
    cpdef ResponseFraming _frame(self, Py_ssize_t size, bint more)
    cpdef _body_sent(self, ResponseFraming framing)
    @cython.locals(request=Request)
    cpdef _complete(self)
    cpdef call_ended(self)
    @cython.locals(worker=WorkerContext, request=Request, took=double, bound=double, number=Py_ssize_t)
    cpdef _count(self)
