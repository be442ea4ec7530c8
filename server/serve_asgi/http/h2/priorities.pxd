cimport cython


cdef class _Level:
    cdef list in_order
    cdef dict sharing
    cdef bint turn_of_order


cdef class DataScheduler:
    cdef list _levels
    cdef public dict places

    @cython.locals(level=_Level)
    cpdef add(self, stream_id, priority)
    @cython.locals(level=_Level)
    cpdef remove(self, stream_id)
    @cython.locals(level=_Level)
    cpdef next(self)
