from serve_asgi.http.request_receive cimport Request
from serve_asgi.http.response cimport Response
from serve_asgi.http.worker_context cimport WorkerContext

cdef object _Task
cdef object _run_cycle
cdef bint _EAGER
cdef Py_ssize_t _IN_FLIGHT


cpdef call_application(WorkerContext worker, Request request, Response response)
