from serve_asgi.http.client_connection cimport HttpConnection
from serve_asgi.http.worker_context cimport WorkerContext


cdef class Deadlines:
    cdef double _farewell
    cdef double _frame
    cdef bint _unread
    cdef WorkerContext _worker
    cdef double _write
    cdef public double idle

    cpdef begin(self, HttpConnection connection, double until)
    cpdef work(self, HttpConnection connection)
    cpdef rest(self, HttpConnection connection)
    cpdef writing_resumed(self)
    cpdef frame_arriving(self, HttpConnection connection, bint half)


cdef _expect(HttpConnection connection, double deadline)
