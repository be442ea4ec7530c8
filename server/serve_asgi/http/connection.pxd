from serve_asgi.http.client_connection cimport HttpConnection
from serve_asgi.http.request_pipeline cimport RequestPipeline
from serve_asgi.http.timeouts cimport Timeouts

cdef object IDLE
cdef object REQUEST
cdef object DISCARDING
cdef object CLOSING
cdef object PARTED


cdef class Http1Connection(HttpConnection):
    cdef public RequestPipeline pipeline
    cdef public object records
    cdef public Timeouts timeouts

    cpdef adjust_reading(self)
    cpdef response_complete(self, response)
    cpdef new_body(self, head)
