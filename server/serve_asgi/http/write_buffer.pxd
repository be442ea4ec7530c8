cimport cython

from serve_asgi.http.worker_context cimport WorkerContext
from serve_asgi.http.write_batching cimport Holder

cdef Py_ssize_t _LARGE
cdef Py_ssize_t _HOLD_LIMIT
cdef object _SERVING


cdef class WriteBuffer(Holder):
    cdef readonly list _held
    cdef readonly Py_ssize_t _held_size
    cdef Py_ssize_t _unread
    cdef readonly list _waiters
    cdef public bint batching
    cdef public Py_ssize_t file_left
    cdef public bint paused
    cdef public object transport
    cdef public WorkerContext worker

    cpdef write(self, bytes data)
    @cython.locals(size=Py_ssize_t)
    cpdef hold(self, bytes data)
    @cython.locals(size=Py_ssize_t)
    cpdef hold_framed(self, bytes before, bytes data, bytes after)
