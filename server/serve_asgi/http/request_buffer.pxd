cdef class RequestBuffer(bytearray):
    cdef public Py_ssize_t scanned
    cdef Py_ssize_t _empty_lines
