cimport cython

from serve_asgi.http.client_connection cimport HttpConnection
from serve_asgi.http.client_end cimport ClientEnd
from serve_asgi.http.h2.connection_core cimport ConnectionCore
from serve_asgi.http.request_body cimport RequestBody
from serve_asgi.http.request_head cimport Head
from serve_asgi.http.request_receive cimport Request
from serve_asgi.http.response cimport Response
from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http2.response cimport Http2Response
from serve_asgi.http2.stream_body cimport StreamBody

cdef object DONE
cdef object LOST
cdef object OVER
cdef object PARTED
cdef object STARTED
cdef object WAITING


cdef class Exchange(ClientEnd):
    cdef object _code
    cdef bint _returned
    cdef long long _sent
    cdef list _waiters
    cdef public HttpConnection connection
    cdef public ConnectionCore core
    cdef public double deadline
    cdef public bint paused
    cdef public Request request
    cdef public Http2Response response
    cdef public object stream_id

    @cython.locals(worker=WorkerContext)
    cpdef prepare(self, Head head)
    @cython.locals(request=Request, response=Http2Response)
    cpdef bint begin(self) except -1
    cdef _rest(self)
    cdef _release(self)
    cpdef new_body(self, head)
    cpdef adjust_reading(self)
    @cython.locals(body=RequestBody)
    cpdef receive_data(self, bytes data)
    @cython.locals(body=RequestBody)
    cpdef receive_end(self, trailers)
    cpdef drained(self)
    @cython.locals(body=RequestBody)
    cpdef response_complete(self, response)
    cpdef reset_behind(self, code)
    cpdef send_head(self, list fields, bint ended)
    @cython.locals(waiting=cython.Py_ssize_t)
    cpdef send_response(self, list fields, bytes body)
    @cython.locals(waiting=cython.Py_ssize_t)
    cpdef send_data(self, bytes data, bint ended)
    cdef _wait_for_window(self, Py_ssize_t waiting)
    cdef _wake(self)
    cdef _look_again(self, double seconds)
    cpdef expect_body(self)
    cdef _watch(self)
