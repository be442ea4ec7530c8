cimport cython

from serve_asgi.http.application_task cimport call_application
from serve_asgi.http.client_connection cimport HttpConnection
from serve_asgi.http.http1_response cimport Http1Response
from serve_asgi.http.request_body cimport RequestBody
from serve_asgi.http.request_buffer cimport RequestBuffer
from serve_asgi.http.request_head cimport Head
from serve_asgi.http.request_receive cimport Request
from serve_asgi.http.response cimport Response
from serve_asgi.http.timeouts cimport Timeouts
from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http.write_buffer cimport WriteBuffer

cdef object IDLE
cdef object REQUEST
cdef object DISCARDING
cdef object PARTED
cdef object OVER
cdef object _SERVING
cdef double INFINITY
cdef Py_ssize_t _IN_FLIGHT
cdef int _CR
cdef int _P


cdef class RequestPipeline:
    cdef WriteBuffer _output
    cdef Timeouts _timeouts
    cdef WorkerContext _worker
    cdef public RequestBuffer buffer
    cdef public Py_ssize_t requests
    cdef public Response response
    cdef public set still_sending

    @cython.locals(end=Py_ssize_t)
    cpdef receive(self, HttpConnection connection, bytes data)
    @cython.locals(response=Response, body=RequestBody)
    cpdef receive_body(self, HttpConnection connection, bytes data)
    @cython.locals(body=RequestBody)
    cpdef complete(self, HttpConnection connection, Response response)
    @cython.locals(worker=WorkerContext, head=Head, request=Request, response=Http1Response, body=RequestBody)
    cpdef _begin(self, HttpConnection connection, bytes data, bytes rest)
    cpdef _feed_body(self, HttpConnection connection, Response response, RequestBody body, bytes data)
    @cython.locals(worker=WorkerContext)
    cpdef _rest(self, HttpConnection connection)
