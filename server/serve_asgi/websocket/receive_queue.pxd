cdef class ReceiveQueue:
    cdef public bint behind
    cdef public object disconnect
    cdef public list queue
    cdef public Py_ssize_t size
    cdef public list waiters

    cpdef wake(self)


cpdef wake(list waiters)
