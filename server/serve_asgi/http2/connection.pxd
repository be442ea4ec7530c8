cimport cython

from serve_asgi.http.client_connection cimport HttpConnection
from serve_asgi.http.h2.connection_core cimport ConnectionCore
from serve_asgi.http.h2.receiving cimport FrameReceiver
from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http.write_buffer cimport WriteBuffer
from serve_asgi.http2.deadlines cimport Deadlines
from serve_asgi.http2.stream_dispatch cimport StreamDispatch

cdef Py_ssize_t _BEGUN
cdef Py_ssize_t _GOAWAYS
cdef Py_ssize_t _RESETS_SENT
cdef object _NOT_LEAVING
cdef object _SERVING
cdef object CLOSED
cdef object CLOSING
cdef object IDLE
cdef object LEAVING
cdef object REQUEST


cdef class Http2Connection(HttpConnection):
    cdef bint _batching
    cdef bint _counted
    cdef bint _flush_due
    cdef public bytes arrived
    cdef public ConnectionCore core
    cdef public Deadlines deadlines
    cdef public object departure
    cdef public object lives
    cdef public StreamDispatch streams

    @cython.locals(core=ConnectionCore, receiver=FrameReceiver)
    cpdef _receive(self, bytes data)
    cpdef adjust_reading(self)
    cpdef begin_work(self)
    cpdef forget_stream(self, stream_id)
    cpdef is_last(self)
    @cython.locals(worker=WorkerContext, core=ConnectionCore)
    cpdef rest(self)
    cpdef flush_soon(self)
    @cython.locals(core=ConnectionCore, output=WriteBuffer, resets=cython.longlong)
    cpdef flush(self)
