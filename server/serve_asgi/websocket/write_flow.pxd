cdef class WriteFlow:
    cdef object _loop
    cdef Py_ssize_t _unsent
    cdef list _waiters
    cdef public double deadline
    cdef public bint paused
    cdef public bytes pongs
