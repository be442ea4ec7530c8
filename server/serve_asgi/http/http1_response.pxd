from serve_asgi.http.request_body cimport RequestBody
from serve_asgi.http.response cimport Response
from serve_asgi.http.response_framing cimport ResponseFraming
from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http.write_buffer cimport WriteBuffer


cdef class Http1Response(Response):
    cpdef bytes _head_bytes(self, ResponseFraming framing, bint more)
