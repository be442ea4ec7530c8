from serve_asgi.http.h2.flow_control cimport ReceiveWindow
from serve_asgi.http.h2.sending cimport FrameSender
from serve_asgi.http.h2.streams cimport EndedStreams, Stream


cdef class OpenStreams:
    cdef Py_ssize_t _max_streams
    cdef FrameSender _sender
    cdef public set busy
    cdef public dict by_id
    cdef public EndedStreams ended
    cdef public long long resets
    cdef public ReceiveWindow window

    cpdef Stream begin(self, stream_id, long long send_window, bint ended)
    cpdef check_begun(self, stream_id, name)
    cpdef grant(self, long long size)
    cpdef consume(self, Stream stream, long long size)
    cpdef reset(self, stream_id, code)
    cpdef drop(self, Stream stream)
    cpdef close(self, Stream stream)
    cpdef close_sent(self)
