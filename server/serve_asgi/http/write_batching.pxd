cimport cython

cdef object perf_counter
cdef double _PATIENCE
cdef double _SLOW


cdef class Holder:
    cpdef flush(self)


cdef class WriteBatch:
    cdef object _loop
    cdef list _waiting
    cdef double _due
    cdef object _end
    cdef double _last
    cdef double _at_once_until

    @cython.locals(now=double, waiting=list)
    cpdef add(self, Holder holder)
    @cython.locals(waiting=list, holder=Holder)
    cpdef end(self)
