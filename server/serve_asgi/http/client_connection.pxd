from serve_asgi.http.client_end cimport ClientEnd
from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http.write_buffer cimport WriteBuffer

cdef Py_ssize_t _CONNECTIONS
cdef Py_ssize_t _TLS_NOT_MOVED


cdef class HttpConnection(ClientEnd):
    cdef readonly object _closing
    cdef public double deadline
    cdef public bint eof
    cdef public object hand_over
    cdef public WriteBuffer output
    cdef public object state
    cdef public object transport
    cdef public WorkerContext worker
