cdef class RequestIds:
    cdef object _random
    cdef public bint echoes
    cdef public bint generates
    cdef public bytes name
