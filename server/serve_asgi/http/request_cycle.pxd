from serve_asgi.http.request_receive cimport Request
from serve_asgi.http.response cimport Response
from serve_asgi.http.worker_context cimport WorkerContext

cdef Py_ssize_t _IN_FLIGHT
cdef Py_ssize_t _EXCUSED_5XX
cdef Py_ssize_t _FAILED_WITHOUT_5XX
cdef object _Task
cdef bint _EAGER

cpdef call_application(WorkerContext worker, Request request, Response response)
