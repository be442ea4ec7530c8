cdef class HeaderBlockAssembly:
    cdef Py_ssize_t _frames
    cdef Py_ssize_t _max_frames
    cdef Py_ssize_t _max_size
    cdef list _pieces
    cdef Py_ssize_t _size
    cdef public bint end_stream
    cdef public long long stream_id
