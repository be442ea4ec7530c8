from serve_asgi.http.request_head cimport Head


cdef class ResponseFraming:
    cdef public Py_ssize_t _length
    cdef public Py_ssize_t _remaining
    cdef public Py_ssize_t _sent
    cdef public bytes _trailer_lines
    cdef public bytes field
    cdef public object kind
    cdef public bint trailers_follow

    cpdef advance(self, Py_ssize_t size, bint more)
    cpdef bytes payload(self, bytes body, bint more)
