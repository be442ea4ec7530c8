cimport cython
from serve_asgi.http.h2.header_decoder cimport HeaderDecoder


cdef class RequestReader:
    cdef object _check
    cdef public tuple _kept
    cdef long long _kept_at
    cdef Py_ssize_t _max_size
    cdef long long _misses
    cdef bint _suspect
    cdef public HeaderDecoder decoder
    cdef public bytes method

    @cython.locals(kept=dict, decoder=HeaderDecoder, before=cython.longlong, misses=cython.longlong, fields=list, literals=list)
    cpdef tuple read(self, bytes block, bint ended)
    cdef _keep(self, dict kept, bytes block, tuple result)
    @cython.locals(limit=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cdef _check_size(self, list fields, bytes block)
    cdef _check_fields(self, list fields)
    cpdef list read_trailers(self, bytes block)
    cpdef skip(self, bytes block)
