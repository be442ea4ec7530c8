from serve_asgi.http.request_receive cimport Request
from serve_asgi.http.response cimport Response
from serve_asgi.http.worker_context cimport WorkerContext

cpdef call_application(WorkerContext worker, Request request, Response response)
