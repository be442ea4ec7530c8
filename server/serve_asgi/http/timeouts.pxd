from serve_asgi.http.request_body cimport RequestBody
from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http.write_buffer cimport WriteBuffer


cdef class Timeouts:
    cdef WriteBuffer _output
    cdef Py_ssize_t _unread_after
    cdef WorkerContext _worker
    cdef public double deadline

    cpdef double head(self) except? -1
    cpdef double write(self) except? -1
    cpdef double body(self, RequestBody body) except? -1
