cimport cython


cdef class FrameReader:
    cdef Py_ssize_t _max_size
    cdef Py_ssize_t _needed
    cdef bytearray _rest
