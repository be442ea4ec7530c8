from serve_asgi.http.client_connection cimport HttpConnection
from serve_asgi.http.request_pipeline cimport RequestPipeline
from serve_asgi.http.timeouts cimport Timeouts


cdef class Http1Connection(HttpConnection):
    cdef public RequestPipeline pipeline
    cdef public object records
    cdef public Timeouts timeouts
