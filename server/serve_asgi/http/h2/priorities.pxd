cdef class _Level:
    cdef list in_order
    cdef dict sharing
    cdef bint turn_of_order


cdef class DataScheduler:
    cdef list _levels
    cdef public dict places

    cpdef add(self, stream_id, priority)
    cpdef remove(self, stream_id)
    cpdef next(self)
