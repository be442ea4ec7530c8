cdef class _UnderWay:
    cdef public object before
    cdef public bint begun
    cdef public Py_ssize_t most
    cdef public bytearray packed


cdef class Deflate:
    cdef public int _client_bits
    cdef bint _client_takeover
    cdef object _compressor
    cdef public object _decompressor
    cdef int _ended
    cdef object _scale
    cdef int _server_bits
    cdef bint _server_takeover
    cdef _UnderWay _under_way
    cdef Py_ssize_t _weighed
    cdef public bytearray rest

    cpdef bytes compress(self, bytes payload)
    cpdef bytes inflate(self, bytes piece, Py_ssize_t room, bint last, Py_ssize_t most)
    cpdef bytes unpack(self, Py_ssize_t room)
    cdef bytes _inflate(self, bytes piece, Py_ssize_t room, Py_ssize_t most)
    cdef _over(self)
