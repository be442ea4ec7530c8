from serve_asgi.http.h2.flow_control cimport ReceiveWindow


cdef class Stream:
    cdef public bint discarding
    cdef public bint end_queued
    cdef public long long expected
    cdef public long long id
    cdef public bint incremental
    cdef public Py_ssize_t offset
    cdef public object pieces
    cdef public Py_ssize_t queued
    cdef public ReceiveWindow receive_window
    cdef public bint responded
    cdef public long long send_window
    cdef public long long sent
    cdef public object state
    cdef public list trailers
    cdef public int urgency

    cpdef step(self, step)
    cpdef receive_content(self, long long size, bint ended)


cdef class EndedStreams:
    cdef long long _forgotten
    cdef object _gaps
    cdef readonly dict _reset
    cdef public long long last

    cpdef begin(self, long long stream_id)
    cpdef has_been_reset(self, long long stream_id)
    cpdef bint is_idle(self, long long stream_id) except -1
