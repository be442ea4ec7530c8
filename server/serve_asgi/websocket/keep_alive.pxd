cdef class KeepAlive:
    cdef public bint _asked
    cdef public double _interval
    cdef public double _next_ping
    cdef public double _timeout
    cdef public double deadline
    cdef public bint heard
