cimport cython

from serve_asgi.http.client_end cimport ClientEnd
from serve_asgi.http.request_body cimport RequestBody
from serve_asgi.http.request_head cimport Head
from serve_asgi.http.worker_context cimport WorkerContext

cdef object perf_counter
cdef dict _ASGI
cdef object EXTENSION


cdef class Request:
    cdef ClientEnd _connection
    cdef bint _gone
    cdef str _identity
    cdef bint _told
    cdef bint _waits_for_gone
    cdef WorkerContext _worker
    cdef public double begun
    cdef public RequestBody body
    cdef public object client
    cdef public bint ended
    cdef public Head head
    cdef public dict scope
    cdef public bint taken
    cdef public object task
    cdef public list waiters

    @cython.locals(body=RequestBody)
    cpdef next_message(self)
    cpdef wake(self)
