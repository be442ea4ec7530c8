cpdef long long widened(long long window, long long increment) except? -1


cdef class ReceiveWindow:
    cdef long long _consumed
    cdef long long _half
    cdef public long long left
    cdef public long long waiting

    cpdef bint receive(self, long long size) except -1
    cpdef long long consume(self, long long size) except? -1
