cdef class ClientSettings:
    cdef bint _begun
    cdef public long long initial_window
    cdef public long long max_frame_size
    cdef public bint priorities_in_frames
    cdef public long long table_size

    cpdef apply(self, bytes payload)
