cimport cython

cdef bint _COMPILED
cdef unsigned int _ENDED, _BAD, _COMPLETE
cdef Py_ssize_t _LEAST_LENGTH
cdef unsigned int[::1] _table

@cython.locals(text=bytearray, size=cython.Py_ssize_t, entry=cython.uint, bad=cython.uint, byte=cython.uchar)
cpdef bytes decode_by_nibbles(bytes data)
cpdef bytes decode(bytes data)
cpdef bytes encode(bytes text)
