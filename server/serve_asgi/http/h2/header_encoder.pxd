cdef class HeaderEncoder:
    cdef bytes _block
    cdef list _fields
    cdef Py_ssize_t _max_size
    cdef Py_ssize_t _newest
    cdef dict _order
    cdef Py_ssize_t _size
    cdef Py_ssize_t _smallest

    cpdef bytes encode(self, list fields)
    cdef bytes _insert(self, tuple field)
    cdef _evict(self)
    cpdef limit_table(self, Py_ssize_t size)
