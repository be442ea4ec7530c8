cdef class ClientEnd:
    cdef public object client
    cdef public object server
    cdef public object life
    cdef public long long number
    cdef public bint read_paused
    cdef public str scheme
    cdef public object tls
    cdef public bint trusted

    cpdef new_body(self, head)
    cpdef adjust_reading(self)
    cpdef response_complete(self, response)
