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


cdef class RequestPipeline:
    cdef WriteBuffer _output
    cdef Timeouts _timeouts
    cdef WorkerContext _worker
    cdef public RequestBuffer buffer
    cdef public Py_ssize_t requests
    cdef public Response response
    cdef public set still_sending

    cpdef receive(self, HttpConnection connection, bytes data)
    cpdef receive_body(self, HttpConnection connection, bytes data)
    cpdef complete(self, HttpConnection connection, Response response)
    cpdef _begin(self, HttpConnection connection, bytes data, bytes rest)
    cpdef _feed_body(self, HttpConnection connection, Response response, RequestBody body, bytes data)
    cpdef _rest(self, HttpConnection connection)
