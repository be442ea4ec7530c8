cimport cython

from serve_asgi.http.client_connection cimport HttpConnection
from serve_asgi.http.request_head cimport Head
from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http2.exchange cimport Exchange

cdef Py_ssize_t _STREAMS
cdef Py_ssize_t _RESETS_RECEIVED
cdef Py_ssize_t _FAULTS
cdef Py_ssize_t _IN_FLIGHT


cdef class StreamDispatch:
    cdef Exchange _beginning
    cdef public dict _handlers

    @cython.locals(handlers=dict, with_body=list, exchange=Exchange)
    cpdef handle(self, HttpConnection connection, list events)
    @cython.locals(worker=WorkerContext, head=Head, exchange=Exchange)
    cdef _begin_request(self, HttpConnection connection, event, list with_body)
    cdef _call(self, Exchange exchange)
    cpdef bint forget(self, stream_id) except -1
    cpdef drained(self, list stream_ids)
